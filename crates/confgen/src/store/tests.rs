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
const WIPED: StoreRevision = StoreRevision { cluster: 7, raft_term: 2, revision: 5 };

/// A mirror of a store with a shop at two addresses, one of them a blog's too.
fn mirror() -> StoreReplica {
    let mut mirror = StoreReplica::default();
    mirror.apply_listing(&listing(
        FIRST,
        &[
            entry("http-services/shop/domain", "shop.com", 1),
            upstream("shop", "a", "10.0.0.1:80", 2),
            upstream("shop", "b", "10.0.0.2:80", 3),
            upstream("blog", "b", "10.0.0.2:80", 4),
            entry("balancers/lb1", "{}", 5),
        ],
    ));
    assert_eq!(mirror.take_update().unwrap().changed, Changed::All);
    assert!(mirror.take_reset_events().is_empty());
    mirror
}

fn wiped(entries: &[Entry]) -> StoreReplica {
    let mut mirror = mirror();
    mirror.apply_listing(&listing(WIPED, entries));
    mirror
}

fn keys(mirror: &StoreReplica) -> Vec<&str> {
    mirror.topology.entries().map(|entry| entry.key.trim_start_matches("http-services/")).collect()
}

fn held(mirror: &StoreReplica) -> Vec<&str> {
    mirror.retained.keys().map(|key| key.trim_start_matches("http-services/")).collect()
}

fn put(mirror: &mut StoreReplica, entry: Entry) -> bool {
    mirror.apply_changes(entry.mod_revision, &[Change::Put(entry)])
}

const ALL: [&str; 4] = ["blog/upstreams/b", "shop/domain", "shop/upstreams/a", "shop/upstreams/b"];

#[test]
fn each_change_is_news_once() {
    let mut mirror = StoreReplica::default();
    let first = upstream("a", "1", "10.0.0.1:80", 3);
    assert!(!mirror.apply_changes(3, &[Change::Put(first)]) && mirror.take_update().is_none());
    mirror.apply_listing(&listing(WIPED, &[]));
    assert_eq!(mirror.take_update().unwrap().changed, Changed::All);
    assert!(put(&mut mirror, upstream("a", "1", "10.0.0.1:80", 6)));
    assert!(put(&mut mirror, entry("control/accept-store", "", 7)) && mirror.has_unseen_changes());
    assert!(!put(&mut mirror, entry("balancers/n", "", 8)));
    let news = mirror.take_update().unwrap();
    assert!(!mirror.has_unseen_changes());
    assert_eq!(news.newest_revision, 8);
    assert_eq!((news.store_revision.revision, news.topology.services().len()), (7, 1));
    assert_eq!(news.changed, Changed::Services(news.topology.services().keys().cloned().collect()));
    assert_eq!(mirror.take_update().unwrap().changed, Changed::no_services());
}

#[test]
fn a_living_store_is_followed_whatever_it_lacks() {
    let later = [FIRST, StoreRevision { raft_term: 9, ..FIRST }, StoreRevision { revision: 101, ..FIRST }];
    for position in later {
        let mut mirror = mirror();
        mirror.apply_listing(&listing(position, &[]));
        assert!(keys(&mirror).is_empty() && mirror.take_reset_events().is_empty());
    }
    let mut mirror = mirror();
    let gone = |entry: &Entry| Change::Delete { key: entry.key.clone(), revision: 101, previous: None };
    let all: Vec<Change> = mirror.topology.entries().map(gone).collect();
    assert!(mirror.apply_changes(101, &all));
    assert!(keys(&mirror).is_empty());
}

#[test]
fn what_a_wiped_store_lacks_is_held() {
    let wiped = [
        (StoreRevision { cluster: 8, raft_term: 9, revision: 999 }, "its cluster id is 8, and was 7"),
        (StoreRevision { revision: 99, ..FIRST }, "its revision went back from 100 to 99"),
        (StoreRevision { raft_term: 1, revision: 999, ..FIRST }, "its raft term went back from 2 to 1"),
    ];
    for (position, why) in wiped {
        let mut mirror = mirror();
        mirror.apply_listing(&listing(position, &[entry("http-services/shop/domain", "new.com", 1)]));
        assert_eq!(keys(&mirror).len(), 4);
        assert_eq!(held(&mirror), ["blog/upstreams/b", "shop/upstreams/a", "shop/upstreams/b"]);
        let shop = &mirror.topology.services()
            [&"http-services/shop/domain".parse::<Key>().unwrap().service_id().cloned().unwrap()];
        assert!(shop.entries().any(|entry| entry.value == b"new.com"), "what it has is followed as it stands");
        assert!(mirror.topology.balancer_entries().is_empty(), "only services are held");
        let [told] = <[ResetEvent; 1]>::try_from(mirror.take_reset_events()).unwrap();
        let text = format!(
            "the store was wiped ({why}): 3 keys of 2 services that it lacks are held, each until it is written again"
        );
        assert_eq!(told.to_string(), text);
    }
}

#[test]
fn what_balancers_write_counts_for_how_far_a_store_was() {
    let mut mirror = mirror();
    put(&mut mirror, entry("balancers/lb1", "{}", 150));
    assert_eq!(mirror.store_revision().revision, 100);
    mirror.apply_listing(&listing(StoreRevision { revision: 149, ..FIRST }, &[]));
    assert_eq!(held(&mirror), ALL);
}

#[test]
fn a_held_key_goes_when_it_is_written_again() {
    let mut mirror = wiped(&[]);
    assert_eq!(held(&mirror), ALL);
    drop((mirror.take_update(), mirror.take_reset_events()));
    assert!(put(&mut mirror, entry("http-services/shop/domain", "shop.com", 6)));
    assert_eq!(held(&mirror).len(), 3);
    assert_eq!(mirror.take_reset_events(), [ResetEvent::KeysReleased { keys: 1, left: 3 }]);
    assert!(mirror.take_update().unwrap().graceful_removals.is_empty());
    let gone = Change::Delete { key: "http-services/shop/domain".into(), revision: 7, previous: None };
    mirror.apply_changes(7, &[gone]);
    assert_eq!(keys(&mirror).len(), 3, "what was written again may go as any key");
    // A listing of the same store: what it has is held no longer, what it lacks still is.
    mirror.apply_listing(&listing(StoreRevision { revision: 9, ..WIPED }, &[upstream("shop", "a", "10.0.0.1:80", 8)]));
    assert_eq!(held(&mirror), ["blog/upstreams/b", "shop/upstreams/b"]);
    assert_eq!(keys(&mirror).len(), 3);
}

#[test]
fn a_held_upstream_goes_when_its_address_is_anothers() {
    let mut mirror = wiped(&[]);
    drop(mirror.take_update());
    put(&mut mirror, upstream("blog", "b", "10.0.0.2:80", 6));
    assert!(held(&mirror).contains(&"shop/upstreams/b"), "an app under two services has not moved");
    put(&mut mirror, upstream("wiki", "z", "10.0.0.2:80", 7));
    assert_eq!(held(&mirror), ["shop/domain", "shop/upstreams/a"], "whoever comes to that address later has it");
    put(&mut mirror, upstream("shop", "c", "10.0.0.1:80", 8));
    assert_eq!(held(&mirror), ["shop/domain"]);
    let goodbyes = mirror.take_update().unwrap().graceful_removals;
    assert_eq!(goodbyes.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["a", "b"], "and the guard keeps none");
    // The same where the listing tells.
    let mirror = wiped(&[upstream("wiki", "z", "10.0.0.1:80", 2), upstream("blog", "b", "10.0.0.2:80", 3)]);
    assert_eq!(held(&mirror), ["shop/domain", "shop/upstreams/b"]);
}

#[test]
fn an_operator_lets_all_of_it_go() {
    let word =
        |cluster: u64, revision| entry("control/accept-store", &Acceptance { cluster, revision }.to_string(), revision);
    let mut mirror = wiped(&[word(7, 4)]);
    assert_eq!(held(&mirror), ALL, "one from a backup says nothing of this store");
    assert!(matches!(
        mirror.take_reset_events().as_slice(),
        [ResetEvent::StoreReset { .. }, ResetEvent::AcceptanceRejected(_)]
    ));
    put(&mut mirror, word(8, 6));
    assert_eq!(
        mirror.take_reset_events(),
        [ResetEvent::AcceptanceRejected("it is about cluster 8, this one is 7".into())]
    );
    put(&mut mirror, entry("control/accept-store", "yes", 7));
    assert!(matches!(mirror.take_reset_events().as_slice(), [ResetEvent::AcceptanceRejected(_)]));
    // What a backup or a script writes again is about a store of before, whichever revision its key has by now.
    for (about, reason) in [(4, "about revision 4, and"), (100, "about revision 100, and"), (0, "doesn't say which")] {
        let again = Acceptance { cluster: 7, revision: about }.to_string();
        put(&mut mirror, entry("control/accept-store", &again, 7));
        let told = mirror.take_reset_events();
        assert!(
            matches!(told.as_slice(), [ResetEvent::AcceptanceRejected(words)] if words.contains(reason)),
            "{told:?}"
        );
    }
    drop(mirror.take_update());
    assert!(put(&mut mirror, word(7, 8)), "a round has to see it");
    assert_eq!(mirror.take_reset_events(), [ResetEvent::Accepted { keys: 4 }]);
    assert!(keys(&mirror).is_empty() && held(&mirror).is_empty());
    let news = mirror.take_update().unwrap();
    assert_eq!((news.graceful_removals.len(), news.retained.is_empty()), (3, true));
    assert_ne!(news.changed, Changed::no_services());
    // Where it was written while nobody looked.
    let mut mirror = wiped(&[]);
    mirror.apply_listing(&listing(StoreRevision { revision: 6, ..WIPED }, &[word(7, 6)]));
    assert!(keys(&mirror).is_empty());
}

#[test]
fn a_second_wipe_holds_what_the_first_did() {
    let mut mirror = wiped(&[upstream("shop", "c", "10.0.0.3:80", 2)]);
    mirror.apply_listing(&listing(StoreRevision { revision: 2, ..WIPED }, &[]));
    assert_eq!(held(&mirror), [&ALL[..], &["shop/upstreams/c"]].concat());
}

#[test]
fn what_is_remembered_is_compared_with_the_store_and_served_without_it() {
    let mut before = wiped(&[upstream("blog", "b", "10.0.0.2:80", 2)]);
    let news = before.take_update().unwrap();
    let stored = || {
        PersistedStore::from_entries(news.topology.entries(), news.store_revision)
            .with_retained_keys(RetainedKeys::clone(&news.retained))
    };

    let mut mirror = StoreReplica::from_persisted(stored());
    assert!(mirror.take_update().is_none());
    assert!(mirror.use_persisted() && !mirror.use_persisted(), "etcd is away");
    let again = mirror.take_update().unwrap();
    assert_eq!(
        (again.topology, again.retained, again.changed),
        (news.topology.clone(), news.retained.clone(), Changed::All)
    );
    put(&mut mirror, upstream("blog", "b", "10.0.0.2:80", 6));
    assert!(held(&mirror).contains(&"shop/upstreams/b"), "who bore which address is remembered");

    let mut mirror = StoreReplica::from_persisted(stored());
    mirror.apply_listing(&listing(StoreRevision { revision: 6, ..WIPED }, &[]));
    assert_eq!(held(&mirror), ["shop/domain", "shop/upstreams/a", "shop/upstreams/b"], "still held");
    assert_eq!(keys(&mirror).len(), 3, "what was followed, and went while nobody looked, is gone");

    let mut mirror = StoreReplica::from_persisted(stored());
    mirror.apply_listing(&listing(StoreRevision { revision: 4, ..WIPED }, &[]));
    assert_eq!(held(&mirror), ALL, "wiped while nobody looked");

    assert!(!StoreReplica::default().use_persisted(), "nothing is remembered, nothing is done");
}

#[test]
fn held_upstreams_are_those_that_serve() {
    let mut mirror = StoreReplica::default();
    let current = upstream("shop", "a", "10.0.0.1:80", 2);
    let ancestor = entry("services/shop/upstreams/a", "10.0.0.9:80", 2);
    mirror.apply_listing(&listing(FIRST, &[current.clone(), ancestor]));
    mirror.apply_listing(&listing(WIPED, &[]));
    let served = |mirror: &StoreReplica| {
        let services = mirror.topology.services();
        mirror.retained.served_upstreams(|service, id| Some(&services.get(service)?.upstream(id)?.entry.key)).len()
    };
    assert_eq!((mirror.retained.len(), served(&mirror)), (2, 1), "one upstream, in two layouts");
    put(&mut mirror, current);
    assert_eq!((mirror.retained.len(), served(&mirror)), (1, 0), "the live record beats the held one");
}

#[test]
fn what_nothing_reads_is_not_kept() {
    let long = "10.0.0.1:80 ".repeat(100_000);
    let mut mirror = mirror();
    put(&mut mirror, upstream("shop", "long", &long, 101));
    put(&mut mirror, entry(&format!("notes/{}", "x".repeat(2000)), "", 102));
    let bytes = |mirror: &StoreReplica| mirror.topology.entries().map(|entry| entry.value.len()).sum::<usize>();
    assert!(bytes(&mirror) < 500 && mirror.topology.ignored_keys().is_empty(), "{}", bytes(&mirror));
    let news = mirror.take_update().unwrap();
    let stored =
        serde_json::to_vec(&PersistedStore::from_entries(news.topology.entries(), news.store_revision)).unwrap();
    assert!(stored.len() < 2_000, "{}", stored.len());
    // It is the same refusal over a restart, and after a listing.
    let again = serde_json::from_slice::<PersistedStore>(&stored).unwrap().into_topology();
    assert_eq!(again.services(), news.topology.services());
    mirror.apply_listing(&listing(StoreRevision { revision: 103, ..FIRST }, &[upstream("shop", "long", &long, 101)]));
    let refused = |topology: &Topology| {
        let fields = topology.services().values().flat_map(|it| it.upstreams());
        fields.filter_map(|(_, field)| Some(field.value.as_ref().err()?.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(refused(&mirror.topology), refused(&again));
    assert!(refused(&again)[0].contains("1200000"), "{:?}", refused(&again));
    assert!(bytes(&mirror) < 500);
    mirror.apply_listing(&listing(StoreRevision { revision: 1, ..FIRST }, &[]));
    assert!(bytes(&mirror) < 500, "held ones too");
}
