//! `color` and `switch`: nothing is lost on the way, and it goes back by itself.

use lab::load::{Fault, Kind, Plan, Report, Running};
use lab::{Announce, App, Etcd, Ground, PATIENCE, Scratch, Signal, heavy_on, light, until};
use serde_json::Value;

use super::scene::{Said, ctl, json, launch};

const ACTIVE: &str = "http-services/shop/active";
/// Requests a second in all.
const RATE: u32 = 2_000;

/// So many copies of each color; blue is active.
struct Scene(Ground);

fn copies(etcd: &Etcd, color: &str, count: usize, flags: &[&str]) -> Vec<App> {
    let announced = ["--service", "shop", "--domain", Ground::HOST, "--color", color];
    let copy = |number| App::start(&format!("{color}-{number}"), Some(Announce { etcd, flags: &announced }), flags);
    (1..=count).map(copy).collect()
}

fn scene(count: usize, green: &[&str]) -> Scene {
    let mut build = Ground::build().set("http-services/shop", &[("active", "blue")]);
    build.apps = copies(&build.etcd, "blue", count, &[]);
    build.apps.extend(copies(&build.etcd, "green", count, green));
    let scene = Scene(build.start());
    // Those of an inactive color are up too, with no weight.
    scene.0.balancer.wait_servers(PATIENCE, "http-shop", 2 * count);
    scene.wait_healthy("green", count);
    scene
}

impl Scene {
    #[track_caller]
    fn wait_healthy(&self, color: &str, count: usize) {
        until(PATIENCE, &format!("{count} {color} to be healthy"), || {
            let shown = json(&self.0.etcd, &["color", "shop"]);
            let row = shown["colors"].as_array().unwrap().iter().find(|row| row["color"] == color).cloned();
            let healthy = row.map(|row| row["healthy"].as_object().unwrap().values().cloned().collect::<Vec<_>>());
            if healthy == Some(vec![Value::from(count)]) { Ok(()) } else { Err(shown.to_string()) }
        });
    }

    fn ctl(&self, arguments: &[&str]) -> Said {
        ctl(&self.0.etcd, arguments)
    }

    fn active(&self) -> Option<String> {
        self.0.etcd.get(ACTIVE)
    }

    fn load(&self) -> Vec<Running> {
        let load = |kind| Plan::new(kind, self.0.balancer.http(), Ground::HOST).rate(RATE / 2).start();
        [Kind::PerRequest, Kind::KeepAlive].map(load).into()
    }
}

fn stop(loads: Vec<Running>) -> Vec<Report> {
    let reports: Vec<Report> = loads.into_iter().map(Running::stop).collect();
    reports.iter().for_each(|report| println!("{report}"));
    let rate: f64 = reports.iter().map(Report::rate).sum();
    assert!(rate > f64::from(RATE) / 2.0, "too light a load: {rate:.0} requests a second");
    reports
}

/// Good answers of a color.
fn answers(reports: &[Report], color: &str) -> u64 {
    let upstreams = reports.iter().flat_map(|report| &report.upstreams);
    upstreams.filter(|(name, _)| name.starts_with(color)).map(|(_, upstream)| upstream.answers).sum()
}

#[test]
fn three_copies_give_way_to_three_others_and_no_request_is_lost() {
    let (_turn, scene) = heavy_on(|| scene(3, &[]));
    let loads = scene.load();
    let switch = ["switch", "shop", "green", "--steps", "10,50,100", "--every", "2s", "--max-errors", "1%"];
    let said = json(&scene.0.etcd, &switch);
    let reports = stop(loads);
    reports.iter().for_each(Report::assert_nothing_lost);

    assert_eq!(scene.active().as_deref(), Some("green"));
    assert_eq!((&said["outcome"], &said["before"], &said["active"]), (&"done".into(), &"blue".into(), &"green".into()));
    let steps = said["steps"].as_array().unwrap();
    let values: Vec<_> = steps.iter().map(|step| step["active"].as_str().unwrap()).collect();
    assert_eq!(values, ["blue=90 green=10", "blue=50 green=50", "green"]);
    let requests: Vec<u64> = steps.iter().map(|step| step["requests"].as_u64().unwrap()).collect();
    assert!(requests[0] > 50 && requests[0] < requests[1] && requests[1] < requests[2], "{requests:?}");
    assert!(steps.iter().all(|step| step["failed"] == 0), "{said:#}");
    assert!(answers(&reports, "green") > 1000 && answers(&reports, "blue") > 1000);
    until(PATIENCE, "only green to serve", || {
        let answer = scene.0.balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
        answer.body.starts_with("green")
    });
    drop(scene.0.apps);
}

#[test]
fn a_color_that_fails_loses_what_it_got_and_nothing_else() {
    let (_turn, scene) = heavy_on(|| scene(3, &["--failing", "20"]));
    let loads = scene.load();
    let said = scene.ctl(&["switch", "shop", "green", "--steps", "10,50,100", "--every", "5s", "--max-errors", "1%"]);
    let back = scene.active();
    let reports = stop(loads);
    println!("{}{}", said.stdout, said.stderr);
    said.assert_error(7, "and not 1% at most; went back: active is blue");
    assert_eq!(back.as_deref(), Some("blue"));

    let failures: Vec<_> = reports.iter().flat_map(|report| &report.failures).collect();
    assert!(!failures.is_empty(), "it was found out by nothing");
    for failure in &failures {
        assert!(failure.fault == Fault::WrongStatus && failure.detail.starts_with("500: green"), "{failure:?}");
    }
    let sent: u64 = reports.iter().map(|report| report.sent).sum();
    // A twentieth of a tenth, while it had that: not of all.
    assert!((failures.len() as u64) < sent / 100, "{} of {sent} failed", failures.len());
    assert!(answers(&reports, "green") < sent / 5, "the canary got more than its share");
}

#[test]
fn a_command_that_fails_stops_it_or_takes_it_back() {
    let _turn = light();
    let scene = scene(1, &[]);
    let switch = |more: &[&str]| scene.ctl(&[&["switch", "shop", "green", "--every", "100ms"], more].concat());
    let before = scene.0.etcd.revision();
    let said =
        switch(&["--before", "echo $DISCOVER_SERVICE $DISCOVER_COLOR $DISCOVER_UPSTREAMS $DISCOVER_DOMAIN; exit 3"]);
    said.assert_error(7, "exit status: 3; nothing was changed: active is blue");
    let green = &scene.0.apps[1];
    assert!(said.stderr.contains(&format!("shop green {} {}\n", green.address, Ground::HOST)), "{said:#?}");
    let active = &scene.0.etcd.records(ACTIVE)[&format!("{}{ACTIVE}", lab::PREFIX)];
    assert!(active.written <= before, "it was written");

    let said = switch(&["--steps", "50,100", "--before", "true", "--after", "exit 4"]);
    said.assert_error(7, "exit status: 4; went back: active is blue");
    assert!(said.stdout.contains("100 %: green") && said.stdout.contains("going back: --after failed"), "{said:#?}");
    assert_eq!(scene.active().as_deref(), Some("blue"));

    // What was not set is not set again.
    ctl(&scene.0.etcd, &["unset", "shop", "active"]).assert(0);
    switch(&["--after", "false", "--output", "json"]).assert(7);
    assert_eq!(scene.active(), None);
    let said =
        switch(&["--after", &format!("test $(cat {}/confgen.log | wc -l) -gt 0", scene.0.balancer.folder().display())]);
    said.assert(0);
    assert!(
        said.stdout.contains("active is green; the other upstreams are drained, with 0 sessions left"),
        "{said:#?}"
    );
}

#[test]
fn it_can_be_interrupted_and_overtaken() {
    let _turn = light();
    let scene = scene(1, &[]);
    let canary = "blue=90 green=10";
    let begin = |more: &[&str]| {
        let folder = Scratch::new();
        let switch = ["switch", "shop", "green", "--steps", "10,50,100", "--every", "1h"];
        let process = launch(&folder, &scene.0.etcd, &[&switch, more].concat());
        until(PATIENCE, "the first step", || {
            let is_followed = process.log().contains("followed by");
            if is_followed && scene.active().as_deref() == Some(canary) { Ok(()) } else { Err(process.log()) }
        });
        (process, folder)
    };

    let (mut process, _folder) = begin(&[]);
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(PATIENCE).code(), Some(130), "{}", process.log());
    let ways = "on with `discoverctl switch shop green --steps 50,100`, back with `discoverctl color shop blue`";
    assert!(process.log().contains(&format!("active is {canary}; {ways}")), "{}", process.log());
    assert_eq!(scene.active().as_deref(), Some(canary));
    scene.ctl(&["color", "shop", "blue"]).assert(0);

    let (mut process, _folder) = begin(&["--undo-on-interrupt"]);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(130), "{}", process.log());
    assert_eq!(scene.active().as_deref(), Some("blue"), "{}", process.log());

    let (mut process, _folder) = begin(&[]);
    let theirs = scene.0.etcd.put(ACTIVE, "green=1 blue=1");
    assert_eq!(process.wait(PATIENCE).code(), Some(4), "{}", process.log());
    assert!(process.log().contains("another client wrote http-services/shop/active"), "{}", process.log());
    assert_eq!(scene.0.etcd.records(ACTIVE)[&format!("{}{ACTIVE}", lab::PREFIX)].written, theirs);
    scene.0.etcd.put(ACTIVE, "blue");

    // Nobody can judge any more.
    let (mut process, _folder) = begin(&["--max-errors", "1%"]);
    assert!(scene.0.balancer.ctl(&["stop", "confgen"]).status.success());
    assert_eq!(process.wait(PATIENCE).code(), Some(7), "{}", process.log());
    assert!(process.log().contains("it can't be judged any more"), "{}", process.log());
    assert_eq!(scene.active().as_deref(), Some("blue"));
}

#[test]
fn a_color_that_does_not_work_is_refused() {
    let _turn = light();
    let mut scene = scene(1, &[]);
    let shown = scene.ctl(&["color", "shop", "--output", "plain"]);
    let rows: Vec<&str> = shown.stdout.lines().map(|line| line.rsplit_once('\t').unwrap().0).collect();
    assert_eq!(rows, ["blue\t1\t1/1", "green\tno\t1/1"]);

    scene.ctl(&["switch", "shop", "blue"]).assert_error(4, "blue is active already");
    scene.ctl(&["switch", "shop", "geren"]).assert_error(
        4,
        "no upstream of color geren is ready; nothing was changed (--force does it anyway); did you mean green?",
    );
    scene.ctl(&["switch", "shop", "green", "--steps", "50,10"]).assert(2);
    let planned = scene.ctl(&["switch", "shop", "green", "--steps", "25,100", "--dry-run"]);
    assert_eq!(
        planned.stdout,
        "http-shop: active is blue\n25 %: blue=75 green=25\n100 %: green\nnothing was written: --dry-run\n"
    );
    // The app hangs, and its announcer goes on: only the balancers know.
    let app = scene.0.apps[1].family().into_iter().max().unwrap();
    nix::sys::signal::kill(app, Signal::SIGSTOP).unwrap();
    scene.0.etcd.put("http-services/shop/check", "http /health");
    scene.wait_healthy("green", 0);
    for command in
        [&["switch", "shop", "green"][..], &["color", "shop", "green"], &["color", "shop", "blue=1", "green=1"]]
    {
        scene.ctl(command).assert_error(4, "green has no healthy upstream on ");
    }
    assert_eq!(scene.active().as_deref(), Some("blue"));
    scene.0.apps.clear();
}

#[test]
fn without_an_api_nothing_is_known() {
    let _turn = light();
    let etcd = Etcd::start();
    for color in ["blue", "green"] {
        let record = format!(r#"{{"address":"10.0.0.1:80","color":"{color}","permanent":true}}"#);
        etcd.put(&format!("http-services/shop/upstreams/{color}"), record);
    }
    etcd.put(ACTIVE, "blue");
    let switch = |more: &[&str]| ctl(&etcd, &[&["switch", "shop", "green"], more].concat());
    switch(&[]).assert_error(6, "no balancer lives");
    switch(&["--force", "--max-errors", "1%"]).assert_error(6, "no balancer lives");
    // One that follows, and that nobody can ask.
    let follows = r#""seen":1000000,"applied":1000000,"url":"http://127.0.0.1:1","pending":[],"held":[],"draining":{}"#;
    etcd.put("balancers/lb1", format!(r#"{{"cluster":"{}",{follows}}}"#, etcd.cluster_id()));
    switch(&[]).assert_error(6, "lb1 can't be asked (http://127.0.0.1:1: ");
    ctl(&etcd, &["color", "shop", "green"]).assert_error(6, "so it isn't known whether green works there");
    switch(&["--force", "--max-errors", "1%"]).assert_error(6, "can't be judged");
    assert_eq!(etcd.get(ACTIVE).as_deref(), Some("blue"));
    switch(&["--force", "--every", "0s"]).assert(0);
    assert_eq!(etcd.get(ACTIVE).as_deref(), Some("green"));
    ctl(&etcd, &["color", "shop", "blue=90", "green=10", "--force"]).assert(0);
    assert_eq!(etcd.get(ACTIVE).as_deref(), Some("blue=90 green=10"));
}
