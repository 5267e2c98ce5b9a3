//! Whole hosts: without power, frozen, with a clock that jumps.

use std::time::{Duration, Instant};

use lab::http::Request;
use lab::{Hosts, Machine, servers_up, until};

use super::{Loads, MENDS, Row, WORKERS, follows, most_of_one_host};

/// libfaketime in front of what has a clock of its own; etcd is Go, which asks the kernel without libc. The clock jumps
/// within a second of the file's change. What counts seconds is no clock, and doesn't jump.
const CLOCK: &str = "[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1
Environment=FAKETIME_TIMESTAMP_FILE=/run/clock FAKETIME_CACHE_DURATION=1 FAKETIME_DISABLE_SHM=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1
";

/// Nothing tells the balancers that the host is gone. What is lost is what was sent to it, or over connections that were
/// kept to it, before the checks found out; a request that needed a new connection went to another host.
pub(super) fn power_cut(hosts: &Hosts) -> Row {
    away(hosts, "a host's power cut, and back", Machine::power_off, Machine::power_on)
}

/// Its kernel goes on: it takes connections, so that HAProxy's checks find nothing, and nobody answers on them. The
/// announcer is frozen too, and its lease ends.
pub(super) fn frozen(hosts: &Hosts) -> Row {
    away(hosts, "a host frozen, and thawed", Machine::freeze, Machine::thaw)
}

/// A host that is no balancer goes, and comes back.
fn away(hosts: &Hosts, name: &'static str, goes: fn(&Machine), comes: fn(&Machine)) -> Row {
    let loads = Loads::start(hosts);
    let (host, begun) = (&hosts.all()[2], Instant::now());
    goes(host);
    for balancer in hosts.balancers() {
        until(MENDS, &format!("{} to leave that host out", balancer.name()), || servers_up(balancer).len() == 2);
    }
    let out = begun.elapsed();
    let begun = Instant::now();
    comes(host);
    hosts.wait_whole(MENDS);
    let back = begun.elapsed();
    loads.row(name, [Some(most_of_one_host()); 2], format!("out after {out:.1?}, whole {back:.1?} after it is back"))
}

/// The same to a balancer: whoever asks it gets nothing until it is back, and the other one loses what was under way to the
/// app on that host.
pub(super) fn balancer_power_cut(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let [other, dead] = hosts.balancers() else { panic!("two balancers") };
    dead.power_off();
    until(MENDS, "the other balancer to leave its app out", || servers_up(other).len() == 2);
    let begun = Instant::now();
    dead.power_on();
    until(MENDS, "it to serve again", || {
        Request::get(Hosts::DOMAIN, "/").send(hosts.web(dead)).is_ok_and(|answer| answer.status == 200)
    });
    let serves = begun.elapsed();
    hosts.wait_whole(MENDS);
    let whole = begun.elapsed();
    let words = format!("serves {serves:.1?} after power, whole after {whole:.1?}");
    loads.row("a balancer's power cut, and back", [Some(most_of_one_host()), None], words)
}

pub(super) fn clock_jumps(hosts: &Hosts) -> Row {
    let host = &hosts.balancers()[0];
    host.put("/run/clock", "+0\n");
    for unit in ["confgen", "haproxy-supervisord", "announcer@"] {
        host.put(&format!("/etc/systemd/system/{unit}.service.d/clock.conf"), CLOCK);
    }
    host.sh("systemctl daemon-reload && systemctl restart haproxy-supervisord confgen announcer@shop");
    hosts.wait_whole(MENDS);
    for unit in ["confgen", "announcer@shop"] {
        host.sh(&format!("grep -q libfaketime /proc/$(systemctl show --value --property MainPID {unit})/maps"));
    }
    let loads = Loads::start(hosts);
    let mut slowest = Duration::ZERO;
    for (weight, clock) in [(95, "+60"), (96, "+0"), (97, "-60"), (98, "+0")] {
        host.put("/run/clock", &format!("{clock}\n"));
        slowest = slowest.max(follows(hosts, host, hosts.balancers(), weight));
        let off: i64 = clock.parse().unwrap();
        until(MENDS, "HAProxy to have that clock", || {
            let (said, now) = (logged(host), seconds(&host.sh("date +%s")));
            if (said - now - off).abs() < 10 { Ok(()) } else { Err(format!("{said}, and it is {now}, {clock}")) }
        });
        // Longer than a lease: it is kept alive across the jump.
        std::thread::sleep(Duration::from_secs(12));
        let gone = hosts.whole();
        assert_eq!(gone, Ok(()), "{clock}");
    }
    // HAProxy 2.6 counts its timeouts by the clock: `timeout server`, a minute, is over for what is under way.
    let most = WORKERS as usize;
    loads.row(
        "one host's clock jumps a minute, either way",
        [Some(most), Some(0)],
        format!("a change is followed within {slowest:.1?}"),
    )
}

/// The time in the access log's last line.
fn logged(host: &Machine) -> i64 {
    let line =
        host.sh("journalctl --output cat --identifier haproxy --lines 20 | grep -o '\"time\":[0-9]*' | tail -n 1");
    seconds(line.trim_start_matches("\"time\":"))
}

fn seconds(text: &str) -> i64 {
    text.trim().parse().unwrap_or_default()
}
