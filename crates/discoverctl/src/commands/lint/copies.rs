//! Faults of services with a limited number of copies, and of hosts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use discovery::{CopyReport, HostName, ServiceId};

use super::keys::unreadable_finding;
use super::{Finding, LintInput};

/// The names that every host has for itself.
const LOCAL_NAMES: [&str; 3] = ["localhost", "localhost.localdomain", "ip6-localhost"];

pub(super) fn lint_copies(input: &LintInput) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, copies) in input.store.topology.copies() {
        let slots = copies.slots().map(|(_, field)| (&field.entry, field.refusal_text()));
        let standby = copies.standby().map(|(_, field)| (&field.entry, field.refusal_text()));
        for (entry, refusal) in slots.chain(standby) {
            findings.extend(refusal.map(|refusal| unreadable_finding(entry, &refusal)));
        }
        findings.extend(lint_missing_copies(id, &CopyReport::new(copies)));
    }
    findings.extend(lint_local_names(input));
    findings
}

/// Finds a service of which fewer copies run than are wanted.
fn lint_missing_copies(id: &ServiceId, report: &CopyReport) -> Option<Finding> {
    let what = report.remark.clone().filter(|_| report.lacks_copies())?;
    let todo = format!("start the announcer on another host; discoverctl explain {} names each copy", id.name);
    Some(Finding::new(id.folder_path(), "copies_missing", what, todo))
}

/// Finds several hosts that are all called `localhost`. Other names may have several addresses: a host has as many as it likes.
fn lint_local_names(input: &LintInput) -> Vec<Finding> {
    let mut named: BTreeMap<&HostName, BTreeMap<IpAddr, &discovery::Entry>> = BTreeMap::new();
    let services = input.store.topology.services().values();
    for (_, field) in services.flat_map(|service| service.upstreams()) {
        let Ok(record) = &field.value else { continue };
        if let Some(host) = record.host.as_ref().filter(|host| LOCAL_NAMES.contains(&host.as_str())) {
            named.entry(host).or_default().entry(record.address.socket_addr().ip()).or_insert(&field.entry);
        }
    }
    let mut findings = Vec::new();
    for (host, by_address) in named.into_iter().filter(|(_, by_address)| by_address.len() > 1) {
        let addresses: BTreeSet<String> = by_address.keys().map(ToString::to_string).collect();
        let addresses = addresses.into_iter().collect::<Vec<_>>().join(", ");
        for entry in by_address.into_values() {
            let what = format!("several hosts are called {host}: {addresses}");
            let todo = "give each host a hostname, or its announcers a --host-name";
            findings.push(Finding::at_entry(entry, "host_name", what, todo));
        }
    }
    findings
}
