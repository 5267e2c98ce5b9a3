//! Containers: announcer as PID 1, where `docker stop` is a drain; and one that is registered by its name.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::load::{Kind, Plan};
use lab::{Container, Etcd, Ground, Image, Network, Setup, bin, heavy, light, until};

const DEADLINE: Duration = Duration::from_secs(30);

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
    balancer.wait_servers(DEADLINE, "http-shop", 2);
    balancer.wait_in_sync(DEADLINE);
    for container in &old {
        let orphan = format!("{} ", container.pid());
        until(DEADLINE, "the orphan to be reaped", || {
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
    until(DEADLINE, "answers from both", || answers("shop-1") && answers("shop-2"));
    let _new = start("shop-3");
    balancer.wait_servers(DEADLINE, "http-shop", 3);
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
    let register = |container: &str| {
        let mut command = Command::new(bin("discoverctl"));
        command.args(["register", "shop", "--container", container, "--no-wait", "--endpoints", &etcd.endpoints()]);
        command.output().unwrap()
    };
    let said = register(&format!("{}:8000", container.name()));
    assert!(said.status.success(), "{said:?}");
    let record = etcd.get(&format!("http-services/shop/upstreams/{}", container.name())).unwrap();
    assert_eq!(record, format!(r#"{{"address":"{}:8000","permanent":true}}"#, container.address()));
    for (container, words) in [(container.name(), "exposes no port"), ("nobody:80", "Docker knows no container nobody")]
    {
        let said = register(container);
        assert_eq!(said.status.code(), Some(4), "{said:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains(words), "{said:?}");
    }
}
