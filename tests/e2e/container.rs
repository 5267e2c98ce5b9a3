//! Containers: announcer as PID 1, where `docker stop` is a drain; and one that is registered by its name.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod by_labels;

use std::path::Path;
use std::process::Command;

use lab::load::{Kind, Plan};
use lab::{Container, Etcd, Ground, Image, Network, PATIENCE, Setup, bin, free_port, heavy, light, until};

/// Started by a shell, as in many images: it leaves an orphan behind, and ends with a status of its own. The app cuts at
/// once what is still under way when it is stopped: only the drain before that keeps requests from being lost.
const APP: &str = "(/sleep 1 &); trap 'wait; exit 7' TERM; \
                   /webapp --listen 0.0.0.0:8000 --name $0 --grace 100 & wait";

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_stop_under_load_loses_nothing_and_keeps_the_status() {
    let _turn = heavy();
    let network = Network::new();
    let etcd = Etcd::at(network.gateway());
    let balancer = Setup::new().confgen(&etcd).start();
    let programs = [bin("announcer"), bin("webapp")];
    let image =
        Image::of([Path::new("/bin/sh"), Path::new("/bin/sleep")].into_iter().chain(programs.iter().map(|it| &**it)));
    let endpoint = etcd.endpoint_outside().unwrap();
    let start = |id: &str| -> Container {
        let flags = ["/announcer", "--endpoints", &endpoint, "--service", "shop", "--domain", Ground::HOST];
        image.run(&network, &[&flags[..], &["--id", id, "--port", "8000", "--", "/sh", "-c", APP, id]].concat())
    };
    let old = ["shop-1", "shop-2"].map(start);
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    balancer.wait_in_sync(PATIENCE);
    for container in &old {
        let orphan = format!("{} ", container.pid());
        until(PATIENCE, "the orphan to be reaped", || {
            let all = container.processes();
            let left = all.iter().any(|it| it.contains(" Z") || it.starts_with(&orphan) && it.ends_with(" sleep"));
            if left { Err(all.join("; ")) } else { Ok(()) }
        });
    }

    let loads = [Kind::PerRequest, Kind::KeepAlive].map(|kind| {
        let plan = Plan::new(kind, balancer.http(), Ground::HOST).from("shop-");
        (plan.clone().rate(500).start(), plan.path("/slow?ms=1000").rate(10).start())
    });
    let answers = |name: &str| loads.iter().all(|(fast, _)| fast.report().upstreams.contains_key(name));
    until(PATIENCE, "answers from both", || answers("shop-1") && answers("shop-2"));
    let _new = start("shop-3");
    balancer.wait_servers(PATIENCE, "http-shop", 3);
    for container in &old {
        container.stop();
        assert_eq!(container.exit_code(), "7", "the app's own status");
    }
    for (fast, slow) in loads {
        for report in [fast.stop(), slow.stop()] {
            println!("{report}");
            report.assert_nothing_lost();
            assert!(report.upstreams.contains_key("shop-3"), "the new one has served too:\n{report}");
        }
    }
}

#[test]
#[ignore = "needs Docker: make test runs it where there is one"]
fn a_container_is_registered_by_its_name() {
    let _turn = light();
    let (network, etcd) = (Network::new(), Etcd::start());
    let image = Image::of([Path::new("/bin/sleep")]);
    let container = image.run(&network, &["/sleep", "600"]);
    let register = |arguments: &[&str]| {
        let mut command = Command::new(bin("discoverctl"));
        command
            .args(["register", "shop", "--no-wait", "--endpoints", &etcd.endpoints(), "--container"])
            .args(arguments);
        command.output().unwrap()
    };
    let registered = |arguments: &[&str], address: &str| {
        let said = register(&[arguments, &["--takeover"]].concat());
        assert!(said.status.success(), "{arguments:?}: {said:?}");
        let name = arguments[0].split(':').next().unwrap();
        let record = etcd.get(&format!("http-services/shop/upstreams/{name}")).unwrap();
        assert_eq!(record, format!(r#"{{"address":"{address}","permanent":true}}"#), "{arguments:?}");
    };
    let refused = |arguments: &[&str], words: &str| {
        let said = register(arguments);
        assert_eq!(said.status.code(), Some(4), "{arguments:?}: {said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains(words), "{arguments:?}: {said:?}");
    };
    let own = format!("{}:8000", container.address());
    registered(&[&format!("{}:8000", container.name()), "--container-network", network.name()], &own);
    refused(&[container.name(), "--container-network", network.name()], "exposes no port; say which with --port");
    refused(&[&format!("{}:8000", container.name())], "publishes no port");
    refused(&["nobody:80"], "Docker knows no container nobody");

    // A published port is reached at this host's address; which one that is, Docker's gateway stands for here.
    let [one, two] = [(); 2].map(|()| free_port());
    let gateway = network.gateway().to_string();
    let (first, second) = (format!("{one}:8000"), format!("{two}:9000"));
    let run = |publish: &[&str]| image.run_with(&network, publish, &["/sleep", "600"]);
    let published = run(&["--publish", &first]);
    registered(&[published.name(), "--host-address", &gateway], &format!("{gateway}:{one}"));
    registered(&[published.name(), "--port", "8000", "--host-address", &gateway], &format!("{gateway}:{one}"));
    refused(&[published.name(), "--port", "81", "--host-address", &gateway], "doesn't publish port 81, but 8000");
    drop(published);
    let several = run(&["--publish", &first, "--publish", &second]);
    refused(&[several.name(), "--host-address", &gateway], "publishes the ports 8000, 9000; say which with --port");
    registered(&[several.name(), "--port", "9000", "--host-address", &gateway], &format!("{gateway}:{two}"));
    drop(several);
    let shut_in = run(&["--publish", &format!("127.0.0.1:{first}")]);
    refused(&[shut_in.name()], &format!("publishes port 8000 at 127.0.0.1:{one} only"));
    drop(shut_in);
    let bound = run(&["--publish", &format!("{gateway}:{first}")]);
    registered(&[bound.name()], &format!("{gateway}:{one}"));
    refused(&[bound.name(), "--host-address", "10.9.9.9"], "not at 10.9.9.9");
    drop(bound);
    // In the host's network it is the host that listens.
    let host = image.run_on_host(&["/sleep", "600"]);
    registered(&[host.name(), "--port", "8000", "--host-address", &gateway], &format!("{gateway}:8000"));
}
