//! Records that lead each balancer to itself. Pure.

use super::super::facts::Facts;
use super::{Area, Finding, Findings};
use crate::balancer_api::is_loopback;
use crate::store::Store;

/// Finds records with an address on loopback, where a balancer is on another host than the app.
pub(super) fn judge_loopback(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Loopback);
    let Some(store) = &facts.store else { return found.list };
    for (_, field) in store.topology.services().values().flat_map(|service| service.upstreams()) {
        let Ok(record) = &field.value else { continue };
        let address = record.address.socket_addr();
        let strangers = list_strangers(store, record.host.as_ref().map(discovery::HostName::as_str));
        if !address.ip().to_canonical().is_loopback() || strangers.is_empty() {
            continue;
        }
        let what = format!("{address} is {}'s own address, not the app's", strangers.join(" and "));
        let why = "a loopback address is every host's own, so the balancer sends the requests to itself";
        let todo = "announce an address that the balancer reaches: announcer --upstream ADDRESS:PORT, or --listen";
        found.error(&field.entry.key, what, why, todo);
    }
    found.list
}

/// The balancers that are certainly not on the app's host. A balancer with an API on loopback may be on any host, so of several
/// at most one is on the app's.
fn list_strangers(store: &Store, host: Option<&str>) -> Vec<String> {
    let nodes: Vec<(&str, bool)> = store
        .balancers
        .records_by_node()
        .map(|(node, record)| (node.as_str(), record.and_then(|it| it.url.as_deref()).is_some_and(is_loopback)))
        .collect();
    let is_alone = nodes.len() == 1;
    let is_stranger = |(node, is_local): &(&str, bool)| match host {
        // `--node` is the host's name unless it is set. A single balancer with a loopback API may be the whole installation.
        Some(host) => *node != host && !(is_alone && *is_local),
        None => !is_alone,
    };
    nodes.iter().filter(|it| is_stranger(it)).map(|(node, _)| (*node).to_owned()).collect()
}
