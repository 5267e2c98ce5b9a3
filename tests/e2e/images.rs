//! The images, as the compose file brings them up: what is healthy, and what `docker stop` does to each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use lab::http::{Request, connect};
use lab::load::{Kind, Plan, Running};
use lab::{Cluster, Container, Images, PATIENCE, heavy, until};

const HOST: &str = "app.localhost";

/// For two cores on which seven containers start.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

#[test]
#[ignore = "needs Docker: make test-images"]
fn one_command_brings_up_a_cluster_whose_parts_stop_without_a_loss() {
    let _turn = heavy();
    let images = Images::build();
    let cluster = Cluster::up(&images);
    let part = |name: &str| &cluster.containers()[name];
    for (name, container) in cluster.containers() {
        becomes_healthy(name, container);
        assert_ne!(owner(container), "root", "{name}");
    }
    both_answer(&cluster);
    both_are_asked(&cluster);

    let balancers = ["balancer-1", "balancer-2"].map(|name| web(part(name)));
    let load = |kind, balancer| Plan::new(kind, balancer, HOST).from("app-").rate(200).start();
    let loads = [load(Kind::PerRequest, balancers[0]), load(Kind::KeepAlive, balancers[1])];
    answered_by(&loads, &["app-1", "app-2"]);
    let [app, sidecar] = cluster.app_and_sidecar(&images, "app-3", HOST);
    becomes_healthy("the sidecar", &sidecar);
    answered_by(&loads, &["app-3"]);
    for container in [part("app-1"), &sidecar, &app] {
        container.stop();
        assert_eq!(container.exit_code(), "0", "{}", container.log());
    }
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
    }

    for (name, balancer) in ["balancer-1", "balancer-2"].into_iter().zip(balancers) {
        let mut download = Download::begin(balancer);
        part(name).stop();
        assert_eq!(download.rest(), Download::LINES - 1, "what was under way is finished");
        assert_eq!(part(name).exit_code(), "0", "neither killed nor failed:\n{}", part(name).log());
    }
}

#[test]
#[ignore = "needs Docker: make test-images"]
fn the_balancer_can_be_built_with_haproxy_3_4() {
    let _turn = heavy();
    let images = Images::build_with_experimental_haproxy();
    let cluster = Cluster::up(&images);
    for (name, container) in cluster.containers() {
        becomes_healthy(name, container);
    }
    let balancer = cluster.containers()["balancer-1"].name();
    let output = Command::new("docker").args(["exec", balancer, "haproxy", "-v"]).output().unwrap();
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(version.starts_with("HAProxy version 3.4."), "{version}");
    both_answer(&cluster);
    both_are_asked(&cluster);
}

fn becomes_healthy(name: &str, container: &Container) {
    until(DEADLINE, &format!("{name} to be healthy"), || match container.health().as_str() {
        "healthy" => Ok(()),
        health => Err(health.to_owned()),
    });
}

/// Whose its PID 1 is.
fn owner(container: &Container) -> String {
    let output = Command::new("ps").args(["-o", "user=", "-p", &container.pid()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// At the ports that the compose file publishes, over HTTP and HTTPS.
fn both_answer(cluster: &Cluster) {
    let plain = Request::get(HOST, "/");
    let secure = plain.clone().tls(HOST);
    for (port, request) in [("HTTP_1", &plain), ("HTTP_2", &plain), ("HTTPS_1", &secure), ("HTTPS_2", &secure)] {
        let answer = request.send(cluster.published(port)).unwrap();
        assert_eq!(answer.status, 200, "{port}: {answer:?}");
        assert!(answer.app().starts_with("app-"), "{port}: {answer:?}");
    }
}

/// discoverctl in each balancer asks both, without an option.
fn both_are_asked(cluster: &Cluster) {
    for name in ["balancer-1", "balancer-2"] {
        let container = cluster.containers()[name].name();
        let check = ["exec", container, "discoverctl", "check", "--output", "plain"];
        until(DEADLINE, &format!("{name} to ask both"), || {
            let output = Command::new("docker").args(check).output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let both = ["balancer-1", "balancer-2"].iter().all(|it| said.contains(&format!("\t{it}\tbalanced")));
            if output.status.success() && both { Ok(()) } else { Err(said) }
        });
    }
}

/// Where a balancer serves HTTP, past the port that is published.
fn web(balancer: &Container) -> SocketAddr {
    SocketAddr::new(balancer.address().parse().unwrap(), 80)
}

/// Each balancer has had answers of all these apps.
fn answered_by(loads: &[Running], apps: &[&str]) {
    until(DEADLINE, &format!("answers of {apps:?} from both balancers"), || {
        let seen: Vec<_> = loads.iter().map(|load| load.report().upstreams).collect();
        let all = seen.iter().all(|seen| apps.iter().all(|app| seen.contains_key(*app)));
        if all { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

/// A download that lasts longer than a balancer's stop takes.
struct Download(TcpStream);

impl Download {
    const LINES: usize = 5;

    /// Returns once the first line is there.
    fn begin(balancer: SocketAddr) -> Self {
        let mut stream = connect(balancer, None).unwrap();
        let target = format!("/drip?lines={}&ms=1000", Self::LINES);
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        while lines(&seen) == 0 {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
        Self(stream)
    }

    /// How many lines follow until it is over.
    fn rest(&mut self) -> usize {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        lines(&rest)
    }
}

fn lines(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).matches("line ").count()
}
