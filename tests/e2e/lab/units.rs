//! The units on one host that is store, balancer and app at once: every command of docs/deploy.md as it stands there,
//! and what becomes of requests when each program is stopped, frozen, killed or replaced.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::http::Request;
use lab::load::{Kind, Plan, Running};
use lab::{Machine, Network, Page, SOURCE, ask_admin, heavy, servers_up, until};

const HOST: &str = "shop.test";

/// Requests a second of each kind.
const RATE: u32 = 250;

/// Requests of each kind under way at once, at most.
const WORKERS: u32 = 60;

/// For whatever systemd mends by itself.
const MENDS: Duration = Duration::from_secs(60);

/// Twice `WatchdogSec`, which is 60.
const WATCHDOG: Duration = Duration::from_secs(120);

/// A block of the page, the `number`th below a heading.
fn block(heading: &str, number: usize) -> String {
    Page::read("docs/deploy.md").below(heading)[number].clone()
}

/// A command that the page has in its text.
#[track_caller]
fn says(command: &str) -> &str {
    let page = std::fs::read_to_string(format!("{SOURCE}/docs/deploy.md")).unwrap();
    assert!(page.contains(&format!("`{command}`")), "docs/deploy.md has no {command}");
    command
}

/// `systemctl edit` as a person does it, at a terminal, with this as what they type.
fn edited(host: &Machine, script: &str, text: &str) -> String {
    host.put("/root/typed", text);
    host.put("/root/editor", "#!/bin/sh\ncp /root/typed \"$1\"\n");
    let lines = script.lines().map(|line| match line.split('#').next().unwrap().trim() {
        edit if edit.starts_with("systemctl edit ") => format!("script -qec '{edit}' /dev/null </dev/null >/dev/null"),
        _ => line.to_owned(),
    });
    let lines: Vec<String> = lines.collect();
    format!("chmod +x /root/editor\nexport SYSTEMD_EDITOR=/root/editor\n{}", lines.join("\n"))
}

/// What an app's file says, besides what its unit does.
fn settings(port: u16) -> String {
    format!(
        "PORT={port}
ANNOUNCER_SERVICE=shop
ANNOUNCER_DOMAIN={HOST}
ANNOUNCER_PORT={port}
ANNOUNCER_CHECK=http://127.0.0.1:{port}/health
ANNOUNCER_WAIT_BALANCERS=1
"
    )
}

/// A unit's property; times are microseconds since the boot.
fn show(host: &Machine, unit: &str, property: &str) -> String {
    host.sh(&format!("systemctl show --value --property {property} {unit}"))
}

fn time(host: &Machine, unit: &str, property: &str) -> u64 {
    show(host, unit, property).parse().unwrap()
}

fn web(host: &Machine) -> SocketAddr {
    SocketAddr::new(host.address().parse().unwrap(), 80)
}

/// As after the start: everything active, HAProxy in sync, every app up.
fn whole(host: &Machine) -> Result<(), String> {
    let units = "etcd@node1 haproxy-supervisord confgen app@shop announcer@shop announced@around registered@plain";
    let active = host.run(&format!("systemctl is-active {units}"));
    let ready = host.run(&ask_admin("/ready"));
    let up = servers_up(host);
    if active.status.success() && ready.status.success() && up.len() == 3 {
        return Ok(());
    }
    Err(format!("{}; ready: {}; up: {up:?}", String::from_utf8_lossy(&active.stdout).replace('\n', " "), ready.status))
}

/// Does something under load, waits until everything is whole again, and says how many requests were lost.
#[track_caller]
fn lost(host: &Machine, what: &str, act: impl FnOnce()) -> usize {
    let start = |kind| Plan::new(kind, web(host), HOST).rate(RATE).workers(WORKERS).start();
    let loads = [Kind::PerRequest, Kind::KeepAlive].map(start);
    until(MENDS, "the loads", || loads.iter().all(|it| it.report().good > u64::from(RATE)));
    let begun = Instant::now();
    act();
    until(WATCHDOG, &format!("{what}: everything again"), || whole(host));
    let took = begun.elapsed();
    let reports = loads.map(Running::stop);
    let lost = reports.iter().map(|it| it.failures.len()).sum();
    println!("{what}: {lost} lost, whole again after {took:.1?}\n{}{}", reports[0], reports[1]);
    lost
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn they_start_stop_and_mend_as_the_page_says() {
    let _turn = heavy();
    let network = Network::new();
    let host = Machine::start(&network, "node1");
    host.put("/etc/environment", &format!("COREOS_PRIVATE_IPV4={}\n", host.address()));
    starts_in_order(&host);
    is_confined(&host);
    stops_in_order(&host);
    comes_back_when_killed(&host);
    comes_back_when_frozen(&host);
    is_upgraded(&host);
    ends(&host);
}

/// READY means ready: what a start promises is looked at once, not waited for.
fn starts_in_order(host: &Machine) {
    host.sh(&format!("export BUILT=/built\n{}", block("Upgrade in place", 0)));
    host.sh(&block("Deploy with systemd", 0));
    // One member alone, on loopback.
    let store = format!("ADDRESS={}\nSTORE=http://127.0.0.1:2379\n", host.address());
    for number in [1, 2, 4] {
        host.sh(&format!("{store}{}", block("The store", number)));
    }
    host.sh(says("systemctl start etcd-defrag@node1"));
    assert_eq!(show(host, "etcd-defrag@node1", "Result"), "success");
    assert_ne!(show(host, "etcd-defrag@node1.timer", "NextElapseUSecRealtime"), "");

    for number in 0..3 {
        host.sh(&format!("{store}{}", block("The balancers' API", number)));
    }
    host.sh(&block("A balancer", 0));
    host.sh(&ask_admin("/ready"));
    let status = block("A balancer", 1);
    until(MENDS, "supervisord to count HAProxy as started", || host.sh(&status).contains("RUNNING"));
    host.sh(&block("A balancer", 2));

    let app = "[Service]\nExecStart=\nExecStart=/built/webapp --listen 0.0.0.0:${PORT} --name shop\n";
    let script = block("An app", 0);
    let (copy, rest) = script.split_once('\n').unwrap();
    host.sh(copy);
    host.sh(&format!("cat >>/etc/haproxy-discover/app-shop.env <<'END'\n{}END", settings(8000)));
    host.sh(&edited(host, rest, app));
    let answer = Request::get(HOST, "/").send(web(host)).unwrap();
    assert_eq!((answer.status, answer.app()), (200, "shop"), "{answer:?}");
    let started = |unit: &str| time(host, unit, "ExecMainStartTimestampMonotonic");
    assert!(started("app@shop") < started("announcer@shop"));

    for (unit, port, command) in [
        ("announced@around", 8001, "/usr/bin/announcer -- /built/webapp --listen 0.0.0.0:${PORT} --name around"),
        ("registered@plain", 8002, "/built/webapp --listen 0.0.0.0:${PORT} --name plain"),
    ] {
        host.put(&format!("/etc/haproxy-discover/app-{}.env", unit.split_once('@').unwrap().1), &settings(port));
        let text = format!("[Service]\nExecStart=\nExecStart={command}\n");
        host.sh(&edited(host, &format!("systemctl edit {unit}\nsystemctl enable --now {unit}"), &text));
    }
    until(MENDS, "all three apps", || whole(host));
}

/// What systemd itself says of the running units, not of their files.
fn is_confined(host: &Machine) {
    let units = [
        "confgen",
        "haproxy-supervisord",
        "announcer@shop",
        "app@shop",
        "announced@around",
        "registered@plain",
        "etcd@node1",
    ];
    for unit in units {
        let said = host.sh(&format!("systemd-analyze security --no-pager {unit}.service | tail -n 1"));
        println!("{said}");
        assert!([" OK ", " PERFECT ", " SAFE "].iter().any(|word| said.contains(word)), "{said}");
    }
    for (unit, user) in [("confgen", "haproxy-discover"), ("announcer@shop", "announcer-shop"), ("etcd@node1", "etcd")]
    {
        let pid = show(host, unit, "MainPID");
        let runs_as = host.sh(&format!("stat --format %U /proc/{pid}"));
        // A user that systemd makes for as long as the unit runs is named after it.
        assert!(runs_as == user || runs_as.starts_with("UNKNOWN"), "{unit} runs as {runs_as}");
        assert_ne!(runs_as, "root");
    }
    // Though /proc shows confgen nothing but processes.
    host.sh(&format!("{} | grep '^process_start_time_seconds '", ask_admin("/metrics")));
}

/// An announcer drains before its app is told to stop, in all three forms.
fn stops_in_order(host: &Machine) {
    for units in ["app@shop", "announced@around", "registered@plain"] {
        let lost = lost(host, &format!("{units} is stopped and started"), || {
            host.sh(&format!("systemctl stop {units}"));
            if units == "app@shop" {
                let drained = time(host, "announcer@shop", "InactiveEnterTimestampMonotonic");
                let told = time(host, "app@shop", "ActiveExitTimestampMonotonic");
                assert!(drained <= told, "the app was told to stop {} µs before that", drained - told);
                assert_eq!(show(host, "announcer@shop", "Result"), "success");
            }
            until(MENDS, "it to be out", || servers_up(host).len() == 2);
            host.sh(&format!("systemctl start {units}"));
        });
        assert_eq!(lost, 0, "{units}");
    }
}

/// With SIGKILL; nobody but systemd starts anything again.
fn comes_back_when_killed(host: &Machine) {
    let haproxy = || host.sh("pgrep --oldest --exact haproxy");
    let app = show(host, "app@shop", "MainPID");
    for (unit, most) in [
        ("confgen", 0),
        ("announcer@shop", 0),
        ("haproxy-supervisord", 0),
        // What was under way to it: HAProxy tries again what hasn't been answered with a byte.
        ("announced@around", 2 * WORKERS as usize),
        ("registered@plain", 2 * WORKERS as usize),
        ("app@shop", 2 * WORKERS as usize),
    ] {
        let (pid, serving) = (show(host, unit, "MainPID"), haproxy());
        let lost = lost(host, &format!("{unit} is killed"), || {
            host.sh(&format!("kill -KILL {pid}"));
            until(MENDS, &format!("another {unit}"), || {
                let new = show(host, unit, "MainPID");
                if new != "0" && new != pid { Ok(()) } else { Err(new) }
            });
            if unit == "haproxy-supervisord" {
                // The one that follows starts a new HAProxy, to which the old one hands over.
                until(MENDS, "the old HAProxy's end", || haproxy() != serving);
            }
        });
        assert!(lost <= most, "{unit}: {lost} of {most}");
        assert_eq!(haproxy() == serving, unit != "haproxy-supervisord", "HAProxy serves on when {unit} is killed");
        if unit == "announcer@shop" {
            assert_eq!(show(host, "app@shop", "MainPID"), app, "the app ran on");
        }
    }
    // Its worker ends with it: until handover is back there is no HAProxy, and no other balancer here.
    let mut away = Duration::ZERO;
    let lost = lost(host, "HAProxy is killed", || {
        let (old, begun) = (haproxy(), Instant::now());
        host.sh(&format!("kill -KILL {old}"));
        until(MENDS, "another HAProxy", || {
            let new = host.run("pgrep --oldest --exact haproxy");
            let new = String::from_utf8_lossy(&new.stdout).trim().to_owned();
            let answers = Request::get(HOST, "/").send(web(host)).is_ok_and(|answer| answer.status == 200);
            if answers && !new.is_empty() && new != old { Ok(()) } else { Err(new) }
        });
        away = begun.elapsed();
    });
    println!("HAProxy was away for {away:.1?} at most");
    assert!(lost as u128 <= u128::from(2 * RATE) * (away.as_millis() + 1_000) / 1_000, "{lost} in {away:?}");
}

/// A process that is stopped says nothing to systemd, which ends it when `WatchdogSec` is over.
fn comes_back_when_frozen(host: &Machine) {
    let units = ["confgen", "announcer@shop"];
    let old = units.map(|unit| show(host, unit, "MainPID"));
    let lost = lost(host, "confgen and an announcer are frozen", || {
        for pid in &old {
            host.sh(&format!("kill -STOP {pid}"));
        }
        for (unit, pid) in units.iter().zip(&old) {
            until(WATCHDOG, &format!("{unit}'s watchdog"), || {
                let new = show(host, unit, "MainPID");
                if new != "0" && new != *pid { Ok(()) } else { Err(new) }
            });
            let said = host.sh(&format!("journalctl --no-pager --output cat --unit {unit} | grep -i watchdog"));
            assert!(said.contains("Watchdog timeout"), "{said}");
        }
    });
    assert_eq!(lost, 0);
}

fn is_upgraded(host: &Machine) {
    let lost = lost(host, "an upgrade in place", || {
        host.sh(&format!("export BUILT=/built\n{}", block("Upgrade in place", 0)));
        for command in [
            "systemctl restart confgen",
            "supervisorctl -c /etc/haproxy-discover/supervisord.conf restart haproxy",
            "systemctl restart announcer@shop",
            "systemctl restart etcd@node1",
        ] {
            host.sh(says(command));
            until(MENDS, command, || whole(host));
        }
        host.sh(&says("systemctl restart announced@shop").replace("@shop", "@around"));
        until(MENDS, "announced@around", || whole(host));
        let old =
            host.sh("ls -l /proc/[0-9]*/exe 2>/dev/null | grep -E '(announcer|confgen|handover) .deleted' || true");
        assert_eq!(old, "", "nothing runs that was replaced");
    });
    assert_eq!(lost, 0);
}

/// All of it, the store last: nothing fails, nothing is left over.
fn ends(host: &Machine) {
    let units = "announced@around announcer@shop app@shop confgen haproxy-supervisord";
    host.sh(&format!("systemctl stop {units}"));
    // Together, as a shutdown does; what is registered has to be withdrawn while there is a store. Each is a job of its own, and
    // one that has begun waits for none that comes: the store's, if it were the first.
    let together = "registered@plain etcd@node1";
    host.sh(&format!("systemctl stop {together}"));
    for unit in units.split(' ').chain(together.split(' ')) {
        assert_eq!(show(host, unit, "Result"), "success", "{unit}");
    }
    let withdrawn = time(host, "registered@plain", "InactiveEnterTimestampMonotonic");
    assert!(withdrawn <= time(host, "etcd@node1", "ActiveExitTimestampMonotonic"));
    host.sh("systemctl start etcd@node1");
    assert_eq!(host.sh("etcdctl get --prefix --keys-only /haproxy-discover/http-services/shop/upstreams/"), "");
    host.sh("systemctl stop etcd@node1");
    until(MENDS, "HAProxy's end", || !host.run("pgrep --exact haproxy").status.success());
}
