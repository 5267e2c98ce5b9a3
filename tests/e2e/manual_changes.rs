//! Manual changes over the Runtime API, without a listing of the store: confgen finds them within seconds and undoes them. What
//! belongs to the operator stays.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use lab::{Balancer, Ground, Mirror, PATIENCE, Pid, Signal, free_address, light, medium, until};

/// Sections of an operator's own. confgen must leave them alone.
fn own_sections() -> String {
    format!(
        "defaults own\n    mode http\n    timeout client 1m\n    timeout connect 2s\n    timeout server 1m\n\
         frontend own-web from own\n    bind {}\n    default_backend own-app\n\
         backend own-app from own\n    server one 127.0.0.1:9 check\n",
        free_address()
    )
}

fn processes(balancer: &Balancer) -> (Pid, usize) {
    (balancer.worker(), balancer.restarts())
}

/// A row of `show stat`, by the names of its columns. `kind` is 1 for a frontend, 4 for a server.
fn row(balancer: &Balancer, proxy: &str, kind: u8, name: &str) -> BTreeMap<String, String> {
    let answer = balancer.ask(&format!("show stat {proxy} {kind} -1"));
    let mut lines = answer.trim_start_matches("# ").lines().map(|line| line.split(',').map(str::to_owned));
    let header: Vec<String> = lines.next().unwrap().collect();
    let mut rows = lines.map(|fields| header.iter().cloned().zip(fields).collect::<BTreeMap<_, _>>());
    rows.find(|row| row.get("svname").is_some_and(|it| it == name))
        .unwrap_or_else(|| panic!("{proxy}/{name}: {answer}"))
}

/// The columns of `show servers state` that a manual change of checks and TLS changes.
fn check_state(balancer: &Balancer, backend: &str, server: &str) -> [String; 4] {
    let answer = balancer.ask(&format!("show servers state {backend}"));
    let line = answer.lines().find(|line| line.split(' ').nth(3) == Some(server)).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    // The health checks' flags change while a check runs. Bit 2 says that they are enabled.
    let enabled = fields[13].parse::<u32>().unwrap() & 4;
    [enabled.to_string(), fields[20].to_owned(), fields[21].to_owned(), fields[22].to_owned()]
}

/// The number of manual changes of this kind that confgen found.
fn count(balancer: &Balancer, kind: &str) -> f64 {
    balancer.metric(&format!("confgen_manual_changes_total{{kind=\"{kind}\"}}")).unwrap()
}

/// confgen counts a change at the end of the action that undoes it.
#[track_caller]
fn wait_counted(balancer: &Balancer, kind: &str, least: f64) {
    until(PATIENCE, &format!("{least} changes of a {kind}"), || count(balancer, kind) >= least);
}

/// Changes HAProxy by hand while confgen stands still, so that the change is there to be seen. Then waits until `shown` is as before.
#[track_caller]
fn assert_undone<T: PartialEq + std::fmt::Debug>(balancer: &Balancer, command: &str, shown: impl Fn() -> T) {
    let before = shown();
    balancer.signal("confgen", Signal::SIGSTOP);
    let answer = balancer.ask(command);
    let changed = shown();
    balancer.signal("confgen", Signal::SIGCONT);
    assert_ne!(before, changed, "{command} changes nothing: {answer}");
    until(PATIENCE, command, || {
        let now = shown();
        if now == before { Ok(()) } else { Err(format!("{now:?}, not {before:?}")) }
    });
}

#[test]
fn a_manual_change_of_a_frontend_is_undone() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]).tcp("db", &["shop-1"]);
    let build = build.file("conf.d/own.cfg", own_sections());
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } = build.start();
    balancer.wait_settled(PATIENCE);
    let before = processes(&balancer);
    let frontend = |name: &str| {
        let row = row(&balancer, name, 1, "FRONTEND");
        (row["status"].clone(), row["slim"].clone())
    };
    balancer.ask("disable frontend own-web;set maxconn frontend own-web 7");
    for name in ["discover-web", "discover-stats", "tcp-db"] {
        assert_undone(&balancer, &format!("disable frontend {name}"), || frontend(name));
        assert_undone(&balancer, &format!("set maxconn frontend {name} 1"), || frontend(name));
    }
    balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
    balancer.wait_logged("HAProxy was changed over the Runtime API frontends=1 backends=0 servers=0 map_entries=0");
    wait_counted(&balancer, "frontend", 6.0);
    assert_eq!(frontend("own-web"), ("PAUSED".to_owned(), "7".to_owned()), "it is the operator's");
    assert_eq!(processes(&balancer), before, "HAProxy ran on");
}

#[test]
fn a_frontend_that_was_shut_down_comes_back_with_a_restart() {
    let _turn = light();
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } =
        Ground::build().http("shop", Ground::HOST, &["shop-1"]).start();
    balancer.wait_settled(PATIENCE);
    let restarts = balancer.restarts();
    balancer.ask("shutdown frontend discover-web");
    balancer.wait_logged("restarting HAProxy reason=frontend discover-web was shut down over the Runtime API");
    balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
    balancer.wait_settled(PATIENCE);
    assert_eq!(balancer.restarts(), restarts + 1, "one restart is enough");
}

#[test]
fn a_manual_change_of_a_servers_limit_or_checks_is_undone() {
    let _turn = light();
    let build =
        Ground::build().http("shop", Ground::HOST, &["shop-1", "shop-2"]).http("blog", "blog.test", &["shop-1"]);
    let build = build.http("plain", "plain.test", &["shop-1"]).tcp("db", &["shop-1"]);
    let build = build.set("http-services/blog", &[("maxconn", "40"), ("sticky", "cookie")]);
    let build = build.set("http-services/plain", &[("check", "off")]).file("conf.d/own.cfg", own_sections());
    let Ground { balancer, etcd, apps: _apps, .. } = build.start();
    // This one is added while HAProxy runs.
    etcd.put("http-services/shop/upstreams/late", "127.0.0.1:9");
    until(PATIENCE, "the added server", || {
        Mirror::agree(&balancer, &etcd).map(drop).or_else(|error| {
            // Mirror knows no TCP service.
            if balancer.ask("show servers state http-shop").contains(" late ") { Ok(()) } else { Err(error) }
        })
    });
    let before = processes(&balancer);
    balancer.ask("set maxconn server own-app/one 7;set server own-app/one check-port 99;disable health own-app/one");
    let shown = |backend: &'static str, server: &'static str| {
        let balancer = &balancer;
        move || {
            let stat = row(balancer, backend, 4, server);
            (check_state(balancer, backend, server), stat["slim"].clone(), stat["cookie"].clone())
        }
    };
    for (backend, server) in
        [("http-shop", "shop-1"), ("http-shop", "late"), ("tcp-db", "shop-1"), ("http-blog", "shop-1")]
    {
        for change in ["set maxconn server NAME 3", "set server NAME check-port 99", "disable health NAME"] {
            let command = change.replace("NAME", &format!("{backend}/{server}"));
            assert_undone(&balancer, &command, shown(backend, server));
        }
    }
    assert_undone(&balancer, "disable dynamic-cookie backend http-blog", shown("http-blog", "shop-1"));
    assert_undone(&balancer, "set server http-plain/shop-1 health down", || {
        row(&balancer, "http-plain", 4, "shop-1")["status"].clone()
    });
    wait_counted(&balancer, "server", 14.0);
    let own = shown("own-app", "one")();
    assert_eq!((own.0[0].as_str(), own.0[2].as_str(), own.1.as_str()), ("0", "99", "7"), "it is the operator's");
    assert_eq!(processes(&balancer), before, "HAProxy ran on");
}

/// HAProxy can't be told to use the address of the traffic again. It checks that address all the same.
#[test]
fn a_manual_change_of_the_address_of_checks_is_undone() {
    let _turn = light();
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } =
        Ground::build().http("shop", Ground::HOST, &["shop-1"]).start();
    balancer.wait_settled(PATIENCE);
    let answer = balancer.ask("set server http-shop/shop-1 check-addr 127.0.0.9");
    if answer.contains("invalid addr") {
        // HAProxy 3.4 refuses every address.
        return;
    }
    until(PATIENCE, "the old address", || {
        let [_, _, _, address] = check_state(&balancer, "http-shop", "shop-1");
        if address == "127.0.0.1" { Ok(()) } else { Err(address) }
    });
    balancer.wait_settled(PATIENCE);
}

#[test]
fn tls_to_an_upstream_that_was_turned_off_is_turned_on_again() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]);
    let build = build.set("http-services/shop", &[("tls", "reencrypt"), ("verify", "off"), ("check", "off")]);
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } = build.start();
    balancer.wait_settled(PATIENCE);
    let before = processes(&balancer);
    assert_undone(&balancer, "set server http-shop/shop-1 ssl off", || check_state(&balancer, "http-shop", "shop-1"));
    assert_eq!(processes(&balancer), before, "HAProxy ran on");
}

#[test]
fn a_map_that_was_changed_by_hand_is_repaired_without_a_listing() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]).http("blog", "blog.test", &["shop-1"]);
    let Ground { balancer, etcd, apps: _apps, .. } = build.start();
    until(PATIENCE, "the first state", || Mirror::agree(&balancer, &etcd));
    balancer.wait_settled(PATIENCE);
    let before = processes(&balancer);
    let map = |name: &str| {
        let list = balancer.ask("show map");
        let paths = list.lines().filter_map(|line| line.split_once(" (")?.1.split_once(") ")).map(|(path, _)| path);
        paths.into_iter().find(|path| path.ends_with(name)).unwrap().to_owned()
    };
    let (hosts, paths) = (map("/hosts.map"), map("/paths.map"));
    for command in [
        format!("set map {paths} blog.test/ http-shop"),
        format!("add map {hosts} evil.test evil.test;add map {paths} evil.test/ http-shop"),
        format!("del map {hosts} blog.test"),
        format!("clear map {hosts};clear map {paths}"),
        "set server http-shop/shop-1 weight 1".to_owned(),
        "set server http-shop/shop-1 state maint".to_owned(),
        "set server http-shop/shop-1 state drain".to_owned(),
        "set server http-blog/shop-1 addr 127.0.0.1 port 9".to_owned(),
        "set server http-blog/shop-1 state maint;del server http-blog/shop-1".to_owned(),
        "add server http-shop/stranger 127.0.0.1:9;enable server http-shop/stranger".to_owned(),
    ] {
        balancer.signal("confgen", Signal::SIGSTOP);
        balancer.ask(&command);
        assert!(Mirror::wanted(&etcd).runs_on(&balancer).is_err(), "{command}: changes nothing");
        balancer.signal("confgen", Signal::SIGCONT);
        until(PATIENCE, &command, || Mirror::agree(&balancer, &etcd));
    }
    wait_counted(&balancer, "map_entry", 4.0);
    assert_eq!(processes(&balancer), before, "HAProxy ran on");
}

/// HAProxy tries the expressions in their order, and `add map` appends. Only a restart brings the order back.
#[test]
fn expressions_that_were_changed_by_hand_come_back_with_a_restart() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]);
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } =
        build.set("http-services/shop", &[("url_reg", "^/old/.*[.]html$")]).start();
    balancer.wait_settled(PATIENCE);
    balancer.wait_status(PATIENCE, "other.test", "/old/a.html", 200);
    let restarts = balancer.restarts();
    let list = balancer.ask("show map");
    let id = list.lines().find(|line| line.contains("/urls.map)")).unwrap().split(' ').next().unwrap();
    balancer.ask(&format!("clear map #{id}"));
    balancer.wait_status(PATIENCE, "other.test", "/old/a.html", 200);
    balancer.wait_settled(PATIENCE);
    assert_eq!(balancer.restarts(), restarts + 1, "one restart is enough");
}

/// The limits of the whole process are the operator's, who may need them in an emergency.
#[test]
fn a_changed_limit_of_the_whole_process_is_reported_and_left() {
    let _turn = light();
    let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]);
    let build = build.file("conf.d/own.cfg", "global\n    maxconn 500\n    maxconnrate 1000\n");
    let Ground { balancer, etcd: _etcd, apps: _apps, .. } = build.start();
    balancer.wait_settled(PATIENCE);
    assert_eq!(balancer.metric("confgen_changed_limits"), Some(0.0));
    balancer.ask("set maxconn global 100;set rate-limit connections global 900;set rate-limit ssl-sessions global 50");
    balancer.wait_logged("limit=\"maxconn\" now=100 written=500");
    until(PATIENCE, "all of them to be reported", || {
        let ready = balancer.asked("/ready").unwrap();
        let reported = ["maxconn is 100, and 500", "maxconnrate is 900, and 1000", "maxsslrate is 50, and 0"];
        let is_reported = reported.iter().all(|words| ready.body.contains(words));
        if ready.status == 200 && is_reported { Ok(()) } else { Err(ready.body) }
    });
    assert_eq!(balancer.metric("confgen_changed_limits"), Some(3.0));
    let verdict = &balancer.api("upstreams")["upstreams"][0]["verdict"];
    assert_eq!((&verdict["gets_requests"], &verdict["also"][0]["cause"]), (&true.into(), &"limited".into()));
    assert!(balancer.ask("show info").contains("\nMaxconn: 100\n"), "it is the operator's");
    balancer.ask("set maxconn global 500;set rate-limit connections global 1000;set rate-limit ssl-sessions global 0");
    until(PATIENCE, "nothing to be reported", || balancer.metric("confgen_changed_limits") == Some(0.0));
}

#[test]
fn changes_of_confgens_own_count_as_no_manual_changes() {
    let _turn = light();
    let apps = ["shop-1", "shop-2"];
    let build = Ground::build().http("shop", Ground::HOST, &apps).http("blog", "blog.test", &apps);
    let build = build.set("http-services/blog", &[("sticky", "cookie"), ("maxconn", "9"), ("tls", "terminate")]);
    let build = build.set("http-services/shop", &[("balance", "source"), ("overrides/shop-2", r#"{"weight":0}"#)]);
    let Ground { balancer, etcd, apps, .. } = build.start();
    balancer.wait_settled(PATIENCE);
    let address = apps[0].address.to_string();
    for round in 0..3 {
        for service in ["shop", "blog"] {
            let key = |leaf: &str| format!("http-services/{service}/{leaf}");
            etcd.put(&key("upstreams/late"), address.clone());
            etcd.put(&key("overrides/shop-2"), r#"{"state":"drain"}"#);
            etcd.put(&key("domain"), format!("{service}.test {service}-{round}.test"));
            until(PATIENCE, "the change", || Mirror::agree(&balancer, &etcd));
            etcd.put(&key("overrides/shop-2"), r#"{"state":"maint"}"#);
            etcd.put(&key("overrides/shop-1"), r#"{"weight":7}"#);
            until(PATIENCE, "the change", || Mirror::agree(&balancer, &etcd));
            etcd.delete(&key("upstreams/late"));
            etcd.delete(&key("overrides/shop-1"));
            etcd.put(&key("overrides/shop-2"), r#"{"weight":0}"#);
            until(PATIENCE, "the change", || Mirror::agree(&balancer, &etcd));
        }
    }
    // A manual change is found. So there was a look meanwhile, and it found no more than that.
    balancer.ask("set server http-shop/shop-1 weight 1");
    until(PATIENCE, "the manual change to be found", || count(&balancer, "server") > 0.0);
    let counts = ["frontend", "backend", "server", "map_entry"].map(|kind| count(&balancer, kind));
    assert_eq!(counts, [0.0, 0.0, 1.0, 0.0], "{}", balancer.log("confgen"));
}

#[test]
fn a_manual_change_is_found_while_the_store_changes_all_the_time() {
    let _turn = medium();
    let apps = ["shop-1", "shop-2"];
    let build = Ground::build().http("shop", Ground::HOST, &apps).http("blog", "blog.test", &apps);
    let Ground { balancer, etcd, apps: _apps, .. } = build.start();
    balancer.wait_settled(PATIENCE);
    let mut found_meanwhile = 0;
    std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            for round in 0..500 {
                etcd.put("http-services/blog/overrides/shop-2", format!(r#"{{"weight":{}}}"#, round % 100));
            }
        });
        let weight = || row(&balancer, "http-shop", 4, "shop-1")["weight"].clone();
        let before = weight();
        while !writer.is_finished() {
            balancer.ask("set server http-shop/shop-1 weight 1");
            until(PATIENCE, "the weight as before", || weight() == before);
            found_meanwhile += i32::from(!writer.is_finished());
        }
    });
    assert!(found_meanwhile > 0, "the store was quiet before the first change was found");
    until(PATIENCE, "the last change", || Mirror::agree(&balancer, &etcd));
    let counts = ["frontend", "backend", "map_entry"].map(|kind| count(&balancer, kind));
    assert_eq!(counts, [0.0; 3], "{}", balancer.log("confgen"));
    let found = count(&balancer, "server");
    assert!(found <= f64::from(found_meanwhile) + 1.0, "confgen's own changes count as manual: {found}");
}
