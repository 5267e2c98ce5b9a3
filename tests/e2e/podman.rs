//! The images under Podman, as `make images ENGINE=podman` makes them: store, balancer and app, in containers of root's.

use std::net::{Ipv4Addr, SocketAddr};

use lab::http::Request;
use lab::{PATIENCE, Podman, free_port, medium, until};

const HOST: &str = "app.localhost";

#[test]
#[ignore = "needs Podman: make test-podman"]
fn an_app_is_balanced_and_stops_politely() {
    let _turn = medium();
    let mut podman = Podman::build();
    let etcd = podman.run(&["--cap-drop", "all"], "etcd");
    becomes_healthy(&podman, &etcd);
    let store = format!("ETCDCTL_ENDPOINTS=http://{}:2379", podman.address(&etcd));

    let port = free_port();
    let published = format!("127.0.0.1:{port}:80");
    let rights = ["--cap-drop", "all", "--cap-add", "net_bind_service", "--security-opt", "no-new-privileges"];
    let own = ["--env", &store, "--publish", &published, "--hostname", "lb-1", "--stop-timeout", "50"];
    let balancer = podman.run(&[&rights[..], &own].concat(), "balancer");
    becomes_healthy(&podman, &balancer);

    let domain = format!("ANNOUNCER_DOMAIN={HOST}");
    let app = podman.run(&["--cap-drop", "all", "--env", &store, "--env", &domain, "--hostname", "app-1"], "app");
    becomes_healthy(&podman, &app);
    let web = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    until(PATIENCE, "a request to get through", || match Request::get(HOST, "/").send(web) {
        Ok(answer) if (answer.status, answer.app()) == (200, "app-1") => Ok(()),
        other => Err(format!("{other:?}")),
    });

    podman.assert_stops(&app, 40, "0");
    assert_eq!(Request::get(HOST, "/").send(web).unwrap().status, 503, "its record went before it");
    podman.assert_stops(&balancer, 50, "0");
}

fn becomes_healthy(podman: &Podman, container: &str) {
    until(PATIENCE, &format!("{container} to be healthy"), || podman.is_healthy(container));
}
