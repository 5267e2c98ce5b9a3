use std::time::Duration;

use super::*;

fn entry(key: &str, value: &str, revision: i64) -> Entry {
    Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: revision, lease: 0 }
}

fn put(key: &str, value: &str, revision: i64) -> Change {
    Change::Put(entry(key, value, revision))
}

fn delete(key: &str, revision: i64) -> Change {
    Change::Delete { key: key.into(), revision, previous: None }
}

fn noted() -> Noted {
    Noted { time: "2026-11-30T10:13:06.000Z".into(), at: Instant::now() }
}

const BALANCE: &str = "http-services/shop/balance";
const RECORD: &str = "http-services/shop/upstreams/a";

fn shop() -> BTreeSet<ServiceId> {
    BALANCE.parse::<Key>().unwrap().service_id().cloned().into_iter().collect()
}

fn none() -> (BTreeSet<ServiceId>, BTreeMap<String, String>) {
    Default::default()
}

/// `balance: random → first @7 runtime`.
fn describe(changes: &[AppliedChange]) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "–".into());
    let line = |it: &AppliedChange| {
        let key = it.key.rsplit_once('/').unwrap().1;
        let by = it.applied_by.as_ref().or(it.refused.as_ref());
        format!("{key}: {} → {} @{} {}", text(&it.before), text(&it.after), it.revision, text(&by.cloned()))
    };
    changes.iter().map(line).collect()
}

#[test]
fn a_change_is_written_once_haproxy_has_it() {
    let before = Topology::from_entries(&[entry(BALANCE, "random", 3), entry(RECORD, "10.0.0.1:80", 4)]);
    let mut tracker = ChangeTracker::default();
    let log = put("log/20261130T101306.000Z-1", r#"{"time":"2026-11-30T10:13:06Z","user":"alice","host":"h"}"#, 6);
    let changes = [
        put(BALANCE, "first", 6),
        log,
        put(RECORD, "10.0.0.1:80", 7),
        put(BALANCE, "leastconn", 8),
        put("balancers/lb2", "{}", 9),
        put("http-services/shop/slots/1", "{}", 9),
        delete(RECORD, 10),
    ];
    tracker.note_changes(&before, &changes, &noted());
    let (pending, quarantined) = none();
    let later = Instant::now() + Duration::from_secs(2);
    let done = tracker.take_applied(8, &pending, &quarantined, later);
    assert_eq!(describe(&done), ["balance: random → first @6 runtime", "balance: first → leastconn @8 runtime"]);
    assert_eq!(done[0].author.as_ref().unwrap().to_string(), "alice@h");
    assert!(done[1].author.is_none() && done[0].seconds.unwrap() >= 2.0);
    let done = tracker.take_applied(10, &pending, &quarantined, later);
    assert_eq!(describe(&done), ["a: 10.0.0.1:80 → – @10 runtime"]);
    assert!(tracker.is_empty());
}

#[test]
fn a_pending_change_is_a_restarts_and_a_quarantined_one_is_refused() {
    let before = Topology::from_entries(&[]);
    let mut tracker = ChangeTracker::default();
    tracker.note_changes(&before, &[put(BALANCE, "first", 6), put(RECORD, "x", 6)], &noted());
    let quarantined = BTreeMap::from([(RECORD.to_owned(), "no port".to_owned())]);
    let now = Instant::now();
    assert_eq!(describe(&tracker.take_applied(6, &shop(), &quarantined, now)), ["a: – → x @6 no port"]);
    assert!(tracker.take_applied(7, &shop(), &quarantined, now).is_empty());
    let done = tracker.take_applied(7, &BTreeSet::new(), &quarantined, now);
    assert_eq!(describe(&done), ["balance: – → first @6 restart"]);
}

#[test]
fn a_listing_shows_what_was_missed() {
    let before = Topology::from_entries(&[entry(BALANCE, "random", 3), entry(RECORD, "10.0.0.1:80", 4)]);
    let domain = "http-services/blog/domain";
    let after = [entry(BALANCE, "first", 8), entry(domain, "b.com", 7), entry("balancers/lb2", "{}", 9)];
    let mut tracker = ChangeTracker::default();
    tracker.note_listing(&before, &Topology::from_entries(&after), (5, 12), &noted());
    let (pending, quarantined) = none();
    let done = tracker.take_applied(12, &pending, &quarantined, Instant::now());
    assert_eq!(
        describe(&done),
        [
            "lb2: – → alive @12 –",
            "domain: – → b.com @7 runtime",
            "balance: random → first @8 runtime",
            "a: 10.0.0.1:80 → – @12 runtime",
        ]
    );
    assert!(done.iter().all(|change| change.after_revision == Some(5)));
    tracker.note_listing(&before, &before, (12, 13), &noted());
    assert!(tracker.is_empty());
}

#[test]
fn a_balancer_is_noted_when_it_comes_and_goes() {
    let before = Topology::from_entries(&[]);
    let created = Entry { create_revision: 6, ..entry("balancers/lb2", "{}", 6) };
    let changes = [Change::Put(created), put("balancers/lb2", "{}", 7), delete("balancers/lb2", 8)];
    let mut tracker = ChangeTracker::default();
    tracker.note_changes(&before, &changes, &noted());
    let (pending, quarantined) = none();
    let done = tracker.take_applied(0, &pending, &quarantined, Instant::now());
    assert_eq!(describe(&done), ["lb2: – → alive @6 –", "lb2: alive → – @8 –"]);
}

#[test]
fn values_that_are_not_whole_are_marked() {
    let before = Topology::from_entries(&[]);
    let long = "x".repeat(20_000);
    let latin = Change::Put(Entry { value: b"caf\xe9".to_vec(), ..entry("http-services/shop/domain", "", 7) });
    let mut tracker = ChangeTracker::default();
    tracker.note_changes(&before, &[put(BALANCE, &long, 6), latin, put("http-services/shop/hsts", "off", 8)], &noted());
    let (pending, quarantined) = none();
    let done = tracker.take_applied(9, &pending, &quarantined, Instant::now());
    assert_eq!(done.iter().map(|change| change.cut).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(done[0].after.as_ref().unwrap().len(), LONGEST_VALUE);
}

#[test]
fn changes_that_wait_are_bounded() {
    let before = Topology::from_entries(&[]);
    let mut tracker = ChangeTracker::default();
    for revision in 0..MOST_WAITING as i64 + 5 {
        tracker.note_changes(&before, &[put(BALANCE, "first", revision + 100)], &noted());
    }
    let (pending, quarantined) = none();
    let done = tracker.take_applied(1, &pending, &quarantined, Instant::now());
    assert_eq!((done.len(), done[0].revision, done[0].applied_by.clone()), (5, 100, None));
}
