//! Who changed what and when: `log/`, the balancers' logs, and `history`, `rollback --to` and `watch --changes` over both.

use lab::{App, Balancer, Etcd, PATIENCE, Scratch, Setup, light, until};
use serde_json::Value;

use super::scene::{ctl, json, launch};

const OVERRIDE: &str = "http-services/shop/overrides/shop-1";

fn balancer(etcd: &Etcd, node: &str) -> Balancer {
    let balancer = Setup::new().confgen(etcd).flags(&["--node", node]).start();
    balancer.wait_settled(PATIENCE);
    balancer
}

/// The settings and overrides of the shop.
fn settings(etcd: &Etcd) -> Vec<(String, Vec<u8>)> {
    let all = etcd.entries("http-services/shop/").into_iter();
    all.filter(|(key, _)| !key.contains("/upstreams/")).collect()
}

fn rows(etcd: &Etcd, arguments: &[&str]) -> Vec<Value> {
    json(etcd, arguments)["changes"].as_array().unwrap().clone()
}

/// The time of the last change that `history` lists, once a balancer has told it.
fn last_time(etcd: &Etcd, revision: i64) -> String {
    until(PATIENCE, "a balancer to log the change", || {
        let last = rows(etcd, &["history", "shop"]).pop()?;
        let is_there = last["revision"].as_i64() == Some(revision) && !last["balancers"].as_object()?.is_empty();
        is_there.then(|| last["time"].as_str().unwrap().to_owned())
    })
}

/// Each change is listed once, in order, with its writer if that is known.
#[track_caller]
fn assert_rows(history: &Value, revisions: &[i64]) {
    let changes = history["changes"].as_array().unwrap();
    let listed: Vec<i64> = changes.iter().map(|row| row["revision"].as_i64().unwrap()).collect();
    assert_eq!(listed, revisions, "{history:#}");
    for (number, row) in (1..).zip(changes) {
        let reason = row["author"]["reason"].as_str();
        let expected = match number {
            1..=10 => Some("tuning"),
            11..=20 => None,
            _ => Some("more"),
        };
        assert_eq!(reason, expected, "{row:#}");
        assert!(row["time"].is_string() && row["balancers"].get("lb1").is_some(), "{row:#}");
        assert_eq!(row["author"].is_null(), expected.is_none(), "a writer with etcdctl is unknown: {row:#}");
    }
    let command = changes[0]["author"]["command"].as_str().unwrap();
    assert_eq!(command, "discoverctl weight shop/shop-1 1 --no-wait");
}

/// An entry is under a lease of its own, and says who made the change. confgen's log has the facts as fields.
#[track_caller]
fn assert_entry_and_line(etcd: &Etcd, balancer: &Balancer) {
    let entries = etcd.entries("log/");
    assert!(entries.len() >= 23, "{}", entries.len());
    let (key, value) = entries.first_key_value().unwrap();
    let entry: Value = serde_json::from_slice(value).unwrap();
    assert_eq!(entry["keys"], serde_json::json!([OVERRIDE]));
    let lease = etcd.lease_of(key.trim_start_matches("/haproxy-discover/")).unwrap();
    let left = etcd.remaining(&[lease]).unwrap()[0];
    assert!((89 * 86_400..=90 * 86_400).contains(&left), "{left}");
    let log = balancer.log("confgen");
    let line = log.lines().find(|line| line.contains("change applied") && line.contains("tuning")).expect("a line");
    for field in
        ["what=", "why=", "key=http-services/shop/overrides/shop-1", "balancer=lb1", "by=\"runtime\"", "seconds=0."]
    {
        assert!(line.contains(field), "{field}: {line}");
    }
}

#[test]
fn a_history_is_whole_past_compaction_and_a_balancer_that_was_away() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    etcd.http_service("shop", "shop.test", &[&app]);
    let (first, second) = (balancer(&etcd, "lb1"), balancer(&etcd, "lb2"));
    let folder = Scratch::new();
    let watch = launch(&folder, &etcd, &["watch", "shop", "--changes", "--output", "json"]);
    until(PATIENCE, "watch to begin", || watch.log().contains("\"present\"").then_some(()));

    let mut revisions = Vec::new();
    let set = |value: &str, reason: &str| {
        let done = json(&etcd, &["weight", "shop/shop-1", value, "--reason", reason, "--no-wait"]);
        done["revision"].as_i64().unwrap()
    };
    for number in 1..=10 {
        revisions.push(set(&number.to_string(), "tuning"));
    }
    let good = settings(&etcd);
    let time = last_time(&etcd, revisions[9]);
    assert!(second.ctl(&["stop", "confgen"]).status.success());
    // While one balancer is away, more is changed than etcd will keep.
    for number in 11..=20 {
        revisions.push(match number % 2 {
            0 => etcd.put(OVERRIDE, format!(r#"{{"weight":{number}}}"#)),
            _ => etcd.put("http-services/shop/domain", format!("shop.test w{number}.test")),
        });
    }
    first.wait_applied(PATIENCE, revisions[19]);
    etcd.compact();
    until(PATIENCE, "the balancer that is away to be missing", || {
        let history = json(&etcd, &["history", "shop"]);
        // A balancer logs a change after it has applied it.
        let is_whole = history["changes"].as_array().is_some_and(|changes| changes.len() == 20);
        (is_whole && history["missing"].get("lb2").is_some()).then_some(()).ok_or_else(|| format!("{history:#}"))
    });
    assert!(second.ctl(&["start", "confgen"]).status.success());
    second.wait_applied(PATIENCE, revisions[19]);
    for number in 21..=30 {
        revisions.push(set(&number.to_string(), "more"));
    }
    second.wait_applied(PATIENCE, revisions[29]);
    etcd.compact();

    let history = until(PATIENCE, "both balancers to log everything", || {
        let history = json(&etcd, &["history", "shop"]);
        let last = history["changes"].as_array()?.last()?.clone();
        (history["missing"] == serde_json::json!({}) && last["balancers"].as_object()?.len() == 2).then_some(history)
    });
    assert_rows(&history, &revisions);
    let table = ctl(&etcd, &["history", "shop", "--since", "7d"]);
    assert!(table.stdout.contains("unknown") && table.stdout.contains("from the balancers' logs"), "{table:#?}");
    assert!(ctl(&etcd, &["history", "shop", "--since", "2020-01-01T00:00:00Z"]).stdout.contains("tuning"));

    // The past comes back although etcd has forgotten it.
    ctl(&etcd, &["rollback", "shop", "--to", "50y"]).assert_error(4, "the balancers' logs begin at ");
    ctl(&etcd, &["rollback", "shop", "--to", &time, "--reason", "was better"]).assert(0);
    assert_eq!(settings(&etcd), good);
    etcd.compact();
    ctl(&etcd, &["rollback", "shop", &revisions[0].to_string(), "--no-wait"]).assert(0);
    assert_eq!(etcd.get(OVERRIDE).as_deref(), Some(r#"{"weight":1}"#));
    assert_eq!(etcd.get("http-services/shop/domain").as_deref(), Some("shop.test"));
    etcd.delete_all("http-services/shop/");
    first.wait_applied(PATIENCE, etcd.revision());
    etcd.compact();
    until(PATIENCE, "the deletion to be logged", || {
        let done = ctl(&etcd, &["rollback", "shop", "--to", &time, "--no-wait"]);
        if done.status == 0 { Ok(()) } else { Err(format!("{done:#?}")) }
    });
    assert_eq!(settings(&etcd), good, "a deleted service comes back too");

    assert_entry_and_line(&etcd, &first);
    let seen = watch.log();
    let sets = seen.lines().filter(|line| line.contains(r#""change":"set""#)).count();
    assert!(sets >= 30 && seen.contains(r#""reason":"tuning""#), "{sets} lines");
    assert!(ctl(&etcd, &["lint"]).stdout.lines().all(|line| !line.contains("log/")));
}

#[test]
fn a_change_is_logged_only_if_it_is_made_and_asked_for() {
    let _turn = light();
    let etcd = Etcd::start();
    ctl(&etcd, &["set", "--create", "shop", "domain", "a.test", "--dry-run"]).assert(0);
    assert!(etcd.keys("log/").is_empty());
    ctl(&etcd, &["set", "--create", "shop", "domain", "a.test", "--log-for", "0"]).assert(0);
    ctl(&etcd, &["set", "shop", "domain", "a.test"]).assert(0);
    assert!(etcd.keys("log/").is_empty(), "nothing was to be changed");
    let long = "x".repeat(501);
    ctl(&etcd, &["set", "shop", "domain", "b.test", "--reason", &long]).assert_error(2, "--reason has 501 characters");
    ctl(&etcd, &["set", "shop", "domain", "b.test", "--log-for", "1h"]).assert(0);
    let keys = etcd.keys("log/");
    assert_eq!(keys.len(), 1);
    let lease = etcd.lease_of(keys[0].trim_start_matches("/haproxy-discover/")).unwrap();
    assert!(etcd.remaining(&[lease]).unwrap()[0] <= 3600);
    // A user with the right to write there can write anything.
    etcd.put("log/odd", "\u{202e}\n");
    let history = json(&etcd, &["history", "shop"]);
    assert_eq!(history["changes"].as_array().unwrap().len(), 2, "{history:#}");
    assert_eq!(history["changes"][1]["author"]["command"], "discoverctl set shop domain b.test");
    assert!(!ctl(&etcd, &["lint"]).stdout.contains("log/odd"));
    assert!(!ctl(&etcd, &["export"]).stdout.contains("log/"));
}
