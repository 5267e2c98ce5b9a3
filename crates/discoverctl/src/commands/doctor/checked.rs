//! The list of what was checked, and of what could not be. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
use super::judge::EXPIRES_SOON_DAYS;

/// The answer's last lines: each area with what was looked at.
pub(super) fn list_checked(facts: &Facts) -> Vec<String> {
    let mut checked = Vec::new();
    let members: Vec<_> = facts.members.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
    if let Some(slowest) = members.iter().map(|member| member.latency).max() {
        let releases: BTreeSet<&str> = members.iter().map(|member| member.version.as_str()).collect();
        checked.push(format!(
            "store: {} of {} endpoints answer, etcd {}, within {} ms",
            members.len(),
            facts.members.len(),
            releases.into_iter().collect::<Vec<_>>().join(" and "),
            slowest.as_millis().max(1)
        ));
    }
    let Some(store) = &facts.store else { return checked };
    checked.push(format!("store: {} keys below {} at revision {}", store.entries.len(), facts.prefix, store.revision));
    let allowed = facts.rights.iter().filter(|(_, answer)| answer.is_ok()).map(|(folder, _)| *folder);
    checked.push(format!("rights: read all keys, write below {}", list_or_none(allowed)));
    let asked = facts.status.iter().filter(|(_, answer)| answer.is_ok()).map(|(node, _)| node.as_str());
    let asked = list_or_none(asked);
    checked.push(format!("balancers: {asked}: problems, revision, old processes, releases"));
    checked.push(format!("certificates: ends within {EXPIRES_SOON_DAYS} days, hosts without one, at {asked}"));
    checked.push(format!("clocks: {}", list_or_none(facts.clocks.keys().map(String::as_str))));
    checked.push("keys: everything that lint checks, ports, addresses on loopback".to_owned());
    checked
}

/// Each area that isn't known, or not for all, with the reason.
pub(super) fn list_unknown(facts: &Facts) -> BTreeMap<String, String> {
    let mut unknown = BTreeMap::new();
    if facts.store.is_none() {
        unknown.insert("everything else".to_owned(), "the store can't be read".to_owned());
        return unknown;
    }
    let silent = facts.status.iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| node);
    let silent: Vec<&str> = silent.chain(facts.silent.keys()).map(discovery::Node::as_str).collect();
    if !silent.is_empty() {
        let reason = format!("{} can't be asked", silent.join(", "));
        unknown.insert("certificates, ports, releases and clocks".to_owned(), reason);
    }
    // etcd behind a proxy may answer gRPC only.
    let undated: Vec<&str> =
        facts.asked_clocks.iter().map(String::as_str).filter(|name| !facts.clocks.contains_key(*name)).collect();
    if !undated.is_empty() {
        unknown.insert("some clocks".to_owned(), format!("no date from {}", undated.join(", ")));
    }
    unknown
}

fn list_or_none<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
