//! Faults of single keys. Pure.

use std::collections::BTreeSet;

use discovery::{BalancerRecord, Entry, Key, KeyError, Kind, Layout, Service, ServiceId, SettingName, UnknownFields};

use super::answers::join_names;
use super::{Finding, LintInput};

pub(super) fn lint_keys(input: &LintInput) -> Vec<Finding> {
    let store = input.store;
    let mut findings = Vec::new();
    for (key, oddity) in store.topology.ignored_keys() {
        let (kind, todo) = match oddity {
            KeyError::Malformed(_) => {
                ("unfollowed_key", "write it again under a key that is followed, and delete this one")
            }
            KeyError::Unknown | KeyError::BadName(_) => {
                ("unknown_key", "delete it, or put it where it was meant: docs/keys.md lists the keys")
            }
        };
        findings.push(Finding::new(key, kind, oddity.to_string(), todo));
    }
    for (id, service) in store.topology.services() {
        lint_values(service, &mut findings);
        findings.extend(lint_stray_overrides(input, id, service));
        lint_layouts(service, &mut findings);
    }
    if let Some(entry) = store.topology.accept_store() {
        let retaining = store
            .balancers
            .records_by_node()
            .filter(|(_, record)| record.is_some_and(BalancerRecord::retains_anything));
        let retaining: BTreeSet<_> = retaining.map(|(node, _)| node).collect();
        let what = if retaining.is_empty() {
            "left over: no balancer retains what the store lacks".to_owned()
        } else {
            format!("{} still retains what the store lacks", join_names(&retaining))
        };
        findings.push(Finding::at_entry(
            entry,
            "accept_store_left",
            what,
            "discoverctl accept-store ends it and deletes the key",
        ));
    }
    findings
}

fn lint_values(service: &Service, findings: &mut Vec<Finding>) {
    for (_, field) in service.settings() {
        findings.extend(field.value.as_ref().err().map(|refusal| unreadable_finding(&field.entry, refusal)));
        findings.extend(field.refused_words.as_ref().map(|words| unreadable_finding(&field.entry, words)));
    }
    for (_, field) in service.upstreams() {
        let entry = &field.entry;
        match &field.value {
            Err(refusal) => findings.push(unreadable_finding(entry, refusal)),
            Ok(record) => {
                findings.extend(lint_unknown_fields(entry, &record.unknown));
                // A record that is meant to have no lease says `permanent`, as `register` writes it.
                if entry.lease == 0 && !record.permanent {
                    let todo = "announce it with announcer, or write \"permanent\":true into it";
                    findings.push(Finding::at_entry(
                        entry,
                        "no_lease",
                        "a record without a lease never goes by itself",
                        todo,
                    ));
                }
            }
        }
    }
    for (_, field) in service.overrides() {
        let entry = &field.entry;
        match &field.value {
            Err(refusal) => findings.push(unreadable_finding(entry, refusal)),
            Ok(it) => {
                findings.extend(lint_unknown_fields(entry, &it.unknown));
                if it.state.is_none() && it.weight.is_none() {
                    findings.push(Finding::at_entry(entry, "empty_override", "it imposes nothing", "delete it"));
                }
            }
        }
    }
}

/// Finds overrides of upstreams that have no record.
fn lint_stray_overrides(input: &LintInput, service_id: &ServiceId, service: &Service) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, field) in service.overrides().filter(|(id, _)| service.upstream(id).is_none()) {
        let retaining = input.nodes_retaining_upstream(service_id, id);
        let host = field.value.as_ref().ok().and_then(|imposed| imposed.host.as_ref());
        let (what, todo) = match host {
            _ if !retaining.is_empty() => {
                let nodes = join_names(&retaining);
                let what = format!("upstream {id} has no record; {nodes} retains it, and this counts there");
                (what, "leave it until the upstream is announced again or gone".to_owned())
            }
            Some(host) => {
                let what = format!("there is no record of upstream {id}, which was taken out with host {host}");
                (what, format!("discoverctl ready --host {host}, once the host is back or gone for good"))
            }
            None => {
                let todo = "delete it, unless that upstream is to come back so";
                (format!("there is no record of upstream {id}"), todo.to_owned())
            }
        };
        findings.push(Finding::at_entry(&field.entry, "override_without_upstream", what, todo));
    }
    findings
}

pub(super) fn unreadable_finding(entry: &Entry, refusal: &impl ToString) -> Finding {
    let todo = "write it again, or delete it: docs/keys.md says what may stand there";
    Finding::at_entry(entry, "unreadable", refusal.to_string(), todo)
}

fn lint_unknown_fields(entry: &Entry, unknown: &UnknownFields) -> Option<Finding> {
    let names: Vec<String> = unknown.iter().map(|name| discovery::Excerpt::new(name).to_string()).collect();
    if names.is_empty() {
        return None;
    }
    let what = format!("fields that mean nothing: {}", names.join(", "));
    Some(Finding::at_entry(entry, "unknown_field", what, "take them out; no program reads them"))
}

/// Finds keys in the ancestor's layout that a key in the current layout replaces.
fn lint_layouts(service: &Service, findings: &mut Vec<Finding>) {
    for entry in service.entries() {
        let current = match entry.key.parse::<Key>() {
            Ok(Key::Setting { service, layout: Layout::Legacy, name }) => Key::for_setting(&service, name),
            Ok(Key::Upstream { service, layout: Layout::Legacy, id }) => Key::for_upstream(&service, &id),
            _ => continue,
        };
        let current = current.to_string();
        if service.entries().any(|other| other.key == current) {
            let what = format!("{current} stands too, and counts");
            findings.push(Finding::at_entry(entry, "old_layout", what, "delete it, once no old tool writes it"));
        }
    }
    // `tls` replaces the ancestor's `sslpass`, which only HTTP services have.
    let (sslpass, tls) = (service.setting(SettingName::Sslpass), service.setting(SettingName::Tls));
    if let (Some(sslpass), Some(tls), Kind::Http) = (sslpass, tls, service.kind()) {
        let what = format!("{} beats it", tls.entry.key);
        findings.push(Finding::at_entry(&sslpass.entry, "old_layout", what, "delete it"));
    }
}
