//! What operators and deploys do all day: no restart, no lost request, and traffic goes where it should.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::Duration;

use lab::load::{Kind, Plan, Running};
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Pid, heavy_on, until};

/// Requests a second.
const RATE: u32 = 2_000;

/// So many requests of a load show a share to within a percent or two.
const WINDOW: Duration = Duration::from_millis(150);

/// Longer than confgen's `--restart-interval`.
const QUIET: Duration = Duration::from_millis(2_500);

const SHOP: &str = "http-services/shop";

/// One service whose records are written by hand: two blue apps and a green one.
struct Scene {
    etcd: Etcd,
    balancer: Balancer,
    apps: BTreeMap<&'static str, App>,
}

impl Scene {
    fn new() -> Self {
        let Ground { etcd, balancer, .. } = Ground::build().start();
        let apps = ["blue-1", "blue-2", "green-1"].map(|name| (name, App::alone(name))).into();
        let scene = Self { etcd, balancer, apps };
        scene.etcd.put(&format!("{SHOP}/domain"), Ground::HOST);
        for app in ["blue-1", "blue-2", "green-1"] {
            scene.record(app, app, "");
        }
        scene.balancer.wait_servers(PATIENCE, "http-shop", 3);
        scene.balancer.wait_in_sync(PATIENCE);
        scene
    }

    /// Writes an upstream's record with the address of an app, the color that the id begins with, and more fields.
    fn record(&self, id: &str, app: &str, more: &str) {
        let (address, color) = (self.apps[app].address, id.split('-').next().unwrap());
        let record = format!(r#"{{"address":"{address}","color":"{color}"{more}}}"#);
        self.etcd.put(&format!("{SHOP}/upstreams/{id}"), record);
    }

    fn start(&mut self, app: &'static str) {
        self.apps.insert(app, App::alone(app));
    }

    /// Asks an app to stop, and waits for that.
    fn end(&mut self, app: &str) {
        assert!(self.apps.remove(app).unwrap().stop().success(), "a polite stop is a success");
    }

    fn set(&self, leaf: &str, value: &str) {
        self.etcd.put(&format!("{SHOP}/{leaf}"), value);
    }

    fn unset(&self, leaf: &str) {
        self.etcd.delete(&format!("{SHOP}/{leaf}"));
    }

    /// What a restart of either program would change.
    fn processes(&self) -> (Pid, Option<Pid>, Option<Pid>, usize) {
        let [handover, confgen] = ["haproxy", "confgen"].map(|program| self.balancer.pid(program));
        (self.balancer.worker(), handover, confgen, self.balancer.restarts())
    }
}

/// Waits until the answers of the load come from these apps, in these percentages, and from nobody else.
#[track_caller]
fn expect(load: &Running, what: &str, shares: &[(&str, RangeInclusive<f64>)]) {
    until(PATIENCE, what, || {
        let before = load.report();
        sleep(WINDOW);
        let after = load.report();
        let sum = after.good - before.good;
        let seen: BTreeMap<&str, f64> = after
            .upstreams
            .iter()
            .map(|(name, now)| (name.as_str(), now.answers - before.upstreams.get(name).map_or(0, |then| then.answers)))
            .filter(|(_, answers)| *answers > 0)
            .map(|(name, answers)| (name, answers as f64 * 100.0 / sum as f64))
            .collect();
        let fits =
            |(name, share): &(&str, RangeInclusive<f64>)| seen.get(name).is_some_and(|seen| share.contains(seen));
        if sum > 0 && seen.len() == shares.len() && shares.iter().all(fits) {
            Ok(())
        } else {
            Err(format!("{seen:.1?}"))
        }
    });
}

const HALF: RangeInclusive<f64> = 47.0..=53.0;
const THIRD: RangeInclusive<f64> = 30.0..=36.5;

fn weights(scene: &Scene, load: &Running) {
    let thirds = [("blue-1", THIRD), ("blue-2", THIRD), ("green-1", THIRD)];
    expect(load, "equal shares", &thirds);
    scene.record("blue-1", "blue-1", r#","weight":10"#);
    expect(load, "a weight of 10 of 210", &[("blue-1", 3.0..=7.0), ("blue-2", 45.0..=50.0), ("green-1", 45.0..=50.0)]);
    scene.record("blue-1", "blue-1", "");
    scene.set("overrides/green-1", r#"{"weight":200}"#);
    expect(load, "an operator's 200 of 400", &[("blue-1", 22.0..=28.0), ("blue-2", 22.0..=28.0), ("green-1", HALF)]);
    scene.unset("overrides/green-1");
    expect(load, "equal shares again", &thirds);
}

fn drains(scene: &Scene, load: &Running) {
    for state in ["drain", "maint"] {
        scene.set("overrides/blue-2", &format!(r#"{{"state":"{state}"}}"#));
        expect(load, &format!("an operator's {state}"), &[("blue-1", HALF), ("green-1", HALF)]);
    }
    scene.record("blue-1", "blue-1", r#","state":"drain""#);
    expect(load, "an announcer's drain beside it", &[("green-1", 100.0..=100.0)]);
    scene.record("blue-1", "blue-1", "");
    scene.unset("overrides/blue-2");
    expect(load, "all of them back", &[("blue-1", THIRD), ("blue-2", THIRD), ("green-1", THIRD)]);
}

fn colors(scene: &Scene, load: &Running) {
    let blue = [("blue-1", HALF), ("blue-2", HALF)];
    for _ in 0..2 {
        scene.set("active", "blue");
        expect(load, "blue", &blue);
        scene.set("active", "green");
        expect(load, "green", &[("green-1", 100.0..=100.0)]);
    }
    scene.set("active", "blue=90 green=10");
    let shares = [("blue-1", 43.0..=47.0), ("blue-2", 43.0..=47.0), ("green-1", 8.0..=12.0)];
    expect(load, "a tenth of green, however many there are of each", &shares);
    // The share is the color's: what one of its servers loses, the other gets.
    scene.set("overrides/blue-1", r#"{"state":"drain"}"#);
    expect(load, "a tenth of green beside half of the blue", &[("blue-2", 88.0..=92.0), ("green-1", 8.0..=12.0)]);
    scene.unset("overrides/blue-1");
    scene.unset("active");
    expect(load, "no color any more", &[("blue-1", THIRD), ("blue-2", THIRD), ("green-1", THIRD)]);
}

/// The old upstream ends once it is replaced, as upstreams do: while it lives, HAProxy goes on using the connections that
/// it had open to a server's old address when that changed (2.6 closes the idle ones alone).
fn replacements(scene: &mut Scene, load: &Running) {
    let with = |name: &'static str| [("blue-1", THIRD), ("blue-2", THIRD), (name, THIRD)];
    scene.start("next");
    scene.record("green-1", "next", "");
    scene.end("green-1");
    expect(load, "the same id at another address", &with("next"));
    scene.start("green-1");
    scene.record("green-2", "green-1", "");
    scene.unset("upstreams/green-1");
    expect(load, "another id", &with("green-1"));
    scene.record("green-1", "green-1", "");
    scene.unset("upstreams/green-2");
    scene.end("next");
    expect(load, "the old id at a new address", &with("green-1"));
}

fn hosts(scene: &Scene) {
    scene.set("domain", &format!("{} also.test *.also.test", Ground::HOST));
    for host in ["also.test", "www.also.test"] {
        scene.balancer.wait_status(PATIENCE, host, "/", 200);
    }
    scene.set("domain", Ground::HOST);
    for host in ["also.test", "www.also.test"] {
        scene.balancer.wait_status(PATIENCE, host, "/", 404);
    }
}

#[test]
fn what_changes_every_day_restarts_nothing_and_loses_nothing() {
    let (_turn, mut scene) = heavy_on(Scene::new);
    let mut reports = Vec::new();
    for kind in [Kind::PerRequest, Kind::KeepAlive] {
        let before = scene.processes();
        let load = Plan::new(kind, scene.balancer.http(), Ground::HOST).rate(RATE).start();
        weights(&scene, &load);
        drains(&scene, &load);
        colors(&scene, &load);
        replacements(&mut scene, &load);
        hosts(&scene);
        let report = load.stop();
        println!("{kind:?}: {report}");
        report.assert_nothing_lost();
        assert_eq!(report.good, report.sent, "each request has its answer");
        assert_eq!(scene.processes(), before, "HAProxy, handover and confgen are the same processes");
        reports.push(report);
    }
    reports.iter().for_each(|report| report.assert_pace(RATE));
}

#[test]
fn a_new_service_after_a_quiet_interval_is_one_restart() {
    let (_turn, mut ground) = heavy_on(|| {
        let ground = Ground::new();
        sleep(QUIET);
        ground
    });
    let before = ground.balancer.restarts();
    for (kind, report) in ground.under_load(&[Kind::PerRequest, Kind::KeepAlive], RATE / 2, |ground| {
        let worker = ground.balancer.worker();
        let apps: Vec<&App> = ground.apps.iter().collect();
        ground.etcd.http_service("blog", "blog.test", &apps);
        ground.balancer.wait_status(PATIENCE, "blog.test", "/", 200);
        ground.balancer.wait_in_sync(PATIENCE);
        // A second one, or an old process that ends badly, would show within this.
        sleep(QUIET);
        assert_ne!(ground.balancer.worker(), worker, "HAProxy has been restarted");
        assert_eq!(ground.balancer.restarts(), before + 1);
    }) {
        report.assert_nothing_lost();
        report.assert_pace(RATE / 2);
        assert_eq!(report.good, report.sent, "{kind:?}");
    }
    // It goes without one, and what asks for it is told so.
    ground.etcd.delete_all("http-services/blog/");
    ground.balancer.wait_status(PATIENCE, "blog.test", "/", 404);
    assert_eq!(ground.balancer.get(Ground::HOST, "/").status, 200);
    sleep(QUIET);
    assert_eq!(ground.balancer.restarts(), before + 1);
}
