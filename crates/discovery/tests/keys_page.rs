//! `docs/keys.md` has every key that there is, and each row and example of it is what the code reads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use discovery::{
    Acceptance, BalancerRecord, Entry, Key, Kind, Layout, LogEntry, Override, ServiceId, Setting, SettingName, Slot,
    Standby, Topology, Upstream,
};

const PAGE: &str = include_str!("../../../docs/keys.md");

/// What every key in the page's commands begins with.
const PREFIX: &str = "/haproxy-discover/";

/// A row of the tables of keys.
struct Row {
    /// `http-services/<svc>/domain`, the braces of the page taken apart.
    patterns: Vec<String>,
    /// A value that is refused.
    refused: Option<String>,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for table in PAGE.split("\n\n").filter(|part| part.starts_with("| key |")) {
        for line in table.lines().skip(2) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 7, "{line}");
            let refused = cells[4].split('`').nth(1).map(str::to_owned);
            rows.push(Row { patterns: patterns(cells[1].trim_matches('`')), refused });
        }
    }
    rows
}

fn patterns(cell: &str) -> Vec<String> {
    match cell.strip_prefix("{http,tcp}") {
        Some(rest) => ["http", "tcp"].map(|kind| format!("{kind}{rest}")).into(),
        None => vec![cell.to_owned()],
    }
}

fn matches(pattern: &str, key: &str) -> bool {
    let (pattern, key): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), key.split('/').collect());
    pattern.len() == key.len() && pattern.iter().zip(&key).all(|(p, k)| p.starts_with('<') || p == k)
}

/// The key and the value of each line that writes one.
fn examples() -> Vec<Entry> {
    let lines = PAGE.lines().filter_map(|line| line.strip_prefix("    etcdctl put "));
    let words = lines.map(|line| shlex::split(line).unwrap());
    let entry = |(words, revision): (Vec<String>, i64)| {
        let [key, value] = words.last_chunk().unwrap();
        let (key, value) = (key.strip_prefix(PREFIX).unwrap().to_owned(), value.clone().into_bytes());
        let lease = i64::from(words.len() > 2);
        Entry { key, value, create_revision: revision, mod_revision: revision, lease }
    };
    words.zip(1..).map(entry).collect()
}

/// A name for what kind of key it is: a new one has to get its name here, and its keys below.
fn sort(key: &Key) -> &'static str {
    match key {
        Key::Setting { .. } => "setting",
        Key::Upstream { .. } => "upstream",
        Key::Override { .. } => "override",
        Key::Slot { .. } => "slot",
        Key::Standby { .. } => "standby",
        Key::Balancer(_) => "balancer",
        Key::AcceptStore => "accept-store",
        Key::Log(_) => "log",
    }
}

const SORTS: [&str; 8] = ["setting", "upstream", "override", "slot", "standby", "balancer", "accept-store", "log"];

/// One key of every form that there is.
fn every_key() -> Vec<Key> {
    let id = || "a".parse().unwrap();
    let mut keys = vec![Key::Balancer("lb".parse().unwrap()), Key::AcceptStore, Key::Log("a".parse().unwrap())];
    for kind in [Kind::Http, Kind::Tcp] {
        let service = ServiceId { kind, name: "x".parse().unwrap() };
        let layouts = if kind == Kind::Http { &[Layout::Current, Layout::Legacy][..] } else { &[Layout::Current] };
        for &layout in layouts {
            let of_kind = SettingName::ALL.iter().filter(|name| name.kinds().contains(&kind));
            keys.extend(of_kind.map(|name| Key::Setting { service: service.clone(), layout, name: *name }));
            keys.push(Key::Upstream { service: service.clone(), layout, id: id() });
        }
        keys.push(Key::Override { service: service.clone(), id: id() });
        keys.push(Key::Slot { service: service.clone(), number: "1".parse().unwrap() });
        keys.push(Key::Standby { service, id: id() });
    }
    let sorts: BTreeSet<&str> = keys.iter().map(sort).collect();
    assert_eq!(sorts, SORTS.into());
    keys
}

/// Whether the code takes the value, or why not.
fn read(key: &Key, value: &[u8]) -> Result<(), String> {
    let read = match key {
        Key::Setting { service, name, .. } => Setting::parse(service.kind, *name, value).map(drop),
        Key::Upstream { .. } => Upstream::parse(value).map(drop),
        Key::Override { .. } => Override::parse(value).map(drop),
        Key::Slot { .. } => Slot::parse(value).map(drop),
        Key::Standby { .. } => Standby::parse(value).map(drop),
        Key::Balancer(_) => BalancerRecord::parse(value).map(drop),
        Key::AcceptStore => Acceptance::parse(value).map(drop),
        Key::Log(_) => LogEntry::parse(value).map(drop),
    };
    read.map_err(|refusal| refusal.to_string())
}

#[test]
fn every_key_has_a_row_and_every_row_is_a_key() {
    let rows = rows();
    let patterns: Vec<&String> = rows.iter().flat_map(|row| &row.patterns).collect();
    let keys: Vec<String> = every_key().iter().map(ToString::to_string).collect();
    for key in &keys {
        assert!(patterns.iter().any(|pattern| matches(pattern, key)), "docs/keys.md has no row of {key}");
    }
    for pattern in patterns {
        assert!(keys.iter().any(|key| matches(pattern, key)), "docs/keys.md has {pattern}, which is no key");
    }
}

#[test]
fn every_row_has_an_example_and_what_is_refused() {
    let examples = examples();
    let read_only = |pattern: &str| PAGE.contains(&format!("{PREFIX}{}", pattern.replace("<node>", "lb-1")));
    for Row { patterns, refused } in rows() {
        for pattern in patterns {
            let shown = examples.iter().any(|entry| matches(&pattern, &entry.key));
            assert!(shown || read_only(&pattern), "docs/keys.md has no example of {pattern}");
            let key = every_key().into_iter().find(|key| matches(&pattern, &key.to_string())).unwrap();
            if let Some(value) = &refused {
                assert!(read(&key, value.as_bytes()).is_err(), "{pattern}: {value} is read");
            }
        }
    }
}

#[test]
fn every_example_reads() {
    let examples = examples();
    for Entry { key, value, .. } in &examples {
        read(&key.parse().unwrap(), value).unwrap_or_else(|refusal| panic!("{key}: {refusal}"));
    }
    let topology = Topology::from_entries(&examples);
    assert!(topology.ignored_keys().is_empty(), "{:?}", topology.ignored_keys());
    for (id, service) in topology.services() {
        let records = service.upstreams().map(|(_, field)| (field, field.value.as_ref().unwrap()));
        for (field, record) in records {
            assert!(record.unknown.is_empty() && (record.permanent || field.entry.lease != 0), "{id}: {record:?}");
        }
        assert!(service.overrides().all(|(_, field)| field.value.as_ref().unwrap().unknown.is_empty()), "{id}");
    }
}

#[test]
fn every_field_of_a_record_has_its_row() {
    let full = concat!(
        r#"{"address":"10.0.0.1:80","weight":7,"color":"blue","state":"drain","backup":true,"permanent":true,"#,
        r#""host":"web1"}"#
    );
    let record = Upstream::parse(full.as_bytes()).unwrap().to_string();
    assert_eq!(table("| field of a record |"), field_names(&record));
    let full = concat!(
        r#"{"id":"a","host":"b","replicas":2,"since":"2026-11-30T10:13:06Z","#,
        r#""leaving":true,"successor":"c"}"#
    );
    assert_eq!(table("| field of a slot |"), field_names(&Slot::parse(full.as_bytes()).unwrap().to_string()));
    let full = concat!(
        r#"{"host":"b","prefer":1,"replicas":2,"since":"2026-11-30T10:13:06Z","#,
        r#""reason":"crash-loop","until":"2026-11-30T10:14:06Z"}"#
    );
    let standby = Standby::parse(full.as_bytes()).unwrap().to_string();
    assert_eq!(table("| field of a stand-by |"), field_names(&standby));
    let full = BalancerRecord {
        url: Some(String::new()),
        haproxy: Some(String::new()),
        instance: Some(String::new()),
        lost: Some(discovery::RetainedAfterReset::default()),
        guarded: Some(1),
        more: [String::new()].into(),
        cut: [(String::new(), [String::new()].into())].into(),
        ..BalancerRecord::default()
    };
    assert_eq!(table("| field |"), field_names(&full.to_string()));
    let entry = LogEntry::default().to_string();
    assert_eq!(table("| field of an entry |"), field_names(&entry));
}

fn field_names(json: &str) -> BTreeSet<String> {
    let value: serde_json::Value = serde_json::from_str(json).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

/// The words in the first column.
fn table(head: &str) -> BTreeSet<String> {
    let table = PAGE.split("\n\n").find(|part| part.starts_with(head)).unwrap();
    let cells = table.lines().skip(2).map(|line| line.split(" | ").next().unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}
