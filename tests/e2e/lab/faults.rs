//! What each fault costs: three hosts, requests at both balancers, every lost one counted.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use lab::load::{Kind, Plan, Report, Running};
use lab::{Hosts, Machine, heavy, servers_up, until};

/// Requests a second, at each of the two balancers.
const RATE: u32 = 500;

/// While a host is dead, each request that meets it waits for `timeout connect`: so many are under way at once.
const WORKERS: u32 = 600;

/// For whatever has to be so again by itself.
const MENDS: Duration = Duration::from_secs(120);

/// Until HAProxy's checks find a host dead: `inter` 2 s, and as long for a connection that never comes, `fall` 3 times.
const FALL: Duration = Duration::from_secs(12);

/// The app's share of requests that one of three hosts has.
const SHARE: u32 = 3;

/// libfaketime in front of what has a clock of its own; etcd is Go, which asks the kernel without libc. The clock jumps
/// within a second of the file's change. What counts seconds is no clock, and doesn't jump.
const CLOCK: &str = "[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1
Environment=FAKETIME_TIMESTAMP_FILE=/run/clock FAKETIME_CACHE_DURATION=1 FAKETIME_DISABLE_SHM=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1
";

/// One fault, hurt and mended.
struct Row {
    what: &'static str,
    /// At each balancer: failed requests, and how many there may be at most.
    failed: [(usize, usize); 2],
    sent: u64,
    /// In words, with what was measured.
    converged: String,
}

/// Both loads.
struct Loads([Running; 2]);

impl Loads {
    fn start(hosts: &Hosts) -> Self {
        let kinds = [Kind::PerRequest, Kind::KeepAlive].into_iter().zip(hosts.balancers());
        let start =
            |(kind, balancer)| Plan::new(kind, hosts.web(balancer), Hosts::DOMAIN).rate(RATE).workers(WORKERS).start();
        let loads: Vec<Running> = kinds.map(start).collect();
        let Ok(loads) = loads.try_into() else { panic!("two balancers") };
        let loads = Self(loads);
        // Some are on their way before anything happens.
        until(MENDS, "the loads", || loads.0.iter().all(|it| it.report().good > u64::from(RATE)));
        loads
    }

    /// Ends them, and holds them against what may be lost at each.
    fn row(self, what: &'static str, bounds: [usize; 2], converged: String) -> Row {
        let reports = self.0.map(Running::stop);
        for report in &reports {
            println!("{what}: {report}");
        }
        let failed = |index: usize| (reports[index].failures.len(), bounds[index]);
        Row { what, failed: [failed(0), failed(1)], sent: reports.iter().map(|it: &Report| it.sent).sum(), converged }
    }
}

/// Changes a weight in the store by way of one host, and waits until HAProxy has it on these: how long that took.
#[track_caller]
fn follows(hosts: &Hosts, by: &Machine, balancers: &[Machine], weight: u32) -> Duration {
    let begun = Instant::now();
    let put = format!(r#"put /haproxy-discover/http-services/shop/overrides/host1-8000 '{{"weight":{weight}}}'"#);
    until(MENDS, "a write to the store", || hosts.etcdctl(by, &put));
    for balancer in balancers {
        until(MENDS, &format!("{} to follow", balancer.name()), || {
            let up = servers_up(balancer);
            if up.get("host1-8000") == Some(&weight) { Ok(()) } else { Err(format!("{up:?}")) }
        });
    }
    begun.elapsed()
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn what_each_fault_costs() {
    let _turn = heavy();
    let begun = Instant::now();
    let hosts = Hosts::up();
    let up = begun.elapsed();
    println!("three hosts are up after {up:.0?}");
    assert!(up < MENDS, "{up:?}");
    // Last what leaves a host prepared for it.
    let faults: [fn(&Hosts) -> Row; 7] =
        [power_cut, leader_cut_off, confgen_killed, upgraded, balancer_cut_off_from_etcd, disk_full, clock_jumps];
    let wanted = std::env::var("LAB_FAULTS").unwrap_or_default();
    let mut rows = Vec::new();
    for (index, fault) in faults.iter().enumerate() {
        if wanted.is_empty() || wanted.split(',').any(|it| it == index.to_string()) {
            rows.push(fault(&hosts));
        }
    }
    println!("{}", table(&rows));
    for row in &rows {
        assert!(row.failed.iter().all(|(failed, most)| failed <= most), "{}: {:?}", row.what, row.failed);
    }
}

fn table(rows: &[Row]) -> String {
    let mut table =
        "| fault | failed at host1 | at host2 | at most | of | converged |\n|---|---|---|---|---|---|\n".to_owned();
    for Row { what, failed: [(one, most), (two, other)], sent, converged } in rows {
        writeln!(table, "| {what} | {one} | {two} | {most}, {other} | {sent} | {converged} |").unwrap();
    }
    table
}

/// Nothing tells the balancers that the host is gone. What is lost is what was sent to it, or over connections that were
/// kept to it, before the checks found out; a request that needed a new connection went to another host.
fn power_cut(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let (dead, begun) = (&hosts.all()[2], Instant::now());
    dead.power_off();
    for balancer in hosts.balancers() {
        until(MENDS, &format!("{} to leave the dead host out", balancer.name()), || servers_up(balancer).len() == 2);
    }
    let out = begun.elapsed();
    let begun = Instant::now();
    dead.power_on();
    hosts.wait_whole(MENDS);
    let back = begun.elapsed();
    let most = RATE as usize / SHARE as usize * FALL.as_secs() as usize;
    loads.row("a host's power cut, and back", [most; 2], format!("out after {out:.1?}, whole {back:.1?} after power"))
}

/// The member is cut off, its host isn't: clients of it there find it without a leader, and go on to another.
fn leader_cut_off(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let leader = hosts.leader();
    let other = hosts.all().iter().find(|it| it.name() != leader.name()).unwrap();
    let rules = ["INPUT -p tcp --dport", "INPUT -p tcp --sport", "OUTPUT -p tcp --sport", "OUTPUT -p tcp --dport"];
    let rules = rules.map(|rule| format!("{rule} 2380 -j DROP")).into_iter();
    let rules = rules.chain(["INPUT ! -i lo -p tcp --dport 2379 -j DROP".to_owned()]);
    let rules: Vec<String> = rules.collect();
    let each = |act: &str| rules.iter().map(|rule| format!("iptables -{act} {rule}\n")).collect::<String>();
    let begun = Instant::now();
    leader.sh(&each("A"));
    let mut converged = Duration::ZERO;
    until(MENDS, "another leader", || hosts.etcdctl(other, "put /lab/leader 1"));
    follows(hosts, other, hosts.balancers(), 91);
    converged += begun.elapsed();
    leader.sh(&each("D"));
    follows(hosts, other, hosts.balancers(), 92);
    hosts.wait_whole(MENDS);
    loads.row(
        "the etcd leader cut off, and back",
        [0; 2],
        format!("a change is followed {converged:.1?} after the cut"),
    )
}

fn confgen_killed(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let begun = Instant::now();
    hosts.balancers()[1].sh("systemctl kill --signal KILL confgen");
    follows(hosts, &hosts.all()[2], hosts.balancers(), 93);
    let converged = begun.elapsed();
    hosts.wait_whole(MENDS);
    loads.row("confgen killed on a balancer", [0; 2], format!("a change is followed {converged:.1?} after it"))
}

/// As docs/deploy.md says, host by host.
fn upgraded(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let begun = Instant::now();
    for host in hosts.all() {
        host.sh("BUILT=/built make --silent install && systemctl daemon-reload");
        if hosts.balancers().iter().any(|it| it.name() == host.name()) {
            host.sh("systemctl restart confgen");
            host.sh("supervisorctl -c /etc/haproxy-discover/supervisord.conf restart haproxy");
        }
        host.sh("systemctl restart announcer@shop");
        hosts.wait_whole(MENDS);
        let old =
            host.sh("ls -l /proc/[0-9]*/exe 2>/dev/null | grep -E '(announcer|confgen|handover) .deleted' || true");
        assert_eq!(old, "", "{}", host.name());
    }
    let leader = hosts.leader().name().to_owned();
    let (last, first): (Vec<&Machine>, Vec<_>) = hosts.all().iter().partition(|it| it.name() == leader);
    for host in first.into_iter().chain(last) {
        host.sh(&format!("systemctl restart etcd@{}", host.name()));
        hosts.wait_whole(MENDS);
    }
    let converged = begun.elapsed();
    loads.row(
        "all binaries upgraded, one host at a time",
        [0; 2],
        format!("three hosts and three members in {converged:.0?}"),
    )
}

/// confgen alone is cut off. Its balancer goes on with what it has; when an app then stops on another host, nobody waits
/// for this balancer, and HAProxy's retry on another server covers what finds the port closed.
fn balancer_cut_off_from_etcd(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let (cut, stopped) = (&hosts.balancers()[1], &hosts.all()[2]);
    let rule = "OUTPUT -p tcp --dport 2379 -m owner --uid-owner haproxy-discover -j DROP";
    cut.sh(&format!("iptables -A {rule}"));
    until(MENDS, "its key to expire", || {
        let keys = hosts.etcdctl(stopped, "get --prefix --keys-only /haproxy-discover/balancers/")?;
        (!keys.contains(cut.name())).then_some(())
    });
    stopped.sh("systemctl stop app@shop");
    until(MENDS, "the checks", || servers_up(cut).len() == 2);
    let begun = Instant::now();
    cut.sh(&format!("iptables -D {rule}"));
    stopped.sh("systemctl start app@shop");
    follows(hosts, stopped, hosts.balancers(), 94);
    let converged = begun.elapsed();
    hosts.wait_whole(MENDS);
    // What was under way to the app when it went; it finishes those itself.
    let most = RATE as usize / SHARE as usize * FALL.as_secs() as usize;
    let words = format!("a change is followed {converged:.1?} after the cut's end");
    loads.row("a balancer cut off from etcd only; an app stops meanwhile", [0, most], words)
}

fn clock_jumps(hosts: &Hosts) -> Row {
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
        [most, 0],
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

/// While confgen can't write, HAProxy follows over its Runtime API, and what needs a file waits.
fn disk_full(hosts: &Hosts) -> Row {
    let host = &hosts.balancers()[1];
    host.sh("for dir in /etc/haproxy /var/lib/confgen; do
    cp -a $dir /root/kept && mount -t tmpfs -o size=2m none $dir && cp -a /root/kept/. $dir && rm -r /root/kept
done
systemctl restart haproxy-supervisord confgen");
    hosts.wait_whole(MENDS);
    let loads = Loads::start(hosts);
    host.sh("for dir in /etc/haproxy /var/lib/confgen; do
    dd if=/dev/zero of=$dir/full bs=1k 2>/dev/null && exit 1
done
! dd if=/dev/zero of=/var/lib/confgen/more bs=1k count=8 2>/dev/null");
    follows(hosts, &hosts.all()[2], &hosts.balancers()[..1], 99);
    let put = "put /haproxy-discover/http-services/shop/balance leastconn";
    until(MENDS, "a change that takes a restart", || hosts.etcdctl(host, put));
    let ready = "curl --silent --fail --max-time 2 http://127.0.0.1:9101/ready";
    until(MENDS, "confgen to say that it isn't in sync", || !host.run(ready).status.success());
    let begun = Instant::now();
    host.sh("rm -f /etc/haproxy/full /var/lib/confgen/full /var/lib/confgen/more");
    until(MENDS, "the file to follow", || {
        host.run("grep 'balance leastconn' /etc/haproxy/haproxy.cfg").status.success()
    });
    hosts.wait_whole(MENDS);
    let converged = begun.elapsed();
    follows(hosts, &hosts.all()[2], hosts.balancers(), 90);
    loads.row("a full disk on a balancer", [0; 2], format!("in sync {converged:.1?} after there is room"))
}
