//! Durable keys as a YAML document: folder, service, setting, as in the store. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use discovery::{Entry, Key, Override, ServiceId, Setting, Upstream};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::{SingleQuoted, Spanned};

use crate::durable_keys::KeyScope;
use crate::edit::Edit;
use crate::error::Error;
use crate::store::Store;

/// The document that `export` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    /// The value of a key.
    Value(String),
    /// Keys or folders by name.
    Folder(BTreeMap<String, Tree>),
}

/// A parsed document, with valid keys and values only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Document {
    keys: Vec<DocumentKey>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DocumentKey {
    key: Key,
    value: String,
}

impl Tree {
    /// Makes a document of entries. Also returns the keys without text values, which no document can hold.
    pub(crate) fn from_entries<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> (Self, Vec<String>) {
        let (mut root, mut odd) = (BTreeMap::new(), Vec::new());
        for entry in entries {
            match std::str::from_utf8(&entry.value) {
                Ok(value) => insert_value(&mut root, &entry.key, value),
                Err(_) => odd.push(entry.key.clone()),
            }
        }
        (Self::Folder(root), odd)
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Folder(folder) => folder.serialize(serializer),
            // JSON between double quotes needs a backslash before each of its quotes. Single quotes leave it as people
            // write it.
            Self::Value(value) if value.starts_with('{') && !value.contains(|c: char| c == '\'' || c.is_control()) => {
                SingleQuoted(value).serialize(serializer)
            }
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

fn insert_value(folder: &mut BTreeMap<String, Tree>, key: &str, value: &str) {
    match key.split_once('/') {
        None => {
            folder.insert(key.to_owned(), Tree::Value(value.to_owned()));
        }
        Some((name, rest)) => {
            let inner = folder.entry(name.to_owned()).or_insert_with(|| Tree::Folder(BTreeMap::new()));
            if let Tree::Folder(inner) = inner {
                insert_value(inner, rest, value);
            }
        }
    }
}

/// One service in a document: its keys' last parts and their values with line numbers.
#[derive(Debug, Default)]
struct ServiceKeys(Vec<(String, Spanned<String>)>);

impl<'de> Deserialize<'de> for ServiceKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Below;
        impl<'de> Visitor<'de> for Below {
            type Value = ServiceKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a service's settings, upstreams and overrides")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ServiceKeys, A::Error> {
                let mut written = ServiceKeys::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "upstreams" || name == "overrides" {
                        let below: BTreeMap<String, Spanned<String>> = map.next_value()?;
                        written.0.extend(below.into_iter().map(|(id, value)| (format!("{name}/{id}"), value)));
                    } else {
                        written.0.push((name, map.next_value()?));
                    }
                }
                Ok(written)
            }
        }
        deserializer.deserialize_map(Below)
    }
}

impl Document {
    /// Parses a document. It accepts only keys and values that balancers can follow.
    ///
    /// # Errors
    /// [`Error::Usage`] with the file and the line.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, Error> {
        let read: BTreeMap<String, BTreeMap<String, ServiceKeys>> = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map(|at| format!(":{}", at.line())).unwrap_or_default();
            let words = error.without_snippet().to_string();
            Error::Usage(format!("{file}{line}: {words}"))
        })?;
        let mut document = Self::default();
        for (folder, services) in read {
            for (service, written) in services {
                for (rest, value) in written.0 {
                    let line = value.referenced.line();
                    let given = parse_key(&format!("{folder}/{service}/{rest}"), value.value);
                    let given = given.map_err(|words| Error::Usage(format!("{file}:{line}: {words}")))?;
                    document.keys.push(given);
                }
            }
        }
        if document.keys.is_empty() {
            return Err(Error::Usage(format!("{file}: no key in it")));
        }
        Ok(document)
    }

    /// The services in the document.
    fn list_services(&self) -> BTreeSet<&ServiceId> {
        self.keys.iter().filter_map(|given| given.key.service_id()).collect()
    }

    /// Plans the edit that writes the document. With `prune` it deletes all other durable keys of the document's
    /// services.
    pub(crate) fn to_edit(&self, store: &Store, prune: bool) -> Result<Edit, Error> {
        let mut edit = Edit::default();
        for DocumentKey { key, value } in &self.keys {
            // A write would take the key from its lease, and the upstream would stay after its app has ended.
            let is_leased = store.find_entry(&key.to_string()).is_some_and(|entry| entry.lease != 0);
            if is_leased && matches!(key, Key::Upstream { .. }) {
                return Err(Error::Refused(format!("{key} is its announcer's, under its lease; nothing was changed")));
            }
            edit.put(store, key, value.as_str());
        }
        if prune {
            let named: BTreeSet<String> = self.keys.iter().map(|given| given.key.to_string()).collect();
            for id in self.list_services() {
                let there = KeyScope::SettingsAndPermanent.select_entries(&store.entries, Some(id));
                there.keys().filter(|key| !named.contains(**key)).for_each(|key| edit.delete(store, key));
            }
        }
        Ok(edit)
    }
}

fn parse_key(key: &str, value: String) -> Result<DocumentKey, String> {
    let parsed: Key = key.parse().map_err(|oddity| format!("{key}: {oddity}"))?;
    let checked = match &parsed {
        Key::Setting { service, name, .. } => Setting::parse(service.kind, *name, value.as_bytes()).map(drop),
        Key::Upstream { .. } => Upstream::parse(value.as_bytes()).map(drop),
        Key::Override { .. } => Override::parse(value.as_bytes()).map(drop),
        Key::Slot { .. } | Key::Standby { .. } => return Err(format!("{key} is an announcer's, under its lease")),
        Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => return Err(format!("{key} is no key of a service")),
    };
    checked.map_err(|refusal| format!("{key}: {refusal}"))?;
    Ok(DocumentKey { key: parsed, value })
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;
    use expect_test::expect;

    use super::*;

    fn entry(key: &str, value: &str, lease: i64) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 3, lease }
    }

    fn entries() -> Vec<Entry> {
        vec![
            entry("http-services/shop/active", "blue=90 green=10", 0),
            entry("http-services/shop/domain", "shop.com\n*.shop.com\n", 0),
            entry("http-services/shop/overrides/a", r#"{"state":"drain"}"#, 0),
            entry("http-services/shop/sslpass", "", 0),
            entry("http-services/shop/url_reg", "^/a:\\d+", 0),
            entry("tcp-services/db/ports", "3306", 0),
            entry("tcp-services/db/upstreams/1", r#"{"address":"10.0.0.1:3306","permanent":true}"#, 0),
        ]
    }

    #[test]
    fn what_is_printed_is_read() {
        let (tree, odd) = Tree::from_entries(&entries());
        assert!(odd.is_empty());
        let text = serde_saphyr::to_string(&tree).unwrap();
        expect![[r#"
            http-services:
              shop:
                active: blue=90 green=10
                domain: |
                  shop.com
                  *.shop.com
                overrides:
                  a: '{"state":"drain"}'
                sslpass: ""
                url_reg: ^/a:\d+
            tcp-services:
              db:
                ports: "3306"
                upstreams:
                  "1": '{"address":"10.0.0.1:3306","permanent":true}'
        "#]]
        .assert_eq(&text);
        let document = Document::parse("x", &text).unwrap();
        let read: Vec<_> = document.keys.iter().map(|it| (it.key.to_string(), it.value.clone())).collect();
        let written: Vec<_> =
            entries().iter().map(|it| (it.key.clone(), String::from_utf8_lossy(&it.value).into_owned())).collect();
        assert_eq!(read, written);
        // Longer than a line, with blanks that must not get lost.
        let long = format!("{}  two {}", "a.test ".repeat(30), "b ".repeat(60));
        let (tree, _) = Tree::from_entries(&[entry("http-services/shop/domain", &long, 0)]);
        let read: BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>> =
            serde_saphyr::from_str(&serde_saphyr::to_string(&tree).unwrap()).unwrap();
        assert_eq!(read["http-services"]["shop"]["domain"], long);
        let raw = Entry { value: vec![0xff], ..entry("http-services/shop/tls", "", 0) };
        assert_eq!(Tree::from_entries([&raw]).1, ["http-services/shop/tls"]);
        let hostile = Tree::Value("a\u{1b}[31m\u{9b}\u{7}".into());
        let text = serde_saphyr::to_string(&hostile).unwrap();
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| Document::parse("f.yaml", text).unwrap_err().to_string();
        let errors = [
            "http-services:\n  shop:\n    domain: shop.com\n    tls: maybe\n",
            "http-services:\n  shop:\n    colour: blue\n",
            "http-services:\n  shop:\n    upstreams:\n      a: nowhere\n",
            "http-services:\n  shop:\n    overrides:\n      a: {state: drain}\n",
            "http-services:\n  shop: yes\n",
            "http-services:\n  shop:\n    tls: off\n    tls: both\n",
            "web:\n  shop:\n    tls: off\n",
            "a: [",
            "",
        ];
        expect![[r#"
            f.yaml:4: http-services/shop/tls: `maybe`: expected both, terminate, off, passthrough or reencrypt
            f.yaml:3: http-services/shop/colour: unknown key
            f.yaml:4: http-services/shop/upstreams/a: `nowhere`: an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000
            f.yaml:4: expected string scalar at line 4, column 10
            f.yaml:2: expected mapping start at line 2, column 9
            f.yaml:4: duplicate mapping key: tls, set DuplicateKeyPolicy in Options if acceptable at line 4, column 5
            f.yaml:3: web/shop/tls: unknown key
            f.yaml:1: expected mapping start at line 1, column 4
            f.yaml: no key in it"#]].assert_eq(&errors.map(error).join("\n"));
    }

    #[test]
    fn what_is_missing_goes_only_if_it_is_told_to() {
        let mut all = entries();
        all.push(entry("tcp-services/db/upstreams/2", "10.0.0.2:3306", 7));
        let store = Store::from_snapshot(Snapshot { cluster: 1, revision: 9, raft_term: 1, entries: all });
        let document = Document::parse("x", "tcp-services: {db: {ports: 3307}}\n").unwrap();
        let count = |prune| document.to_edit(&store, prune).unwrap().changes().count();
        assert_eq!((count(false), count(true)), (1, 2), "the leased record stays, and so does the other service");
        let leased = Document::parse("x", "tcp-services: {db: {upstreams: {2: 10.0.0.9:1}}}\n").unwrap();
        assert_eq!(leased.to_edit(&store, false).unwrap_err().exit_code(), 4);
    }
}
