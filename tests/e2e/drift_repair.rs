//! A hand on the Runtime API, and HAProxy's death: what is wanted is put right by itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::{Balancer, Ground, Mirror, PATIENCE, Pid, Signal, light, until};
use nix::sys::signal::kill;

/// How often confgen lists the store here, and looks at HAProxy with it.
const RESYNC: Duration = Duration::from_millis(500);

/// Three apps with records by hand, one of them drained; `flags` are confgen's.
fn start(flags: &[&str]) -> Ground {
    let apps = ["shop-1", "shop-2", "shop-3"];
    let build = Ground::build().http("shop", Ground::HOST, &apps).http("blog", "blog.test *.blog.test", &apps[..1]);
    let build = build.set("http-services/shop", &[("overrides/shop-3", r#"{"state":"drain"}"#)]);
    let ground = build.flags(flags).launch();
    until(PATIENCE, "the first state", || Mirror::agree(&ground.balancer, &ground.etcd));
    ground.balancer.wait_settled(PATIENCE);
    ground
}

#[test]
fn a_manual_change_over_the_runtime_api_is_repaired_without_a_restart() {
    let _turn = light();
    let Ground { etcd, balancer, apps, .. } = start(&["--resync", "500ms"]);
    let map = |name: &str| {
        let list = balancer.ask("show map");
        let path = list.lines().filter_map(|line| line.split_once(" (")?.1.split_once(") ")).map(|(path, _)| path);
        path.into_iter().find(|path| path.ends_with(name)).unwrap().to_owned()
    };
    let (hosts, paths) = (map("/hosts.map"), map("/paths.map"));
    let before = (balancer.worker(), balancer.restarts());
    let elsewhere = apps[1].address.port();
    for hand in [
        "set server http-shop/shop-1 weight 1".to_owned(),
        "set server http-shop/shop-1 state maint".to_owned(),
        "set server http-shop/shop-1 state drain".to_owned(),
        "set server http-shop/shop-3 weight 100".to_owned(),
        format!("set server http-blog/shop-1 addr 127.0.0.1 port {elsewhere}"),
        "set server http-shop/shop-2 state maint;del server http-shop/shop-2".to_owned(),
        format!("add server http-shop/stranger 127.0.0.1:{elsewhere};enable server http-shop/stranger"),
        format!("add map {hosts} evil.test evil.test;add map {paths} evil.test/ http-shop"),
        format!("set map {paths} blog.test/ http-shop"),
        format!("del map {hosts} shop.test"),
        format!("clear map {hosts};clear map {paths}"),
    ] {
        // It has had an effect: otherwise there was nothing to mend. confgen is kept from being quicker than the look.
        balancer.signal("confgen", Signal::SIGSTOP);
        balancer.ask(&hand);
        assert!(Mirror::wanted(&etcd).runs_on(&balancer).is_err(), "{hand}: changes nothing");
        balancer.signal("confgen", Signal::SIGCONT);
        until(RESYNC + PATIENCE, &hand, || Mirror::agree(&balancer, &etcd));
    }
    balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
    balancer.wait_status(PATIENCE, "www.blog.test", "/", 200);
    assert_eq!((balancer.worker(), balancer.restarts()), before, "all of it was mended while HAProxy ran");
}

/// Without a store nothing is listed, and HAProxy is looked at all the same.
#[test]
fn a_manual_change_is_repaired_while_the_store_is_away() {
    let _turn = light();
    let Ground { mut etcd, balancer, apps, .. } = start(&["--resync", "500ms"]);
    let wanted = Mirror::wanted(&etcd);
    etcd.kill(0);
    until(PATIENCE, "the store to be away", || {
        balancer.asked("/ready").is_ok_and(|answer| answer.body.contains("the store is away"))
    });
    let elsewhere = apps[1].address.port();
    for hand in [
        "set server http-shop/shop-1 state maint".to_owned(),
        format!("set server http-blog/shop-1 addr 127.0.0.1 port {elsewhere}"),
    ] {
        balancer.signal("confgen", Signal::SIGSTOP);
        balancer.ask(&hand);
        assert!(wanted.runs_on(&balancer).is_err(), "{hand}: changes nothing");
        balancer.signal("confgen", Signal::SIGCONT);
        until(RESYNC + PATIENCE, &hand, || wanted.runs_on(&balancer));
    }
}

/// Which of HAProxy's processes is killed.
fn kill_haproxy(balancer: &Balancer, whole: bool) {
    let worker = balancer.worker();
    // proc(5): the parent is the second field after the name.
    let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let master = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    if whole {
        kill(Pid::from_raw(master), Signal::SIGKILL).unwrap();
    }
    let _ = kill(worker, Signal::SIGKILL);
    until(PATIENCE, "another HAProxy", || {
        let info = balancer.try_ask("show info").map_err(|error| error.to_string())?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: ")).unwrap_or_default().to_owned();
        if pid.is_empty() || pid == worker.to_string() { Err(pid) } else { Ok(()) }
    });
}

#[test]
fn a_crash_of_haproxy_loses_no_change_that_no_file_has_yet() {
    let _turn = light();
    let Ground { etcd, balancer, apps, .. } = start(&[]);
    for (round, whole) in [false, true, false].into_iter().enumerate() {
        // The file follows 200 ms later: HAProxy alone knows of these.
        let file = balancer.file();
        let state = if round == 1 { "drain" } else { "maint" };
        etcd.put("http-services/shop/overrides/shop-1", format!(r#"{{"state":"{state}"}}"#));
        etcd.put(&format!("http-services/shop/upstreams/late-{round}"), apps[0].address.to_string());
        etcd.put("http-services/shop/domain", format!("{} late-{round}.test", Ground::HOST));
        let wanted = Mirror::wanted(&etcd);
        until(PATIENCE, "HAProxy to know", || wanted.runs_on(&balancer));
        println!("killed before the file was written: {}", balancer.file() == file);
        kill_haproxy(&balancer, whole);
        balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
        until(PATIENCE, "what is wanted", || Mirror::agree(&balancer, &etcd));
        balancer.wait_status(PATIENCE, &format!("late-{round}.test"), "/", 200);
        balancer.wait_running("haproxy");
    }
}
