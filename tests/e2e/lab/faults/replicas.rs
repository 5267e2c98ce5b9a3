//! Two copies on three hosts: the copy of a host that dies comes back on the third one, and none stops without etcd.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Hosts, Machine, servers_up, until};

use super::{FALL, Loads, MENDS, RATE, Row};

/// The announcers' lease.
const TTL: Duration = Duration::from_secs(10);

/// What etcdctl in a container takes longer than it would beside etcd.
const ASKED: Duration = Duration::from_secs(1);

/// Without a quorum, six times the lease.
const AWAY: Duration = Duration::from_secs(60);

/// What the unit runs in the place of its sample.
const APP: &str = "[Service]
ExecStart=
ExecStart=/usr/bin/announcer -- /built/webapp --listen 0.0.0.0:${PORT} --name %H
";

/// The apps run under their announcers now, two of the three. The one that is no balancer runs a copy.
fn prepare(hosts: &Hosts) {
    if hosts.all()[0].run("systemctl is-active announced@shop").status.success() {
        return;
    }
    for host in hosts.all() {
        host.sh("systemctl disable --now announcer@shop app@shop");
        host.put("/etc/systemd/system/announced@.service.d/command.conf", APP);
        host.sh("printf 'ANNOUNCER_REPLICAS=2\\n' >>/etc/haproxy-discover/app-shop.env && systemctl daemon-reload");
    }
    let [first, second, third] = hosts.all() else { panic!("three hosts") };
    third.sh("systemctl enable --now announced@shop");
    first.sh("systemctl enable --now announced@shop");
    second.sh("systemctl enable --now announced@shop");
    assert!(second.sh(STATUS).contains("standing by (2 of 2 run: host3, host1)"), "{}", second.sh(STATUS));
}

const STATUS: &str = "systemctl show --value --property StatusText announced@shop";

/// The hosts that both balancers send requests to.
fn serving(balancers: &[Machine]) -> Option<Vec<String>> {
    let hosts = |it: &Machine| servers_up(it).into_keys().collect::<Vec<_>>();
    let all: Vec<_> = balancers.iter().map(hosts).collect();
    all.windows(2).all(|pair| pair[0] == pair[1]).then(|| all[0].clone())
}

/// Two of three members hang. etcd takes no write, and no lease ends.
pub(super) fn quorum_lost(hosts: &Hosts) -> Row {
    prepare(hosts);
    let copies = || serving(hosts.balancers()).filter(|it| it.len() == 2);
    let before = until(MENDS, "two copies", copies);
    let apps = || hosts.all().iter().map(|it| it.run("pgrep -x webapp").stdout).collect::<Vec<_>>();
    let (running, loads) = (apps(), Loads::start(hosts));
    let members = &hosts.all()[1..];
    members.iter().for_each(|it| _ = it.sh(&format!("systemctl kill --signal STOP etcd@{}", it.name())));
    sleep(AWAY);
    assert!(hosts.etcdctl(&hosts.all()[0], "put /lab/quorum 1").is_none(), "there is no quorum");
    members.iter().for_each(|it| _ = it.sh(&format!("systemctl kill --signal CONT etcd@{}", it.name())));
    let begun = Instant::now();
    until(MENDS, "the store", || hosts.etcdctl(&hosts.all()[0], "put /lab/quorum 1"));
    let back = begun.elapsed();
    // This is longer than a lease, so a copy that ended would show.
    sleep(TTL + Duration::from_secs(5));
    assert_eq!((apps(), copies()), (running, Some(before)), "the same apps on the same hosts");
    loads.row(
        "etcd without a quorum for a minute; two copies on three hosts",
        [Some(0); 2],
        format!("etcd is back after {back:.1?}"),
    )
}

pub(super) fn host_dies(hosts: &Hosts) -> Row {
    prepare(hosts);
    let both = ["host1-8000", "host3-8000"];
    until(MENDS, "two copies", || serving(hosts.balancers()).is_some_and(|it| it == both));
    let loads = Loads::start(hosts);
    let [first, second, dead] = hosts.all() else { panic!("three hosts") };
    // A leader that dies with the host gives all leases their whole time again, once there is another one. 15.1 s were seen.
    while hosts.leader().name() == dead.name() {
        dead.sh(&format!("systemctl restart etcd@{}", dead.name()));
    }
    let begun = Instant::now();
    dead.power_off();
    let folder = "/haproxy-discover/http-services/shop/upstreams/";
    until(MENDS, "its copy elsewhere", || {
        hosts
            .etcdctl(first, &format!("get --prefix --keys-only {folder}"))
            .is_some_and(|keys| keys.contains("host2-8000"))
    });
    let runs = begun.elapsed();
    assert!(runs < TTL + Duration::from_secs(2) + ASKED, "{runs:.1?}");
    let others = ["host1-8000", "host2-8000"];
    until(MENDS, "requests to it", || serving(hosts.balancers()).is_some_and(|it| it == others));
    let serves = begun.elapsed();
    dead.power_on();
    until(MENDS, "it to stand by", || {
        let status = dead.run(STATUS);
        String::from_utf8_lossy(&status.stdout).contains("standing by (2 of 2 run: host2, host1)")
    });
    assert!(serving(hosts.balancers()).is_some_and(|it| it == others), "nothing moves back");
    // A stop hands the slot over.
    second.sh("systemctl restart announced@shop");
    until(MENDS, "the host that came back to have it", || serving(hosts.balancers()).is_some_and(|it| it == both));
    let words = format!("its copy runs elsewhere after {runs:.1?}, and has requests after {serves:.1?}");
    // Half of the requests, until HAProxy's checks find the host dead.
    let most = RATE as usize / 2 * FALL.as_secs() as usize;
    loads.row("a power cut of a host with one of two copies, and back; a restart of the other", [Some(most); 2], words)
}
