//! Programs that are killed, replaced or stopped, and a disk that is full.

use std::time::Instant;

use lab::{Hosts, Machine, ask_admin, servers_up, until};

use super::{Loads, MENDS, Row, follows};

/// As people do it: out of both balancers, then in again.
pub(super) fn app_stopped(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let (host, begun) = (&hosts.all()[2], Instant::now());
    host.sh("systemctl stop app@shop");
    let stopped = begun.elapsed();
    for balancer in hosts.balancers() {
        assert_eq!(servers_up(balancer).len(), 2, "{}: it is out before it is stopped", balancer.name());
    }
    host.sh("systemctl start app@shop");
    hosts.wait_whole(MENDS);
    loads.row("an app is stopped and started", [Some(0); 2], format!("stopped within {stopped:.1?}"))
}

pub(super) fn confgen_killed(hosts: &Hosts) -> Row {
    let loads = Loads::start(hosts);
    let begun = Instant::now();
    hosts.balancers()[1].sh("systemctl kill --signal KILL confgen");
    follows(hosts, &hosts.all()[2], hosts.balancers(), 93);
    let converged = begun.elapsed();
    hosts.wait_whole(MENDS);
    loads.row("confgen killed on a balancer", [Some(0); 2], format!("a change is followed {converged:.1?} after it"))
}

/// As docs/deploy.md says, host by host.
pub(super) fn upgraded(hosts: &Hosts) -> Row {
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
        [Some(0); 2],
        format!("three hosts and three members in {converged:.0?}"),
    )
}

/// While confgen can't write, HAProxy follows over its Runtime API, and what needs a file waits.
pub(super) fn disk_full(hosts: &Hosts) -> Row {
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
    let ready = ask_admin("/ready");
    until(MENDS, "confgen to say that it isn't in sync", || !host.run(&ready).status.success());
    let begun = Instant::now();
    host.sh("rm -f /etc/haproxy/full /var/lib/confgen/full /var/lib/confgen/more");
    until(MENDS, "the file to follow", || {
        host.run("grep 'balance leastconn' /etc/haproxy/haproxy.cfg").status.success()
    });
    hosts.wait_whole(MENDS);
    let converged = begun.elapsed();
    follows(hosts, &hosts.all()[2], hosts.balancers(), 90);
    loads.row("a full disk on a balancer", [Some(0); 2], format!("in sync {converged:.1?} after there is room"))
}
