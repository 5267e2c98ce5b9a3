//! Keys of upstreams that no balancer can follow, because their ids break the rule of names. Pure.

use std::collections::BTreeMap;

use discovery::ServiceId;
use serde::Serialize;

use crate::print::{Block, Cell, Printable, Table};
use crate::store::{Store, lossy_text};

/// A key that isn't followed.
#[derive(Debug, Serialize)]
pub(super) struct UnfollowedKey {
    /// The key, relative to the prefix.
    pub(super) key: String,
    /// The value in the store.
    value: String,
    /// The reason why it isn't followed, and the remedy.
    pub(super) reason: String,
    /// By balancer, the reason that it reports itself; null if it doesn't name the key.
    balancers: BTreeMap<String, Option<String>>,
}

/// The answer of `explain SVC/ID` if the ID breaks the rule of names.
#[derive(Debug, Serialize)]
pub(super) struct Unfollowed {
    /// The target as it was typed.
    id: String,
    revision: i64,
    /// The record and the override.
    unfollowed: Vec<UnfollowedKey>,
}

impl UnfollowedKey {
    fn new(store: &Store, key: &str, reason: &str) -> Self {
        let value = store.find_entry(key).map(|entry| lossy_text(entry).trim().to_owned());
        let balancers = store.balancers.records_by_node().map(|(node, balancer)| {
            let refuses = balancer.and_then(|balancer| balancer.quarantine_reason(key)).map(str::to_owned);
            (node.to_string(), refuses)
        });
        let balancers = balancers.collect();
        Self { key: key.to_owned(), value: value.unwrap_or_default(), reason: reason.to_owned(), balancers }
    }

    /// Lists such keys below a service's folder, in either layout.
    pub(super) fn list_below_service(store: &Store, service: &ServiceId) -> Vec<Self> {
        let mut folders = vec![service.folder_path()];
        if service.kind == discovery::Kind::Http {
            folders.push(format!("services/{}/", service.name));
        }
        let keys = store.topology.malformed_keys().iter();
        let keys = keys.filter(|(key, _)| folders.iter().any(|folder| key.starts_with(folder)));
        keys.map(|(key, reason)| Self::new(store, key, reason)).collect()
    }
}

impl Unfollowed {
    /// Finds the keys of `SVC/ID` as it was typed, or a whole key that was typed. None without such a key.
    pub(super) fn find_named(store: &Store, typed: &str) -> Option<Self> {
        Self::find_matching(store, typed, |key| is_named(key, typed))
    }

    /// Finds the keys of a service that has no valid key. None without such a key.
    pub(super) fn find_below_service(store: &Store, typed: &str) -> Option<Self> {
        Self::find_matching(store, typed, |key| is_below(key, typed))
    }

    fn find_matching(store: &Store, typed: &str, is_meant: impl Fn(&str) -> bool) -> Option<Self> {
        let keys = store.topology.malformed_keys().iter().filter(|(key, _)| is_meant(key));
        let unfollowed: Vec<UnfollowedKey> = keys.map(|(key, reason)| UnfollowedKey::new(store, key, reason)).collect();
        (!unfollowed.is_empty()).then(|| Self { id: typed.to_owned(), revision: store.revision, unfollowed })
    }
}

/// The key is that of the typed upstream: `web/a:1` or `http-web/a:1` names `http-services/web/upstreams/a:1`.
fn is_named(key: &str, typed: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    let [folder, service, "upstreams" | "overrides", id @ ..] = parts.as_slice() else { return key == typed };
    let kind = folder.split('-').next().unwrap_or_default();
    let id = id.join("/");
    key == typed || typed == format!("{service}/{id}") || typed == format!("{kind}-{service}/{id}")
}

/// The key is below the typed service: `web` or `http-web`.
fn is_below(key: &str, typed: &str) -> bool {
    let mut parts = key.split('/');
    let (Some(folder), Some(service)) = (parts.next(), parts.next()) else { return false };
    let kind = folder.split('-').next().unwrap_or_default();
    typed == service || typed == format!("{kind}-{service}")
}

impl Printable for Unfollowed {
    fn to_blocks(&self) -> Vec<Block> {
        let head = Block::Text(format!("{} at revision {}", self.id, self.revision));
        [head].into_iter().chain(keys_block(&self.unfollowed)).collect()
    }
}

/// The keys as a table; None if there are none.
pub(super) fn keys_block(keys: &[UnfollowedKey]) -> Option<Block> {
    let mut table = Table::new(["KEY", "VALUE", "NOT FOLLOWED", "NAMED BY"]);
    for it in keys {
        let naming = it.balancers.iter().filter(|(_, reason)| reason.is_some()).map(|(node, _)| node.as_str());
        let naming = naming.collect::<Vec<_>>().join(", ");
        let naming = Cell::or_dash(Some(naming).filter(|naming| !naming.is_empty()));
        table.add_row([it.key.as_str().into(), it.value.as_str().into(), Cell::bad(&it.reason), naming]);
    }
    (!keys.is_empty()).then_some(Block::Table(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn an_upstream_whose_id_is_no_name_is_found_by_it() {
        let store = store(&[
            (
                "balancers/lb1",
                r#"{"cluster":"1","seen":1,"applied":1,"pending":[],"held":[],"draining":{},"quarantined":{"http-services/web/upstreams/host:web:80":"no `:`"}}"#,
            ),
            ("http-services/web/domain", "web.test"),
            ("http-services/web/upstreams/host:web:80", "10.0.0.1:80"),
            ("tcp-services/db/overrides/host:db:1", "{}"),
        ]);
        for typed in ["web/host:web:80", "http-web/host:web:80", "http-services/web/upstreams/host:web:80"] {
            let found = Unfollowed::find_named(&store, typed).unwrap();
            let [key] = found.unfollowed.as_slice() else { panic!("{found:?}") };
            assert!(key.reason.contains("write `-` instead") && key.value == "10.0.0.1:80", "{key:?}");
            assert_eq!(key.balancers["lb1"].as_deref(), Some("no `:`"));
        }
        assert!(Unfollowed::find_named(&store, "db/host:db:1").is_some(), "what is imposed on it, too");
        assert!(Unfollowed::find_named(&store, "web/host:web:81").is_none());
        assert!(
            Unfollowed::find_below_service(&store, "db").is_some()
                && Unfollowed::find_below_service(&store, "d").is_none()
        );
        let service = "http-services/web/domain".parse::<discovery::Key>().unwrap().service_id().unwrap().clone();
        assert_eq!(UnfollowedKey::list_below_service(&store, &service).len(), 1);
    }
}
