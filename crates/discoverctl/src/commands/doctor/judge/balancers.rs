//! Faults of balancers, their API, their clocks and their releases. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::facts::Facts;
use super::{Area, Finding, Findings};
use crate::balancer_api::{ClockOffset, Status, is_loopback};
use crate::store::Store;

/// An old HAProxy process ends with its last connection, or after `hard-stop-after`.
const OLD_FOR: Duration = Duration::from_secs(3_600);

/// A clock that is further away makes logs and the ends of certificates misleading.
const MAX_OFFSET: Duration = Duration::from_secs(5);

/// True if the balancer lacks a change of a service's key. Other keys raise the store's revision too.
pub(crate) fn is_behind(status: &Status, store: &Store) -> bool {
    let newest = store.newest_revision_of(store.topology.services().keys());
    status.store.cluster == store.cluster.to_string() && status.applied.unwrap_or_default() < newest
}

/// Finds balancers that lack changes, and those with processes that stay. `problems` has what a balancer itself finds not right.
pub(super) fn judge_balancers(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Balancers);
    let Some(store) = &facts.store else { return found.list };
    // A store without services has nothing to serve. That is a store's finding.
    if store.balancers.is_empty() && !store.topology.services().is_empty() {
        let why = "no confgen has written balancers/ in this store: nothing is served, or the balancers have another --prefix or etcd";
        let todo = "systemctl status confgen, and journalctl --unit confgen, on each balancer";
        found.error("balancers/", "no balancer lives", why, todo);
    }
    for (node, status) in facts.status.iter().filter_map(|(node, it)| Some((node.as_str(), it.as_ref().ok()?))) {
        judge_balancer(&mut found, node, status, store);
    }
    found.list
}

fn judge_balancer(found: &mut Findings, node: &str, status: &Status, store: &Store) {
    if is_behind(status, store) {
        let newest = store.newest_revision_of(store.topology.services().keys());
        let what = format!("it has applied revision {} of {newest}", status.applied.unwrap_or_default());
        let why = "the changes since are not served there, and a drain waits for them";
        found.warn(node, what, why, "discoverctl list; its /api/v1/history says what was tried");
    }
    let old = &status.old_haproxys;
    if old.oldest_seconds >= OLD_FOR.as_secs() {
        let hours = old.oldest_seconds / 3_600;
        let what = format!(
            "{} old HAProxy processes stay, the oldest for {hours} h, with {} connections",
            old.processes, old.connections
        );
        let why = "each has the memory of a HAProxy, and a drain waits for those that may still choose the upstream";
        found.warn(node, what, why, "set hard-stop-after in HAProxy's `global`, or handover's --old-processes");
    }
}

/// Finds balancers that can't be asked.
pub(super) fn judge_api(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Api);
    let why = "check, explain, certs and drain can't tell what it serves, and refuse to guess";
    let reasons = facts.status.iter().filter_map(|(node, it)| Some((node, it.as_ref().err()?)));
    for (node, reason) in reasons.chain(&facts.silent) {
        let url = facts.store.as_ref().and_then(|store| {
            store.balancers.records_by_node().find(|(it, _)| *it == node).and_then(|(_, record)| record?.url.clone())
        });
        // Without a URL `lint` has the finding.
        let Some(url) = url else { continue };
        found.area = if is_loopback(&url) { Area::Loopback } else { Area::Api };
        found.error(node.as_str(), format!("it can't be asked: {reason}"), why, advise_on_api(reason, &url));
    }
    found.list
}

/// The command that mends the API, as far as the reason tells.
fn advise_on_api(reason: &str, url: &str) -> String {
    // The words are those of `balancer_api` and of rustls. A reason of another kind gets the advice at the end.
    if reason.contains("token") {
        return "discoverctl --api-token-file FILE doctor, with the token of its confgen's --admin-token-file".into();
    }
    if reason.contains("certificate") || reason.contains("tls") || reason.contains("TLS") {
        return "discoverctl --api-cacert FILE doctor, with the CA of its confgen's certificate".into();
    }
    if is_loopback(url) {
        return "run discoverctl on that host, or set --admin of its confgen to an address that other hosts reach"
            .into();
    }
    if reason.contains("answers there") {
        return "give each balancer a --node, and an --admin-host of its own: discoverctl list".into();
    }
    format!("curl {url}/live from here, and systemctl status confgen on it")
}

/// Finds clocks that differ from this host's.
pub(super) fn judge_clocks(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Clocks);
    for (name, reading) in &facts.clocks {
        let what = match reading.offset() {
            ClockOffset::Ahead(by) if by > MAX_OFFSET => {
                format!("its clock is {} s ahead of this host's", by.as_secs())
            }
            ClockOffset::Behind(by) if by > MAX_OFFSET => format!("its clock is {} s behind this host's", by.as_secs()),
            _ => continue,
        };
        let why = "times in logs, history and the ends of certificates mislead; leases don't depend on clocks";
        found.warn(name, what, why, "chronyc tracking, or timedatectl, on both hosts");
    }
    found.list
}

/// Finds releases that differ.
pub(super) fn judge_versions(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Versions);
    let (mut confgens, mut haproxys) = (Nodes::new(), Nodes::new());
    for (node, status) in facts.status.iter().filter_map(|(node, it)| Some((node.as_str(), it.as_ref().ok()?))) {
        confgens.entry(&status.version).or_default().insert(node);
        if let Some(haproxy) = &status.haproxy {
            haproxys.entry(&haproxy.version).or_default().insert(node);
        }
    }
    for (what, releases) in [("confgen", &confgens), ("HAProxy", &haproxys)] {
        if releases.len() > 1 {
            let each = releases.iter().map(|(release, nodes)| format!("{release} on {}", join(nodes)));
            let what = format!("balancers have different releases of {what}: {}", each.collect::<Vec<_>>().join(", "));
            let why = "one of them may refuse a key that another one follows";
            found.warn("balancers/", what, why, "upgrade the others, one after the other");
        }
    }
    // Balancers and discoverctl come from one release, so a difference is an upgrade that isn't complete.
    for (release, nodes) in confgens.iter().filter(|(release, _)| **release != facts.release) {
        let what = format!("discoverctl is {}, confgen is {release} on {}", facts.release, join(nodes));
        let why = "the older one may not know what the newer one writes";
        found.warn("discoverctl", what, why, "install the same release on all hosts: discoverctl --version");
    }
    found.list
}

/// The nodes by something that they have in common.
type Nodes<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn join(nodes: &BTreeSet<&str>) -> String {
    nodes.iter().copied().collect::<Vec<_>>().join(", ")
}
