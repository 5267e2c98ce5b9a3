//! HAProxy 3.4 takes new services while it runs: no process is replaced, and nobody gets another answer than 404 and 200.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::thread::sleep;
use std::time::Duration;

use lab::http::Request;
use lab::{App, Balancer, Etcd, Mirror, Setup, WebSocket, light, until, write};

const PATIENCE: Duration = Duration::from_secs(30);

/// How often confgen lists the store here, and looks at HAProxy with it.
const RESYNC: &str = "500ms";

/// A balancer with a service of the shape that has no settings. `None` if its HAProxy adds no backends.
fn scene(flags: &[&str], operators: &str) -> Option<(Etcd, Balancer, App)> {
    let etcd = Etcd::start();
    let app = App::alone("app");
    etcd.http_service("first", "first.test", &[&app]);
    let setup = Setup::new();
    write(setup.folder().join("conf.d/mine.cfg"), operators);
    let balancer = setup.confgen(&etcd).flags(flags).start();
    balancer.wait_status(PATIENCE, "first.test", "/", 200);
    if !balancer.adds_backends() {
        println!("skipped: HAProxy adds backends while it runs from 3.4 on. Run it with `make test-haproxy-3.4`");
        return None;
    }
    balancer.wait_settled(PATIENCE);
    Some((etcd, balancer, app))
}

fn status(balancer: &Balancer, host: &str) -> u16 {
    Request::get(host, "/").send(balancer.http()).unwrap().status
}

/// Asks until the status is this one. Each other answer has to be `before`.
#[track_caller]
fn wait_only(balancer: &Balancer, host: &str, before: u16, after: u16) {
    until(PATIENCE, &format!("{after} for {host}"), || match status(balancer, host) {
        status if status == after => true,
        status => {
            assert_eq!(status, before, "{host}");
            false
        }
    });
}

fn has_backend(balancer: &Balancer, name: &str) -> bool {
    balancer.ask("show backend").lines().any(|line| line == name)
}

/// What a restart of either program would change.
fn processes(balancer: &Balancer) -> impl PartialEq + std::fmt::Debug + use<> {
    (balancer.worker(), balancer.pid("haproxy"), balancer.restarts())
}

#[test]
fn two_hundred_services_come_and_go_without_a_restart() {
    let _turn = light();
    let Some((etcd, balancer, app)) = scene(&[], "") else { return };
    let before = processes(&balancer);
    let names: Vec<String> = (0..200).map(|n| format!("new{n}")).collect();
    for name in &names {
        let host = format!("{name}.test");
        assert_eq!(status(&balancer, &host), 404);
        etcd.http_service(name, &host, &[&app]);
        wait_only(&balancer, &host, 404, 200);
    }
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));
    let folders = std::fs::read_dir(balancer.folder().join("state")).unwrap().flatten();
    let generations = folders.filter(|entry| entry.file_name().len() == 16 && entry.path().is_dir()).count();
    // The running one, the last two, and one that is checked just now.
    assert!(generations <= 4, "{generations} generations were left");
    // Half of them go again, and the others are in the file that the next HAProxy reads.
    let (gone, kept) = names.split_at(100);
    for name in gone {
        etcd.delete_all(&format!("http-services/{name}/"));
        wait_only(&balancer, &format!("{name}.test"), 200, 404);
    }
    until(PATIENCE, "the backends to be deleted", || {
        gone.iter().all(|name| !has_backend(&balancer, &format!("http-{name}")))
    });
    assert_eq!(processes(&balancer), before, "nothing was replaced");
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));
    balancer.restart();
    balancer.wait_settled(PATIENCE);
    assert!(kept.iter().all(|name| status(&balancer, &format!("{name}.test")) == 200));
    assert!(gone.iter().all(|name| status(&balancer, &format!("{name}.test")) == 404));
    // Backends of the file go in the same way, and come back.
    let before = processes(&balancer);
    for round in 0..2 {
        etcd.delete_all("http-services/new199/");
        until(PATIENCE, &format!("its backend to be deleted, round {round}"), || {
            !has_backend(&balancer, "http-new199")
        });
        etcd.http_service("new199", "new199.test", &[&app]);
        wait_only(&balancer, "new199.test", 404, 200);
    }
    assert_eq!(processes(&balancer), before, "nothing was replaced");
}

#[test]
fn a_manual_change_of_backends_is_repaired_without_a_restart() {
    let _turn = light();
    let own = "defaults own\n    mode http\n    timeout client 1m\n    timeout connect 2s\n    timeout server 1m\n\
               backend http-own from own\n";
    let Some((etcd, balancer, app)) = scene(&["--resync", RESYNC], own) else { return };
    etcd.http_service("late", "late.test", &[&app]);
    wait_only(&balancer, "late.test", 404, 200);
    let before = processes(&balancer);
    let deleted = |name: &str| {
        format!(
            "set server http-{name}/app state maint;del server http-{name}/app;unpublish backend http-{name};del backend http-{name}"
        )
    };
    for (hand, host) in [
        ("unpublish backend http-late".to_owned(), "late.test"),
        (deleted("late"), "late.test"),
        (deleted("first"), "first.test"),
    ] {
        balancer.ask(&hand);
        balancer.wait_status(PATIENCE, host, "/", 200);
        until(PATIENCE, &hand, || Mirror::agree(&balancer, &etcd));
    }
    balancer.ask("add backend http-stray from discover-http;publish backend http-stray");
    until(PATIENCE, "the stray backend to be deleted", || !has_backend(&balancer, "http-stray"));
    assert!(has_backend(&balancer, "http-own"), "it is the operator's");
    assert_eq!(processes(&balancer), before, "all of it was mended while HAProxy ran");
}

#[test]
fn a_new_shape_takes_one_restart_and_is_kept() {
    let _turn = light();
    let Some((etcd, balancer, app)) = scene(&[], "") else { return };
    etcd.http_service("one", "one.test", &[&app]);
    wait_only(&balancer, "one.test", 404, 200);
    let before = balancer.worker();
    etcd.put("http-services/one/balance", "leastconn");
    until(PATIENCE, "a restart", || balancer.worker() != before);
    balancer.wait_settled(PATIENCE);
    assert_eq!(status(&balancer, "one.test"), 200);
    // The shape is there now, also for another service, and after the last one that has it has gone.
    let before = processes(&balancer);
    etcd.put("http-services/two/balance", "leastconn");
    etcd.http_service("two", "two.test", &[&app]);
    wait_only(&balancer, "two.test", 404, 200);
    for name in ["one", "two"] {
        etcd.delete_all(&format!("http-services/{name}/"));
        until(PATIENCE, "the backend to be deleted", || !has_backend(&balancer, &format!("http-{name}")));
    }
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));
    assert!(balancer.file().contains("\ndefaults discover-http-leastconn from discover-http\n"));
    etcd.put("http-services/three/balance", "leastconn");
    etcd.http_service("three", "three.test", &[&app]);
    wait_only(&balancer, "three.test", 404, 200);
    assert_eq!(processes(&balancer), before, "nothing was replaced");
}

#[test]
fn a_service_that_comes_back_while_a_stream_is_open_serves() {
    let _turn = light();
    let Some((etcd, balancer, app)) = scene(&[], "") else { return };
    etcd.http_service("late", "late.test", &[&app]);
    wait_only(&balancer, "late.test", 404, 200);
    let before = processes(&balancer);
    let mut socket = WebSocket::open(balancer.http(), "late.test", false);
    for _ in 0..3 {
        etcd.delete_all("http-services/late/");
        wait_only(&balancer, "late.test", 200, 404);
        // The server and the backend are asked for every 200 ms.
        sleep(Duration::from_millis(500));
        assert!(has_backend(&balancer, "http-late"), "a stream is open");
        socket.ask("still here").unwrap();
        etcd.http_service("late", "late.test", &[&app]);
        wait_only(&balancer, "late.test", 404, 200);
        socket.ask("and here").unwrap();
    }
    etcd.delete_all("http-services/late/");
    wait_only(&balancer, "late.test", 200, 404);
    drop(socket);
    until(PATIENCE, "the backend to be deleted", || !has_backend(&balancer, "http-late"));
    assert_eq!(processes(&balancer), before, "nothing was replaced");
}

#[test]
fn a_color_that_is_new_needs_no_restart() {
    let _turn = light();
    let Some((etcd, balancer, app)) = scene(&[], "") else { return };
    let record = |color: &str| format!(r#"{{"address":"{}","color":"{color}"}}"#, app.address);
    etcd.put_all(
        [
            ("domain", "shop.test".to_owned()),
            ("active", "blue".to_owned()),
            ("preview", "127.0.0.0/8".to_owned()),
            ("upstreams/blue-1", record("blue")),
        ]
        .map(|(leaf, value)| (format!("http-services/shop/{leaf}"), value.into_bytes())),
    );
    balancer.wait_status(PATIENCE, "blue.shop.test", "/", 200);
    balancer.wait_settled(PATIENCE);
    let before = processes(&balancer);
    etcd.put("http-services/shop/upstreams/green-1", record("green"));
    wait_only(&balancer, "green.shop.test", 404, 200);
    etcd.delete("http-services/shop/upstreams/green-1");
    until(PATIENCE, "the preview to be deleted", || !has_backend(&balancer, "http-shop:preview-green"));
    assert_eq!(status(&balancer, "green.shop.test"), 404);
    assert_eq!(processes(&balancer), before, "nothing was replaced");
}

#[test]
fn a_confgen_that_is_killed_finds_every_backend() {
    let _turn = light();
    let Some((etcd, balancer, app)) = scene(&[], "") else { return };
    let before = processes(&balancer);
    for round in 0..6 {
        for n in 0..10 {
            etcd.http_service(&format!("r{round}n{n}"), &format!("r{round}n{n}.test"), &[&app]);
        }
        if round > 1 {
            etcd.delete_all(&format!("http-services/r{}n3/", round - 1));
        }
        sleep(Duration::from_millis(10 * round));
        balancer.kill("confgen");
        for n in 0..10 {
            balancer.wait_status(PATIENCE, &format!("r{round}n{n}.test"), "/", 200);
        }
    }
    until(PATIENCE, "store, file and HAProxy to agree", || Mirror::agree(&balancer, &etcd));
    until(PATIENCE, "the deleted ones to be gone", || {
        (1..5).all(|round| !has_backend(&balancer, &format!("http-r{round}n3")))
    });
    assert_eq!(processes(&balancer), before, "nothing was replaced");
}
