//! The recorder of each test's store: what it records, and that a test fails if the record has no explanation.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{read_to_string, remove_file};
use std::panic::{AssertUnwindSafe, catch_unwind};

use lab::{Etcd, Ground, PATIENCE, Signal, WebSocket, light, until};
use serde_json::json;

use crate::acknowledgement::slow;

/// Announced apps behind a balancer.
fn open_shop(apps: &[&str]) -> Ground {
    Ground::build().announced("shop", "shop.test", apps, &[]).flags(&["--node", "lab"]).start()
}

/// Restarts HAProxy, and waits until another process answers.
fn restart(ground: &Ground) {
    let before = ground.balancer.worker();
    ground.balancer.restart();
    until(PATIENCE, "another process", || {
        ground.balancer.try_ask("show info").is_ok_and(|_| ground.balancer.worker() != before)
    });
}

/// The text in which the end of a store fails the test, and the trace that it names.
fn fail(etcd: Etcd) -> (String, String) {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(etcd))).expect_err("the trace has no explanation");
    let text = panic.downcast_ref::<String>().expect("a text").clone();
    let file = text.rsplit("the whole trace: ").next().unwrap();
    let trace = read_to_string(file).unwrap_or_else(|error| panic!("{error}: {text}"));
    remove_file(file).unwrap();
    (text, trace)
}

#[test]
fn a_polite_stop_is_recorded_with_a_question_to_the_old_process() {
    let _turn = light();
    let mut ground = open_shop(&["shop-1", "shop-2"]);
    // The old process lives as long as this connection to one of the apps.
    let mut socket = WebSocket::open(ground.balancer.http(), "shop.test", false);
    let busy = until(PATIENCE, "the connection to reach an app", || ground.balancer.busy_servers("http-shop").pop());
    restart(&ground);
    let other = ground.apps.iter().position(|app| app.name != busy).unwrap();
    assert!(ground.apps.remove(other).stop().success());
    assert_eq!(socket.ask("kept").unwrap(), "kept");
    let counts = ground.etcd.count_observations();
    assert_eq!((counts.listings, counts.stops, counts.questions), (1, 1, 1), "{counts:?}");
    assert!(counts.puts > 5 && counts.deletions > 0, "{counts:?}");
}

#[test]
fn a_request_in_an_old_process_at_a_stop_fails_the_test() {
    let _turn = light();
    let ground = open_shop(&["shop-1"]);
    let request = slow(ground.balancer.http(), "shop.test", 8_000);
    until(PATIENCE, "the request to reach the app", || !ground.balancer.busy_servers("http-shop").is_empty());
    restart(&ground);
    // confgen would see the request and hold its acknowledgement back. Another record calls the drain acknowledged too early.
    ground.balancer.signal("confgen", Signal::SIGSTOP);
    ground.etcd.delete("balancers/lab");
    let cluster = ground.etcd.cluster_id().to_string();
    let record = json!({"cluster": cluster, "applied": u32::MAX, "pending": [], "held": [], "draining": {}});
    ground.etcd.put("balancers/early", record.to_string());
    let Ground { mut apps, balancer, etcd, .. } = ground;
    assert!(apps.remove(0).stop().success());
    assert_eq!(request.join().unwrap().1, 200);
    let (text, trace) = fail(etcd);
    let reason = "has 1 sessions on http-shop/shop-1, whose app is stopped\n{\"kind\":\"old\",";
    assert!(text.contains("an old process of the balancer at ") && text.contains(reason), "{text}");
    let line = text.split(": ").next().and_then(|head| head.rsplit(' ').next()?.parse::<usize>().ok()).unwrap();
    assert!(trace.lines().nth(line - 1).unwrap().contains("\"http-shop/shop-1\":1"), "{text}");
    drop(balancer);
}

#[test]
fn a_balancer_that_goes_back_fails_the_test() {
    let _turn = light();
    let etcd = Etcd::start();
    let lease = etcd.grant(60);
    let newest = etcd.put("control/first", "");
    for applied in [newest, newest - 1] {
        let lists = json!({"pending": [], "held": [], "draining": {}});
        let mut record =
            json!({"cluster": etcd.cluster_id().to_string(), "instance": "i", "seen": applied, "applied": applied});
        record.as_object_mut().unwrap().extend(lists.as_object().unwrap().clone());
        etcd.put_leased("balancers/lab", record.to_string(), lease);
    }
    let (text, trace) = fail(etcd);
    let expected = format!("line 4: lab has applied {} after {newest}\n{{\"kind\":\"put\",", newest - 1);
    assert!(text.contains(&expected), "{text}");
    assert_eq!(trace.lines().count(), 4, "{trace}");
}
