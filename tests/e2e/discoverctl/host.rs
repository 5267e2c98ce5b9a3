//! A whole host is taken out and put back: `drain --host`, `ready --host`, and a rolling reboot as the page has it.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::load::{Kind, Plan, Running};
use lab::{Announce, App, Balancer, Etcd, PATIENCE, Setup, Signal, light, medium, until, write};
use serde_json::{Value, json};

use super::scene::{ctl, json};
use crate::rolling_reboot::RollingReboot;

/// Requests a second in all, besides the slow ones.
const RATE: u32 = 800;

/// The app cuts at once what is still under way when it is stopped: only the drain before that keeps requests from being lost.
const APP: [&str; 2] = ["--grace", "100"];

/// How each kind of request travels.
const KINDS: [Kind; 2] = [Kind::PerRequest, Kind::KeepAlive];

fn balancer(etcd: &Etcd, node: &str) -> Balancer {
    Setup::new().confgen(etcd).flags(&["--node", node]).start()
}

/// An app of a service, `shop-1`, announced on a host.
fn announced(etcd: &Etcd, host: &str, id: &str) -> App {
    let service = id.split('-').next().unwrap();
    let flags = ["--service", service, "--domain", &format!("{service}.test"), "--host-name", host];
    App::start(id, Some(Announce { etcd, flags: &flags }), &APP)
}

/// Two balancers, and the apps of these hosts.
struct Scene {
    hosts: BTreeMap<&'static str, Vec<App>>,
    balancers: [Balancer; 2],
    /// The last to go.
    etcd: Etcd,
}

/// The apps of a host: two of the shop, one of the blog.
fn apps(etcd: &Etcd, host: &str) -> Vec<App> {
    let number = host.rsplit('-').next().unwrap();
    ["shop-a", "shop-b", "blog-a"].map(|id| announced(etcd, host, &format!("{id}{number}"))).into()
}

fn scene(hosts: &[&'static str]) -> Scene {
    let etcd = Etcd::start();
    let balancers = ["lb1", "lb2"].map(|node| balancer(&etcd, node));
    let hosts = hosts.iter().map(|host| (*host, apps(&etcd, host))).collect();
    let scene = Scene { etcd, balancers, hosts };
    scene.wait_served(scene.hosts.len());
    scene.balancers.iter().for_each(|balancer| balancer.wait_settled(PATIENCE));
    scene
}

impl Scene {
    /// Until every balancer finds the apps of so many hosts up.
    #[track_caller]
    fn wait_served(&self, hosts: usize) {
        for balancer in &self.balancers {
            balancer.wait_servers(PATIENCE, "http-shop", 2 * hosts);
            balancer.wait_servers(PATIENCE, "http-blog", hosts);
        }
    }

    /// Fast requests to both services at both balancers, and slow ones.
    fn load(&self) -> Vec<Running> {
        let mut loads = Vec::new();
        for balancer in &self.balancers {
            for (kind, name) in KINDS.into_iter().flat_map(|kind| ["shop", "blog"].map(|name| (kind, name))) {
                let plan = || Plan::new(kind, balancer.http(), &format!("{name}.test")).from(name);
                loads.push(plan().rate(RATE / 8).workers(10).start());
                loads.push(plan().path("/slow?ms=1500").rate(2).workers(6).start());
            }
        }
        loads
    }
}

#[track_caller]
fn assert_nothing_lost(loads: Vec<Running>) {
    let mut good = 0;
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        good += report.good;
    }
    println!("{good} requests, none lost");
    assert!(good > 2_000, "too light a load: {good} requests");
}

/// Stops the apps of a host. Their announcers find nothing to wait for.
#[track_caller]
fn shut_down(mut apps: Vec<App>) {
    apps.iter_mut().for_each(App::terminate);
    for app in apps {
        let name = app.name.clone();
        assert!(app.wait().success(), "{name}: nothing was under way when it was stopped");
    }
}

#[test]
fn a_host_is_taken_out_and_put_back_without_a_lost_request() {
    let _turn = medium();
    let mut scene = scene(&["web-1", "web-2"]);
    let loads = scene.load();
    let drained = json(&scene.etcd, &["drain", "--host", "web-1"]);
    let upstreams = drained["upstreams"].as_array().unwrap();
    assert_eq!(upstreams.len(), 3, "{drained:#}");
    for upstream in upstreams {
        assert_eq!(upstream["imposed"], "drain", "{upstream:#}");
        assert_eq!(
            upstream["balancers"],
            json!({"lb1": {"done": true, "open": null}, "lb2": {"done": true, "open": null}})
        );
    }
    let listed = json(&scene.etcd, &["list", "--host", "web-1"]);
    for upstream in listed["upstreams"].as_array().unwrap() {
        let there = &upstream["balancers"]["lb2"];
        assert_eq!((&upstream["host"], &there["cause"]), (&json!("web-1"), &json!("override")), "{upstream:#}");
        assert!(there["why"].as_str().unwrap().contains("discoverctl ready --host web-1"), "{there:#}");
    }

    shut_down(scene.hosts.remove("web-1").unwrap());
    scene.hosts.insert("web-1", apps(&scene.etcd, "web-1"));
    until(PATIENCE, "the records to be back", || {
        let listed = json(&scene.etcd, &["list", "--host", "web-1"]);
        if listed["upstreams"].as_array().unwrap().len() == 3 { Ok(()) } else { Err(listed.to_string()) }
    });
    scene.wait_served(1);

    let back = json(&scene.etcd, &["ready", "--host", "web-1"]);
    assert_eq!(back["changed"].as_object().unwrap().len(), 3, "{back:#}");
    scene.wait_served(2);
    assert_nothing_lost(loads);
    assert!(scene.etcd.keys("http-services/shop/overrides").is_empty());
}

/// `ssh HOST systemctl reboot` asks the test, and `is-system-running` fails until the test has the host's apps back.
const SSH: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case "$3" in
    reboot) rm "up-$1"; touch "reboot-$1" ;;
    is-system-running) test -e "up-$1" ;;
esac
"#;

#[test]
fn three_hosts_reboot_one_by_one_and_no_request_is_lost() {
    const HOSTS: [&str; 3] = ["web-1", "web-2", "web-3"];
    let _turn = medium();
    let mut scene = scene(&HOSTS);
    let mut reboots = RollingReboot::new("web-", SSH);
    HOSTS.iter().for_each(|host| write(reboots.file("up", host), ""));
    let loads = scene.load();
    reboots.start(&[("ETCDCTL_ENDPOINTS", &scene.etcd.endpoints())]);
    for host in HOSTS {
        reboots.wait_asked(PATIENCE * 2, host);
        shut_down(scene.hosts.remove(host).unwrap());
        scene.hosts.insert(host, apps(&scene.etcd, host));
        write(reboots.file("up", host), "");
    }
    reboots.wait_end(PATIENCE * 2);
    scene.wait_served(HOSTS.len());
    assert_nothing_lost(loads);
    assert!(scene.etcd.keys("http-services/shop/overrides").is_empty());
}

/// Records by hand: two hosts, and a service that only the first one has.
fn by_hand(etcd: &Etcd, shop: &App, blog: &App) {
    etcd.put("http-services/shop/domain", "shop.test");
    etcd.put("http-services/blog/domain", "blog.test");
    let record = |address: &dyn ToString, host: &str| {
        json!({"address": address.to_string(), "host": host, "permanent": true}).to_string()
    };
    etcd.put("http-services/shop/upstreams/a", record(&shop.address, "web-1"));
    etcd.put("http-services/shop/upstreams/b", record(&shop.address, "web-2"));
    etcd.put("http-services/blog/upstreams/a", record(&blog.address, "web-3"));
    etcd.put("http-services/blog/upstreams/b", record(&"127.0.0.1:9", "web-2"));
}

#[test]
fn a_balancer_that_is_frozen_is_named_and_one_that_vanishes_ends_the_drain() {
    let _turn = light();
    let etcd = Etcd::start();
    let (shop, blog) = (App::alone("shop-1"), App::alone("blog-1"));
    by_hand(&etcd, &shop, &blog);
    let balancers = ["lb1", "lb2"].map(|node| balancer(&etcd, node));
    balancers.iter().for_each(|balancer| balancer.wait_servers(PATIENCE, "http-shop", 2));
    balancers.iter().for_each(|balancer| balancer.wait_settled(PATIENCE));
    balancers[1].signal("confgen", Signal::SIGSTOP);
    let late = ctl(&etcd, &["drain", "--host", "web-1", "--force", "--timeout", "2s"]);
    late.assert_error(5, "not followed within 2s by lb2 (at revision ");
    assert!(late.stdout.contains("lb2 not yet") && late.stdout.contains("drain"), "{late:#?}");
    // The lease of its key ends during the wait, and its HAProxy goes on.
    let gone = ctl(&etcd, &["drain", "--host", "web-1", "--force", "--output", "json"]);
    gone.assert_error(5, "lb2 vanished before it followed");
    assert_eq!(gone.json()["upstreams"][0]["balancers"], json!({"lb1": {"done": true, "open": null}}));
    balancers[1].signal("confgen", Signal::SIGCONT);
    until(PATIENCE, "lb2 to be back", || etcd.get("balancers/lb2"));
    let done = json(&etcd, &["drain", "--host", "web-1"]);
    assert_eq!(done["followed_by"], json!(["lb1", "lb2"]), "{done:#}");
    balancers[1].signal("confgen", Signal::SIGSTOP);
    let unasked = ctl(&etcd, &["maint", "--host", "web-1", "--no-wait"]);
    unasked.assert_error(0, "warning: lb2 can't be asked if other upstreams of the services are up");
    balancers[1].signal("confgen", Signal::SIGCONT);
}

#[test]
fn the_last_upstream_of_a_service_is_not_taken_without_force() {
    let _turn = light();
    let etcd = Etcd::start();
    let (shop, blog) = (App::alone("shop-1"), App::alone("blog-1"));
    by_hand(&etcd, &shop, &blog);
    let unknown = ctl(&etcd, &["drain", "--host", "wbe-1"]);
    unknown.assert_error(
        4,
        "no upstream on host wbe-1; did you mean web-1, web-2, web-3?; the hosts are web-1, web-2, web-3",
    );
    for usage in [&["drain"][..], &["drain", "shop/a", "--host", "web-1"], &["drain", "shop/a", "--force"]] {
        ctl(&etcd, usage).assert(2);
    }
    let lb1 = balancer(&etcd, "lb1");
    lb1.wait_servers(PATIENCE, "http-shop", 2);
    lb1.wait_servers(PATIENCE, "http-blog", 1);
    lb1.wait_settled(PATIENCE);
    let before = etcd.count_overrides();

    // The store has another record of the blog, and HAProxy's check of it fails.
    let refused = ctl(&etcd, &["drain", "--host", "web-3"]);
    refused.assert_error(4, "web-3 has the last upstreams that get requests, of http-blog at lb1");
    etcd.put("http-services/shop/overrides/b", r#"{"state":"maint"}"#);
    let refused = ctl(&etcd, &["maint", "--host", "web-1", "--dry-run"]);
    refused.assert_error(4, "web-1 has the last ready upstreams of http-shop: nothing was changed");
    assert_eq!(etcd.count_overrides(), before + 1);

    let dry = ctl(&etcd, &["maint", "--host", "web-2", "--dry-run"]);
    dry.assert(0);
    assert!(dry.stdout.contains("http-blog/b") && dry.stdout.contains("maint (its own)"), "{dry:#?}");
    assert_eq!(etcd.count_overrides(), before + 1);
    json(&etcd, &["maint", "--host", "web-2"]);
    let back = ctl(&etcd, &["ready", "--host", "web-2"]);
    back.assert(0);
    assert!(back.stdout.contains("shop/b keeps its own override: discoverctl ready shop/b"), "{back:#?}");
    assert_eq!(etcd.get("http-services/shop/overrides/b").as_deref(), Some(r#"{"state":"maint"}"#));
    assert_eq!(etcd.get("http-services/blog/overrides/b"), None);
    json(&etcd, &["drain", "--host", "web-1", "--force"]);
    assert_eq!(etcd.get("http-services/shop/overrides/a").as_deref(), Some(r#"{"state":"drain","host":"web-1"}"#));
}

trait Overrides {
    /// The overrides of all HTTP services.
    fn count_overrides(&self) -> usize;
}

impl Overrides for Etcd {
    fn count_overrides(&self) -> usize {
        self.keys("http-services/").iter().filter(|key| key.contains("/overrides/")).count()
    }
}

/// The upstreams of the large host, in three services.
const MANY: usize = 300;

#[test]
fn more_upstreams_than_a_transaction_holds_are_drained_and_put_back() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("svc-1");
    let services = ["one", "two", "three"];
    for service in services {
        etcd.put(&format!("http-services/{service}/domain"), format!("{service}.test"));
        etcd.put(
            &format!("http-services/{service}/upstreams/spare"),
            json!({"address": app.address.to_string(), "host": "spare", "permanent": true}).to_string(),
        );
        let record = |number: usize| {
            let record = json!({"address": app.address.to_string(), "host": "big", "permanent": true}).to_string();
            (format!("http-services/{service}/upstreams/u{number:03}"), record.into_bytes())
        };
        etcd.put_all((0..MANY / services.len()).map(record));
    }
    let lb1 = balancer(&etcd, "lb1");
    for service in services {
        lb1.wait_servers(PATIENCE, &format!("http-{service}"), 1 + MANY / services.len());
    }
    lb1.wait_settled(PATIENCE);
    let overrides = || -> usize {
        services.iter().map(|service| etcd.keys(&format!("http-services/{service}/overrides")).len()).sum()
    };
    let drained = json(&etcd, &["drain", "--host", "big"]);
    let upstreams = drained["upstreams"].as_array().unwrap();
    let is_done = |it: &&Value| it["balancers"]["lb1"]["done"] == true && it["imposed"] == "drain";
    assert_eq!((upstreams.len(), upstreams.iter().filter(is_done).count(), overrides()), (MANY, MANY, MANY));
    let written: std::collections::BTreeSet<i64> = etcd
        .records("http-services/")
        .into_iter()
        .filter(|(key, _)| key.contains("/overrides/"))
        .map(|(_, it)| it.written)
        .collect();
    assert_eq!(written.len(), 3, "transactions of 128 keys");
    let states = lb1.ask("show stat");
    // Column 17 is the status (HAProxy's management guide, 9.1).
    let draining = states
        .lines()
        .filter(|row| row.contains(",u") && row.split(',').nth(17).is_some_and(|it| it.starts_with("DRAIN")));
    assert_eq!(draining.count(), MANY);

    let back = json(&etcd, &["ready", "--host", "big"]);
    assert_eq!((back["changed"].as_object().unwrap().len(), overrides()), (MANY, 0));
    let states = lb1.ask("show stat");
    assert!(!states.contains("DRAIN"), "{states}");
}

#[test]
fn the_copies_of_a_service_are_counted_and_explained() {
    let _turn = light();
    let etcd = Etcd::start();
    let shop = App::alone("shop-1");
    etcd.put("http-services/shop/domain", "shop.test");
    let lease = etcd.grant(600);
    let record = json!({"address": shop.address.to_string(), "host": "web-1"}).to_string();
    etcd.put_leased("http-services/shop/upstreams/a", record, lease);
    let lb1 = balancer(&etcd, "lb1");
    lb1.wait_servers(PATIENCE, "http-shop", 1);
    lb1.wait_settled(PATIENCE);
    let reconciles = || lb1.log("confgen").lines().count();
    let before = reconciles();
    etcd.put_leased("http-services/shop/slots/1", r#"{"id":"a","host":"web-1","replicas":1}"#, lease);
    etcd.put_leased("http-services/shop/standby/b", r#"{"host":"web-2","replicas":1}"#, lease);
    let loops = r#"{"host":"web-3","replicas":1,"reason":"crash-loop","until":"2026-11-30T10:05:00Z"}"#;
    etcd.put_leased("http-services/shop/standby/c", loops, lease);
    // A later change is followed, and the keys before it are no work.
    json(&etcd, &["weight", "shop/a", "50"]);
    let listed = json(&etcd, &["list"]);
    assert_eq!(listed["services"][0]["copies"], json!({"wanted": 1, "running": 1, "standing_by": 2}));
    let shown = json(&etcd, &["show", "shop"]);
    assert_eq!((&shown["upstreams"][0]["host"], &shown["copies"]["slots"][0]["id"]), (&json!("web-1"), &json!("a")));
    let why = |copy: &str| {
        let answer = json(&etcd, &["explain", &format!("shop/{copy}")]);
        let because = &answer["upstreams"][0]["balancers"][0]["because"];
        format!("{}: {}", because["cause"].as_str().unwrap(), because["words"].as_str().unwrap())
    };
    assert_eq!(why("b"), "stands_by: it stands by: no slot is free: 1 of 1 copies run, at web-1");
    assert!(why("c").contains("its app ended too often in a row, and takes no slot until 2026-11-30T10:05:00Z"));
    ctl(&etcd, &["explain", "shop/d"]).assert_error(4, "no upstream d in http-shop");
    ctl(&etcd, &["lint"]).assert(0);
    etcd.delete("http-services/shop/slots/1");
    let linted = ctl(&etcd, &["lint"]);
    linted.assert(1);
    assert!(
        linted.stdout.contains("copies_missing") && linted.stdout.contains("b at web-2 may take a free slot"),
        "{linted:#?}"
    );
    until(Duration::from_secs(10), "the balancer to acknowledge the newest revision", || {
        let record: Value = serde_json::from_str(&etcd.get("balancers/lb1")?).ok()?;
        (record["applied"] == record["seen"]).then_some(())
    });
    assert!(reconciles() - before < 20, "{}", lb1.log("confgen"));
}
