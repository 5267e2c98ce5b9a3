//! More keys than confgen keeps, below one service and beside all services.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::{App, Balancer, Etcd, Setup, light, resident, until};
use serde_json::Value;

const SERVED: Duration = Duration::from_secs(30);

/// A debug build takes in 23,000 refused keys, and writes a log line for each.
const TAKEN_IN: Duration = Duration::from_secs(120);

/// docs/limits.md has the figures.
const RECORDS: usize = 20_000;
const OTHERS: usize = 2_000;

/// So many more are written.
const TOO_MANY: usize = 500;

fn quarantine(balancer: &Balancer) -> serde_json::Map<String, Value> {
    let answer: Value = serde_json::from_str(&balancer.asked("/api/v1/quarantine").unwrap().body).unwrap();
    answer["quarantine"].as_object().unwrap().clone()
}

/// Waits until confgen has taken in everything that was written before.
fn wait_taken_in(etcd: &Etcd, balancer: &Balancer, host: &str) {
    etcd.put("http-services/shop/domain", format!("shop.test {host}"));
    balancer.wait_status(TAKEN_IN, host, "/", 200);
}

#[test]
fn keys_beyond_the_limits_are_left_out_and_the_others_are_served() {
    let _turn = light();
    let (etcd, app) = (Etcd::start(), App::alone("shop-1"));
    etcd.http_service("shop", "shop.test", &[&app]);
    let balancer = Setup::new().confgen(&etcd).flags(&["--node", "lab", "--resync", "10s"]).start();
    balancer.wait_status(SERVED, "shop.test", "/", 200);
    let before = resident(balancer.pid("confgen").unwrap());

    let junk = |number: usize| (format!("http-services/junk/upstreams/u{number:05}"), b"?".to_vec());
    etcd.put_all((0..RECORDS + TOO_MANY).map(junk));
    etcd.put_all((0..OTHERS + TOO_MANY).map(|number| (format!("notes/{number:05}"), Vec::new())));
    // Without room, whatever its record says.
    etcd.put("http-services/junk/domain", "junk.test");
    etcd.put("http-services/junk/upstreams/good", app.address.to_string());
    wait_taken_in(&etcd, &balancer, "first.test");

    // HAProxy serves before the status says so.
    let quarantined = until(TAKEN_IN, "the quarantine to name the folders", || {
        let quarantined = quarantine(&balancer);
        let is_named = ["http-services/junk/upstreams/", "/"].iter().all(|folder| quarantined.contains_key(*folder));
        if is_named { Ok(quarantined) } else { Err(quarantined.len().to_string()) }
    });
    let records = quarantined.keys().filter(|key| key.starts_with("http-services/junk/upstreams/u")).count();
    assert_eq!(records, RECORDS);
    let reason = quarantined["http-services/junk/upstreams/"].as_str().unwrap();
    assert!(reason.contains("confgen follows 20000 of each in a service"), "{reason}");
    let reason = quarantined["/"].as_str().unwrap();
    assert!(reason.contains("only 2000 keys that mean nothing are looked at"), "{reason}");
    balancer.wait_status(SERVED, "junk.test", "/", 503);
    // The announcer of a record that was left out doesn't take itself for served.
    let record: Value = until(SERVED, "the balancer record to name the service", || {
        let record: Value = serde_json::from_str(&etcd.get("balancers/lab").unwrap()).unwrap();
        let names = record["cut"]["quarantined"].as_array().is_some_and(|cut| cut.contains(&"http-junk".into()));
        if names { Ok(record) } else { Err(record["cut"].to_string()) }
    });
    assert!(!record["cut"]["quarantined"].as_array().unwrap().contains(&"http-shop".into()), "{}", record["cut"]);
    println!(
        "confgen: {} MiB before, {} MiB with the keys",
        before >> 20,
        resident(balancer.pid("confgen").unwrap()) >> 20
    );

    // A listing changes nothing of that.
    let listings = || balancer.log("confgen").matches("store listed").count();
    let listed = listings();
    until(TAKEN_IN, "another listing", || listings() > listed);
    wait_taken_in(&etcd, &balancer, "second.test");
    assert!(quarantine(&balancer).contains_key("http-services/junk/upstreams/"));

    // With room, the listing brings what was left out.
    etcd.delete_all("http-services/junk/upstreams/u");
    etcd.delete_all("notes/");
    balancer.wait_status(TAKEN_IN, "junk.test", "/", 200);
    until(SERVED, "an empty quarantine", || {
        let left = quarantine(&balancer);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}").chars().take(300).collect::<String>()) }
    });
}
