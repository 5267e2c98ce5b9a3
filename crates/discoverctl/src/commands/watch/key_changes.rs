//! Changes of settings and overrides, as `watch --changes` prints them. Pure.

use std::collections::BTreeMap;

use discovery::{Author, Change, Key, LogEntry, ServiceId, Topology};
use serde::Serialize;

use crate::print::Cell;

/// The change of a setting or an override.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct KeyChange {
    /// The time at which the change was seen, RFC 3339 in UTC.
    pub(super) time: String,
    /// `set` or `unset`.
    pub(super) change: &'static str,
    pub(super) service: String,
    /// The key, relative to the prefix.
    pub(super) key: String,
    /// The value before; null if the key was absent.
    pub(super) before: Option<String>,
    /// The value after; null if the key was deleted.
    pub(super) after: Option<String>,
    pub(super) revision: i64,
    /// The writer; null if discoverctl didn't make the change.
    pub(super) author: Option<Author>,
}

/// Lists the changes of settings and overrides, of one service if `only` names one. `before` is the store without them.
pub(super) fn list_key_changes(
    before: &Topology,
    changes: &[Change],
    only: Option<&ServiceId>,
    time: &str,
) -> Vec<KeyChange> {
    let mut authors: BTreeMap<i64, Author> = BTreeMap::new();
    for change in changes.iter().filter(|change| Key::is_log(change.key())) {
        if let Change::Put(entry) = change
            && let Ok(logged) = LogEntry::parse(&entry.value)
        {
            authors.insert(entry.mod_revision, logged.author);
        }
    }
    let mut values: BTreeMap<&str, Option<&[u8]>> = BTreeMap::new();
    let mut found = Vec::new();
    for change in changes {
        let (revision, after) = match change {
            Change::Put(entry) => (entry.mod_revision, Some(entry.value.as_slice())),
            Change::Delete { revision, .. } => (*revision, None),
        };
        let Ok(key @ (Key::Setting { .. } | Key::Override { .. })) = change.key().parse::<Key>() else { continue };
        let Some(service) = key.service_id().filter(|id| only.is_none_or(|only| only == *id)) else { continue };
        let standing = before.find_entry(&key).map(|entry| entry.value.as_slice());
        let old = values.insert(change.key(), after).unwrap_or(standing);
        if old == after {
            continue;
        }
        let text = |value: &[u8]| match key.is_secret() {
            true => "…".to_owned(),
            false => String::from_utf8_lossy(value).into_owned(),
        };
        found.push(KeyChange {
            time: time.to_owned(),
            change: if after.is_some() { "set" } else { "unset" },
            service: service.to_string(),
            key: change.key().to_owned(),
            before: old.map(text),
            after: after.map(text),
            revision,
            author: authors.get(&revision).cloned(),
        });
    }
    found
}

impl KeyChange {
    /// The cells of a line: time, change, key, before, after, writer, reason.
    pub(super) fn to_cells(&self) -> [String; 7] {
        let author = self.author.as_ref();
        let reason = author.map(|author| author.reason.as_ref().unwrap_or(&author.command));
        let cell = |value: Option<&String>| Cell::or_dash(value).text().to_owned();
        [
            // The time of day, in UTC like the rest.
            self.time.get(11..19).unwrap_or(&self.time).to_owned(),
            self.change.to_owned(),
            self.key.clone(),
            cell(self.before.as_ref()),
            cell(self.after.as_ref()),
            author.map_or_else(|| "unknown".to_owned(), ToString::to_string),
            cell(reason),
        ]
    }
}

#[cfg(test)]
mod tests {
    use discovery::Entry;

    use super::*;

    fn put(key: &str, value: &str, revision: i64) -> Change {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        Change::Put(Entry { key, value, create_revision: 1, mod_revision: revision, lease: 0 })
    }

    #[test]
    fn a_change_has_its_writer() {
        let before = Topology::from_entries(&[]);
        let entry = r#"{"time":"2026-11-30T10:13:06Z","user":"alice","host":"h","command":"discoverctl set"}"#;
        let changes = [
            put("http-services/shop/balance", "first", 6),
            put("log/20261130T101306.000Z-1", entry, 6),
            put("http-services/shop/upstreams/a", "10.0.0.1:80", 7),
            put("http-services/blog/balance", "first", 8),
            Change::Delete { key: "http-services/shop/balance".into(), revision: 9, previous: None },
        ];
        let shop = "http-services/shop/balance".parse::<Key>().unwrap().service_id().cloned();
        let listed = list_key_changes(&before, &changes, shop.as_ref(), "2026-11-30T10:13:06.000Z");
        let lines: Vec<String> = listed.iter().map(|it| it.to_cells().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "10:13:06 set http-services/shop/balance – first alice@h discoverctl set",
                "10:13:06 unset http-services/shop/balance first – unknown –",
            ]
        );
        assert_eq!(list_key_changes(&before, &changes, None, "").len(), 3);
    }
}
