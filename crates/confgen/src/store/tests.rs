use discovery::Acceptance;

use super::*;

fn entry(key: &str, value: &str, revision: i64) -> Entry {
    Entry { key: key.into(), value: value.into(), create_revision: revision, mod_revision: revision, lease: 0 }
}

fn upstream(service: &str, id: &str, address: &str, revision: i64) -> Entry {
    entry(&format!("http-services/{service}/upstreams/{id}"), address, revision)
}

fn listing(position: StoreRevision, entries: &[Entry]) -> Snapshot {
    let StoreRevision { cluster, raft_term, revision } = position;
    Snapshot { cluster, raft_term, revision, entries: entries.to_vec() }
}

const FIRST: StoreRevision = StoreRevision { cluster: 7, raft_term: 2, revision: 100 };
const RESET: StoreRevision = StoreRevision { cluster: 7, raft_term: 2, revision: 5 };

/// The replica of a store with a shop at two addresses, one of them a blog's too.
fn replica() -> StoreReplica {
    let mut replica = StoreReplica::default();
    replica.apply_listing(listing(
        FIRST,
        &[
            entry("http-services/shop/domain", "shop.com", 1),
            upstream("shop", "a", "10.0.0.1:80", 2),
            upstream("shop", "b", "10.0.0.2:80", 3),
            upstream("blog", "b", "10.0.0.2:80", 4),
            entry("balancers/lb1", "{}", 5),
        ],
    ));
    assert_eq!(replica.take_update().unwrap().changed, Changed::All);
    assert!(replica.take_reset_events().is_empty());
    replica
}

fn reset_replica(entries: &[Entry]) -> StoreReplica {
    let mut replica = replica();
    replica.apply_listing(listing(RESET, entries));
    replica
}

fn keys(replica: &StoreReplica) -> Vec<&str> {
    replica.topology.entries().map(|entry| entry.key.trim_start_matches("http-services/")).collect()
}

fn retained_keys(replica: &StoreReplica) -> Vec<&str> {
    replica.retained.keys().map(|key| key.trim_start_matches("http-services/")).collect()
}

fn put(replica: &mut StoreReplica, entry: Entry) -> bool {
    replica.apply_changes(entry.mod_revision, &[Change::Put(entry)])
}

const ALL: [&str; 4] = ["blog/upstreams/b", "shop/domain", "shop/upstreams/a", "shop/upstreams/b"];

#[test]
fn the_change_log_concerns_no_reconcile() {
    let mut replica = replica();
    let logged = |revision| Change::Put(entry("log/20261130T101306.123Z-1", "{}", revision));
    let gone = Change::Delete { key: "log/20261130T101306.123Z-1".into(), revision: 102, previous: None };
    assert!(!replica.apply_changes(101, &[logged(101)]) && !replica.apply_changes(102, &[gone]));
    assert_eq!(replica.store_revision(), FIRST, "an entry that expires must not look like a change to apply");
    assert!(!replica.has_unseen_changes());
    // In a transaction only the service's key counts.
    let changes = [logged(103), Change::Put(entry("http-services/shop/domain", "new.com", 103))];
    assert!(replica.apply_changes(103, &changes));
    let update = replica.take_update().unwrap();
    assert_eq!((update.store_revision.revision, update.topology.ignored_keys().len()), (103, 0));
    assert_eq!(bound_entry(entry("log/20261130T101306.123Z-1", "{}", 1)), None);
}

#[test]
fn each_change_is_in_one_update() {
    let mut replica = StoreReplica::default();
    let first = upstream("a", "1", "10.0.0.1:80", 3);
    assert!(!replica.apply_changes(3, &[Change::Put(first)]) && replica.take_update().is_none());
    replica.apply_listing(listing(RESET, &[]));
    assert_eq!(replica.take_update().unwrap().changed, Changed::All);
    assert!(put(&mut replica, upstream("a", "1", "10.0.0.1:80", 6)));
    assert!(put(&mut replica, entry("control/accept-store", "", 7)) && replica.has_unseen_changes());
    assert!(!put(&mut replica, entry("balancers/n", "", 8)));
    let news = replica.take_update().unwrap();
    assert!(!replica.has_unseen_changes());
    assert_eq!(news.newest_revision, 8);
    assert_eq!((news.store_revision.revision, news.topology.services().len()), (7, 1));
    assert_eq!(news.changed, Changed::Services(news.topology.services().keys().cloned().collect()));
    assert_eq!(replica.take_update().unwrap().changed, Changed::no_services());
}

#[test]
fn slots_and_standbys_are_followed_without_work() {
    let mut replica = replica();
    let (slot, standby) = ("http-services/shop/slots/1", "http-services/shop/standby/c");
    for (revision, key) in [(101, slot), (102, standby), (103, "http-services/shop/slots/no-number")] {
        assert!(!put(&mut replica, entry(key, r#"{"id":"a","host":"web1"}"#, revision)));
    }
    let gone = Change::Delete { key: slot.into(), revision: 104, previous: None };
    assert!(!replica.apply_changes(104, &[gone]));
    assert_eq!((keys(&replica), replica.store_revision().revision), (ALL.to_vec(), 104));
    assert!(!replica.has_unseen_changes() && replica.topology.malformed_keys().is_empty());
    replica.apply_listing(listing(StoreRevision { revision: 105, ..FIRST }, &[entry(standby, "{}", 102)]));
    assert!(replica.topology.services().is_empty(), "a service isn't there because of a stand-by");
    replica.apply_listing(listing(RESET, &[]));
    assert!(replica.retained.is_empty());
}

#[test]
fn a_living_store_is_followed_although_it_lacks_keys() {
    let later = [FIRST, StoreRevision { raft_term: 9, ..FIRST }, StoreRevision { revision: 101, ..FIRST }];
    for position in later {
        let mut replica = replica();
        replica.apply_listing(listing(position, &[]));
        assert!(keys(&replica).is_empty() && replica.take_reset_events().is_empty());
    }
    let mut replica = replica();
    let gone = |entry: &Entry| Change::Delete { key: entry.key.clone(), revision: 101, previous: None };
    let all: Vec<Change> = replica.topology.entries().map(gone).collect();
    assert!(replica.apply_changes(101, &all));
    assert!(keys(&replica).is_empty());
}

#[test]
fn the_keys_that_a_reset_store_lacks_are_retained() {
    let wiped = [
        (StoreRevision { cluster: 8, raft_term: 9, revision: 999 }, "its cluster id is 8, and was 7"),
        (StoreRevision { revision: 99, ..FIRST }, "its revision went back from 100 to 99"),
        (StoreRevision { raft_term: 1, revision: 999, ..FIRST }, "its raft term went back from 2 to 1"),
    ];
    for (position, why) in wiped {
        let mut replica = replica();
        replica.apply_listing(listing(position, &[entry("http-services/shop/domain", "new.com", 1)]));
        assert_eq!(keys(&replica).len(), 4);
        assert_eq!(retained_keys(&replica), ["blog/upstreams/b", "shop/upstreams/a", "shop/upstreams/b"]);
        let shop = &replica.topology.services()
            [&"http-services/shop/domain".parse::<Key>().unwrap().service_id().cloned().unwrap()];
        assert!(shop.entries().any(|entry| entry.value == b"new.com"), "what it has is followed as it stands");
        assert!(replica.topology.balancer_entries().is_empty(), "only keys of services are retained");
        let [told] = <[ResetEvent; 1]>::try_from(replica.take_reset_events()).unwrap();
        let text =
            format!("the store was wiped ({why}): retaining 3 keys of 2 services, each until it is written again");
        assert_eq!(told.to_string(), text);
    }
}

#[test]
fn a_balancers_write_counts_as_the_newest_revision() {
    let mut replica = replica();
    put(&mut replica, entry("balancers/lb1", "{}", 150));
    assert_eq!(replica.store_revision().revision, 100);
    replica.apply_listing(listing(StoreRevision { revision: 149, ..FIRST }, &[]));
    assert_eq!(retained_keys(&replica), ALL);
}

#[test]
fn a_retained_key_is_released_when_it_is_written_again() {
    let mut replica = reset_replica(&[]);
    assert_eq!(retained_keys(&replica), ALL);
    drop((replica.take_update(), replica.take_reset_events()));
    assert!(put(&mut replica, entry("http-services/shop/domain", "shop.com", 6)));
    assert_eq!(retained_keys(&replica).len(), 3);
    assert_eq!(replica.take_reset_events(), [ResetEvent::KeysReleased { keys: 1, left: 3 }]);
    assert!(replica.take_update().unwrap().graceful_removals.is_empty());
    let gone = Change::Delete { key: "http-services/shop/domain".into(), revision: 7, previous: None };
    replica.apply_changes(7, &[gone]);
    assert_eq!(keys(&replica).len(), 3, "what was written again may go as any key");
    // A listing of the same store: the keys that it has are released, the others stay.
    replica.apply_listing(listing(StoreRevision { revision: 9, ..RESET }, &[upstream("shop", "a", "10.0.0.1:80", 8)]));
    assert_eq!(retained_keys(&replica), ["blog/upstreams/b", "shop/upstreams/b"]);
    assert_eq!(keys(&replica).len(), 3);
}

#[test]
fn a_retained_upstream_is_released_when_its_address_has_another_record() {
    let mut replica = reset_replica(&[]);
    drop(replica.take_update());
    put(&mut replica, upstream("blog", "b", "10.0.0.2:80", 6));
    assert!(retained_keys(&replica).contains(&"shop/upstreams/b"), "an app under two services has not moved");
    put(&mut replica, upstream("wiki", "z", "10.0.0.2:80", 7));
    assert_eq!(
        retained_keys(&replica),
        ["shop/domain", "shop/upstreams/a"],
        "whoever comes to that address later has it"
    );
    put(&mut replica, upstream("shop", "c", "10.0.0.1:80", 8));
    assert_eq!(retained_keys(&replica), ["shop/domain"]);
    let goodbyes = replica.take_update().unwrap().graceful_removals;
    assert_eq!(goodbyes.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["a", "b"], "and the guard keeps none");
    // A listing has the same effect as an event.
    let replica = reset_replica(&[upstream("wiki", "z", "10.0.0.1:80", 2), upstream("blog", "b", "10.0.0.2:80", 3)]);
    assert_eq!(retained_keys(&replica), ["shop/domain", "shop/upstreams/b"]);
}

#[test]
fn a_key_that_is_written_again_stays_although_an_earlier_record_of_its_batch_has_its_address() {
    let mut replica = reset_replica(&[]);
    // Both come in one message of the watch: a record by hand at the address of `a`, then `a` itself.
    let changes = [upstream("shop", "hand", "10.0.0.1:80", 6), upstream("shop", "a", "10.0.0.1:80", 7)];
    replica.apply_changes(7, &changes.map(Change::Put));
    assert!(!retained_keys(&replica).contains(&"shop/upstreams/a"));
    assert!(keys(&replica).contains(&"shop/upstreams/a"), "the store has it: {:?}", keys(&replica));
}

#[test]
fn an_accepted_reset_releases_all_keys() {
    let word =
        |cluster: u64, revision| entry("control/accept-store", &Acceptance { cluster, revision }.to_string(), revision);
    let mut replica = reset_replica(&[word(7, 4)]);
    assert_eq!(retained_keys(&replica), ALL, "one from a backup says nothing of this store");
    assert!(matches!(
        replica.take_reset_events().as_slice(),
        [ResetEvent::StoreReset { .. }, ResetEvent::AcceptanceRejected(_)]
    ));
    put(&mut replica, word(8, 6));
    assert_eq!(
        replica.take_reset_events(),
        [ResetEvent::AcceptanceRejected("it is about cluster 8, this one is 7".into())]
    );
    put(&mut replica, entry("control/accept-store", "yes", 7));
    assert!(matches!(replica.take_reset_events().as_slice(), [ResetEvent::AcceptanceRejected(_)]));
    // What a backup or a script writes again is about a store of before, whichever revision its key has by now.
    for (about, reason) in [(4, "about revision 4, and"), (100, "about revision 100, and"), (0, "doesn't say which")] {
        let again = Acceptance { cluster: 7, revision: about }.to_string();
        put(&mut replica, entry("control/accept-store", &again, 7));
        let told = replica.take_reset_events();
        assert!(
            matches!(told.as_slice(), [ResetEvent::AcceptanceRejected(words)] if words.contains(reason)),
            "{told:?}"
        );
    }
    drop(replica.take_update());
    assert!(put(&mut replica, word(7, 8)), "a round has to see it");
    assert_eq!(replica.take_reset_events(), [ResetEvent::Accepted { keys: 4 }]);
    assert!(keys(&replica).is_empty() && retained_keys(&replica).is_empty());
    let news = replica.take_update().unwrap();
    assert_eq!((news.graceful_removals.len(), news.retained.is_empty()), (3, true));
    assert_ne!(news.changed, Changed::no_services());
    // The acceptance was written while confgen did not watch.
    let mut replica = reset_replica(&[]);
    replica.apply_listing(listing(StoreRevision { revision: 6, ..RESET }, &[word(7, 6)]));
    assert!(keys(&replica).is_empty());
}

#[test]
fn a_second_reset_retains_the_keys_of_the_first() {
    let mut replica = reset_replica(&[upstream("shop", "c", "10.0.0.3:80", 2)]);
    replica.apply_listing(listing(StoreRevision { revision: 2, ..RESET }, &[]));
    assert_eq!(retained_keys(&replica), [&ALL[..], &["shop/upstreams/c"]].concat());
}

#[test]
fn the_persisted_store_is_compared_with_etcd_and_served_without_it() {
    let mut before = reset_replica(&[upstream("blog", "b", "10.0.0.2:80", 2)]);
    let news = before.take_update().unwrap();
    let stored = || {
        PersistedStore::from_entries(news.topology.entries(), news.store_revision)
            .with_retained_keys(RetainedKeys::clone(&news.retained))
    };

    let mut replica = StoreReplica::from_persisted(stored());
    assert!(replica.take_update().is_none());
    assert!(replica.use_persisted() && !replica.use_persisted(), "etcd is away");
    let again = replica.take_update().unwrap();
    assert_eq!(
        (again.topology, again.retained, again.changed),
        (news.topology.clone(), news.retained.clone(), Changed::All)
    );
    put(&mut replica, upstream("blog", "b", "10.0.0.2:80", 6));
    assert!(retained_keys(&replica).contains(&"shop/upstreams/b"), "who bore which address is remembered");

    let mut replica = StoreReplica::from_persisted(stored());
    replica.apply_listing(listing(StoreRevision { revision: 6, ..RESET }, &[]));
    assert_eq!(retained_keys(&replica), ["shop/domain", "shop/upstreams/a", "shop/upstreams/b"], "still retained");
    assert_eq!(keys(&replica).len(), 3, "what was followed, and went while nobody looked, is gone");

    let mut replica = StoreReplica::from_persisted(stored());
    replica.apply_listing(listing(StoreRevision { revision: 4, ..RESET }, &[]));
    assert_eq!(retained_keys(&replica), ALL, "reset while confgen was away");

    assert!(!StoreReplica::default().use_persisted(), "nothing is remembered, nothing is done");
}

#[test]
fn the_retained_upstreams_are_those_that_serve() {
    let mut replica = StoreReplica::default();
    let current = upstream("shop", "a", "10.0.0.1:80", 2);
    let ancestor = entry("services/shop/upstreams/a", "10.0.0.9:80", 2);
    replica.apply_listing(listing(FIRST, &[current.clone(), ancestor]));
    replica.apply_listing(listing(RESET, &[]));
    let served = |replica: &StoreReplica| {
        let services = replica.topology.services();
        replica.retained.served_upstreams(|service, id| Some(&services.get(service)?.upstream(id)?.entry.key)).len()
    };
    assert_eq!((replica.retained.len(), served(&replica)), (2, 1), "one upstream, in two layouts");
    put(&mut replica, current);
    assert_eq!((replica.retained.len(), served(&replica)), (1, 0), "the live record beats the retained one");
}

#[test]
fn a_value_that_nothing_reads_is_cut() {
    let long = "10.0.0.1:80 ".repeat(100_000);
    let mut replica = replica();
    put(&mut replica, upstream("shop", "long", &long, 101));
    put(&mut replica, entry(&format!("notes/{}", "x".repeat(2000)), "", 102));
    let bytes = |replica: &StoreReplica| replica.topology.entries().map(|entry| entry.value.len()).sum::<usize>();
    assert!(bytes(&replica) < 500 && replica.topology.ignored_keys().is_empty(), "{}", bytes(&replica));
    let news = replica.take_update().unwrap();
    let stored =
        serde_json::to_vec(&PersistedStore::from_entries(news.topology.entries(), news.store_revision)).unwrap();
    assert!(stored.len() < 2_000, "{}", stored.len());
    // The refusal is unchanged after a restart, and after a listing.
    let again = serde_json::from_slice::<PersistedStore>(&stored).unwrap().into_topology();
    assert_eq!(again.services(), news.topology.services());
    replica.apply_listing(listing(StoreRevision { revision: 103, ..FIRST }, &[upstream("shop", "long", &long, 101)]));
    let refused = |topology: &Topology| {
        let fields = topology.services().values().flat_map(|it| it.upstreams());
        fields.filter_map(|(_, field)| Some(field.value.as_ref().err()?.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(refused(&replica.topology), refused(&again));
    assert!(refused(&again)[0].contains("1200000"), "{:?}", refused(&again));
    assert!(bytes(&replica) < 500);
    replica.apply_listing(listing(StoreRevision { revision: 1, ..FIRST }, &[]));
    assert!(bytes(&replica) < 500, "retained ones too");
}

#[test]
fn a_retained_key_that_is_stored_or_has_no_entry_is_a_violation() {
    const KEY: &str = "http-services/shop/domain";
    let mut replica = reset_replica(&[]);
    assert_eq!(replica.check_invariants(std::iter::empty()), Ok(()));
    let stored = replica.check_invariants([KEY].into_iter());
    assert_eq!(stored, Err(format!("{KEY} is retained, but the store has it")));
    let removal = Change::Delete { key: KEY.into(), revision: 6, previous: None };
    Arc::make_mut(&mut replica.topology).apply_change(&removal);
    let missing = replica.check_invariants(std::iter::empty());
    assert_eq!(missing, Err(format!("{KEY} is retained without an entry")));
    replica.store_revision = None;
    let unknown = replica.check_invariants(std::iter::empty());
    assert_eq!(unknown, Err("the replica is known, but has no revision".into()));
}
