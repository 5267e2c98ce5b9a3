//! The store: its leader cut off, and a balancer cut off from it.

use std::time::{Duration, Instant};

use lab::{Hosts, servers_up, until};

use super::{Loads, MENDS, Row, follows, most_of_one_host};

/// The member is cut off, its host isn't: clients of it there find it without a leader, and go on to another.
pub(super) fn leader_cut_off(hosts: &Hosts) -> Row {
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
        [Some(0); 2],
        format!("a change is followed {converged:.1?} after the cut"),
    )
}

/// confgen alone is cut off. Its balancer goes on with what it has; when an app then stops on another host, nobody waits
/// for this balancer, and HAProxy's retry on another server covers what finds the port closed.
pub(super) fn balancer_cut_off_from_etcd(hosts: &Hosts) -> Row {
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
    let words = format!("a change is followed {converged:.1?} after the cut's end");
    loads.row("a balancer cut off from etcd only; an app stops meanwhile", [Some(0), Some(most_of_one_host())], words)
}
