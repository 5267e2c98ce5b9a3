//! What is odd about a key by itself.

use discovery::{Entry, Key, Kind, Layout, Oddity, Service, SettingName, Unknown};

use super::Finding;
use crate::store::Store;

pub(super) fn findings(store: &Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, oddity) in store.topology.odd() {
        let (kind, todo) = match oddity {
            Oddity::Unfollowed(_) => {
                ("unfollowed_key", "write it again under a key that is followed, and delete this one")
            }
            Oddity::Unknown | Oddity::Name(_) => {
                ("unknown_key", "delete it, or put it where it was meant: docs/keys.md lists the keys")
            }
        };
        findings.push(Finding::new(key, kind, oddity.to_string(), todo));
    }
    for service in store.topology.services().values() {
        of_values(service, &mut findings);
        of_layouts(service, &mut findings);
    }
    if let Some(entry) = store.topology.accept_store() {
        let todo = "delete it once every balancer follows: it lets the next loss of the store through as well";
        findings.push(Finding::at(
            entry,
            "accept_store_left",
            "a wiped store was accepted, and this is left over",
            todo,
        ));
    }
    findings
}

fn of_values(service: &Service, findings: &mut Vec<Finding>) {
    for (_, field) in service.settings() {
        findings.extend(field.value.as_ref().err().map(|refusal| unread(&field.entry, refusal)));
        findings.extend(field.unread.as_ref().map(|words| unread(&field.entry, words)));
    }
    for (_, field) in service.upstreams() {
        let entry = &field.entry;
        match &field.value {
            Err(refusal) => findings.push(unread(entry, refusal)),
            Ok(record) => {
                findings.extend(unknown_fields(entry, &record.unknown));
                if entry.lease == 0 && !record.permanent {
                    let todo = "announce it with announcer, or write \"permanent\":true into it";
                    findings.push(Finding::at(
                        entry,
                        "no_lease",
                        "a record without a lease never goes by itself",
                        todo,
                    ));
                }
            }
        }
    }
    for (id, field) in service.overrides() {
        let entry = &field.entry;
        match &field.value {
            Err(refusal) => findings.push(unread(entry, refusal)),
            Ok(it) => {
                findings.extend(unknown_fields(entry, &it.unknown));
                if it.state.is_none() && it.weight.is_none() {
                    findings.push(Finding::at(entry, "empty_override", "it imposes nothing", "delete it"));
                }
            }
        }
        if service.upstream(id).is_none() {
            let what = format!("there is no upstream {id}");
            let todo = "delete it, unless that upstream is to come back drained";
            findings.push(Finding::at(entry, "override_without_upstream", what, todo));
        }
    }
}

fn unread(entry: &Entry, refusal: &impl ToString) -> Finding {
    let todo = "write it again, or delete it: docs/keys.md says what may stand there";
    Finding::at(entry, "unreadable", refusal.to_string(), todo)
}

fn unknown_fields(entry: &Entry, unknown: &Unknown) -> Option<Finding> {
    let names: Vec<String> = unknown.keys().map(|name| discovery::Excerpt::new(name).to_string()).collect();
    let what = || format!("fields that mean nothing: {}", names.join(", "));
    (!names.is_empty()).then(|| Finding::at(entry, "unknown_field", what(), "take them out; nobody reads them"))
}

/// The ancestor's layout, where the current one says the same thing and counts.
fn of_layouts(service: &Service, findings: &mut Vec<Finding>) {
    let counts = |key: &Key| service.entries().any(|other| other.key == key.to_string());
    for entry in service.entries() {
        let current = match entry.key.parse::<Key>() {
            Ok(Key::Setting { service, layout: Layout::Ancestor, name }) => Key::setting(&service, name),
            Ok(Key::Upstream { service, layout: Layout::Ancestor, id }) => Key::upstream(&service, &id),
            _ => continue,
        };
        if counts(&current) {
            let what = format!("{current} says the same thing, and counts");
            findings.push(Finding::at(entry, "old_layout", what, "delete it, once no old tool writes it"));
        }
    }
    let (sslpass, tls) = (service.setting(SettingName::Sslpass), service.setting(SettingName::Tls));
    if let (Some(sslpass), Some(tls), Kind::Http) = (sslpass, tls, service.kind()) {
        let what = format!("{} beats it", tls.entry.key);
        findings.push(Finding::at(&sslpass.entry, "old_layout", what, "delete it"));
    }
}
