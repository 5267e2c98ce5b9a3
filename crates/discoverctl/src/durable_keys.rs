//! Durable keys: settings, overrides and records without a lease.
//!
//! Pure: selects keys and checks claims. It writes nothing.

use std::collections::BTreeMap;

use discovery::{Entry, Key, ServiceId, Setting, Topology, find_claim_conflicts};

use crate::edit::Edit;
use crate::error::Error;
use crate::store::Store;

/// A selection of the services' keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyScope {
    /// Settings and overrides, without any record.
    Settings,
    /// Also the upstreams' records that have no lease.
    SettingsAndPermanent,
    /// Also all records of upstreams.
    SettingsAndUpstreams,
}

impl KeyScope {
    /// The selection contains this key.
    pub(crate) fn has_entry(self, entry: &Entry) -> bool {
        match entry.key.parse() {
            Ok(Key::Setting { .. } | Key::Override { .. }) => true,
            Ok(Key::Upstream { .. }) => {
                self == Self::SettingsAndUpstreams || (self == Self::SettingsAndPermanent && entry.lease == 0)
            }
            _ => false,
        }
    }

    /// Selects entries by key, of one service if `only` names one.
    pub(crate) fn select_entries<'a>(
        self,
        entries: &'a [Entry],
        only: Option<&'a ServiceId>,
    ) -> BTreeMap<&'a str, &'a Entry> {
        let mut selected = BTreeMap::new();
        for entry in entries.iter().filter(|entry| self.has_entry(entry)) {
            let key = entry.key.parse::<Key>().ok();
            if only.is_none() || key.as_ref().and_then(Key::service_id) == only {
                selected.insert(entry.key.as_str(), entry);
            }
        }
        selected
    }
}

/// Reads a value as text, so that it can be written again.
pub(crate) fn value_text(entry: &Entry) -> Result<&str, Error> {
    std::str::from_utf8(&entry.value).map_err(|_| Error::Refused(format!("the value of {} is no text", entry.key)))
}

/// Refuses an edit after which two services claim the same host and path, or port. A claim that both have already is
/// allowed.
pub(crate) fn check_claims(store: &Store, edit: &Edit) -> Result<(), Error> {
    let after = edit.apply_to(&store.topology);
    let touched = edit.changes().filter_map(|(key, _)| key.parse::<Key>().ok()?.service_id().cloned());
    for id in touched.collect::<std::collections::BTreeSet<_>>() {
        let settings = after.services().get(&id).map(|service| collect_settings(service)).unwrap_or_default();
        // The check compares the new settings with the service's old ones, so that only new claims count.
        let mut services = after.services().clone();
        match store.topology.services().get(&id) {
            Some(standing) => services.insert(id.clone(), standing.clone()),
            None => services.remove(&id),
        };
        if let Some(rival) = find_claim_conflicts(&services, &id, &settings).first() {
            return Err(Error::Refused(format!(
                "{rival}: one service has it, and it wouldn't be {id}; nothing was changed"
            )));
        }
    }
    Ok(())
}

/// Lists the folders of the service's keys: the current layout, then the ancestor's.
pub(crate) fn list_folders(id: &ServiceId) -> Vec<String> {
    // The ancestor has HTTP services only.
    let ancestor = (id.kind == discovery::Kind::Http).then(|| format!("services/{}/", id.name));
    [id.folder_path()].into_iter().chain(ancestor).collect()
}

/// Finds the service that was typed, in the present store or else in the past one.
pub(crate) fn find_service(
    named: &crate::target::ServiceArg,
    now: &Topology,
    then: &Topology,
) -> Result<ServiceId, Error> {
    named.find_service(now).or_else(|error| named.find_service(then).map_err(|_| error))
}

fn collect_settings(service: &discovery::Service) -> Vec<Setting> {
    service.settings().filter_map(|(_, field)| field.value.as_ref().ok().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;

    use super::*;

    pub(crate) fn entry(key: &str, value: &str, lease: i64) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease }
    }

    #[test]
    fn what_stays() {
        let entries = [
            entry("http-services/a/domain", "a.com", 0),
            entry("http-services/a/overrides/x", "{}", 0),
            entry("http-services/a/upstreams/x", "10.0.0.1:80", 7),
            entry("http-services/a/upstreams/y", "10.0.0.1:81", 0),
            entry("http-services/a/whatever", "", 0),
            entry("services/a/color", "blue", 0),
            entry("services/b/domain", "b.com", 0),
            entry("balancers/lb1", "{}", 7),
            entry("control/accept-store", "{}", 0),
        ];
        let id = "services/a/domain".parse::<Key>().unwrap().service_id().unwrap().clone();
        let count = |kept: KeyScope, only| kept.select_entries(&entries, only).len();
        assert_eq!(
            [KeyScope::Settings, KeyScope::SettingsAndPermanent, KeyScope::SettingsAndUpstreams]
                .map(|it| count(it, None)),
            [4, 5, 6]
        );
        assert_eq!(
            [KeyScope::Settings, KeyScope::SettingsAndPermanent, KeyScope::SettingsAndUpstreams]
                .map(|it| count(it, Some(&id))),
            [3, 4, 5]
        );
        assert_eq!(list_folders(&id), ["http-services/a/", "services/a/"]);
    }

    #[test]
    fn claims_may_be_exchanged_and_not_taken() {
        let entries = vec![
            entry("http-services/a/domain", "a.com", 0),
            entry("http-services/b/domain", "b.com", 0),
            entry("http-services/c/domain", "c.com", 0),
        ];
        let store = Store::from_snapshot(Snapshot { cluster: 1, revision: 9, raft_term: 1, entries });
        let check = |changes: &[(&str, &str)]| {
            let mut edit = Edit::default();
            for (key, value) in changes {
                edit.put(&store, &key.parse().unwrap(), *value);
            }
            check_claims(&store, &edit).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[("http-services/a/domain", "b.com"), ("http-services/b/domain", "a.com")]), Ok(()));
        let taken = check(&[("http-services/a/domain", "c.com")]).unwrap_err();
        assert!(taken.starts_with("c.com/ is named by http-c already"), "{taken}");
        assert!(check(&[("http-services/x/domain", "x.com"), ("http-services/y/domain", "x.com")]).is_err());
    }
}
