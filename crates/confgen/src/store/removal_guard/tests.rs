use discovery::Kind;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn guard() -> RemovalGuard {
    RemovalGuard::new(GuardPolicy { share: 50, window: 10 * SECOND, hold: None })
}

fn service(name: &str) -> ServiceId {
    ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
}

fn losses(name: &str, ids: std::ops::Range<u8>) -> Vec<UpstreamRemoval> {
    let loss = |n| UpstreamRemoval {
        service: service(name),
        id: format!("u{n}").parse().unwrap(),
        upstream: Upstream::parse(format!("10.0.0.{n}:80").as_bytes()).unwrap(),
        lease: 7,
        previous_owners: BTreeSet::new(),
    };
    ids.map(loss).collect()
}

fn present(of_a: usize, all: usize) -> UpstreamCounts {
    UpstreamCounts { services: [(service("a"), of_a)].into(), all }
}

/// A time of this test, and the store's revision by then.
fn at(now: Instant, revision: i64) -> Moment {
    Moment {
        now,
        wall_clock: SystemTime::UNIX_EPOCH + MINUTE,
        store_revision: ClusterRevision { cluster: 7, revision },
    }
}

fn ids(mass: &[UpstreamRemoval]) -> Vec<&str> {
    mass.iter().map(|it| it.id.as_str()).collect()
}

fn held(guard: &RemovalGuard) -> usize {
    guard.retained_of(&service("a")).len()
}

fn recent(recent: Vec<UpstreamRemoval>) -> MassRemoval {
    MassRemoval { recent, returning: Vec::new() }
}

#[test]
fn more_than_half_of_a_service_is_retained() {
    let t = Instant::now();
    let mut guard = guard();
    assert_eq!(
        guard.record_losses(at(t, 1), losses("a", 1..4), &present(3, 100)),
        MassRemoval::default(),
        "half is not enough"
    );
    let mass = guard.record_losses(at(t + SECOND, 2), losses("a", 4..5), &present(2, 99));
    assert_eq!((ids(&mass.recent), mass.returning.len()), (vec!["u1", "u2", "u3", "u4"], 0));
    guard.retain_upstreams(at(t + SECOND, 2), mass);
    assert_eq!(held(&guard), 4);
    let again = guard.record_losses(at(t + 2 * SECOND, 2), Vec::new(), &present(2, 99));
    assert_eq!(again, MassRemoval::default(), "what is retained is not retained twice");
    let next = guard.record_losses(at(t + 20 * SECOND, 3), losses("a", 5..6), &present(1, 98));
    assert_eq!(ids(&next.recent), ["u5"], "a further loss belongs to the same event");
}

#[test]
fn a_slow_mass_loss_is_one_and_the_first_return_unproven() {
    let t = Instant::now();
    let mut guard = guard();
    for (n, seconds, left) in [(1, 5, 3), (2, 20, 2)] {
        let mass = guard.record_losses(at(t + seconds * SECOND, 1), losses("a", n..n + 1), &present(left, 100));
        assert_eq!(mass, MassRemoval::default(), "{seconds}");
    }
    let mass = guard.record_losses(at(t + 35 * SECOND, 1), losses("a", 3..4), &present(1, 100));
    assert_eq!((ids(&mass.recent), ids(&mass.returning)), (vec!["u3"], vec!["u1", "u2"]));
    guard.retain_upstreams(at(t + 35 * SECOND, 1), mass);
    let unproven = |guard: &RemovalGuard| guard.retained_of(&service("a")).values().filter(|it| it.is_unproven).count();
    assert_eq!((held(&guard), unproven(&guard)), (3, 2));
    let mass = guard.record_losses(at(t + 50 * SECOND, 1), losses("a", 4..5), &present(0, 100));
    assert_eq!(ids(&mass.recent), ["u4"]);
    guard.retain_upstreams(at(t + 50 * SECOND, 1), mass);
    // u1 passes its check and fails it later. u2's app is gone.
    let up = |_: &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| Some(ServerHealth::Up);
    let down = |down: &'static [&str]| {
        move |(_, id): &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| {
            Some(if down.contains(&id.as_str()) { ServerHealth::Down } else { ServerHealth::Up })
        }
    };
    assert_eq!(guard.release_upstreams(t + 51 * SECOND, down(&["u1", "u2"])), BTreeSet::new(), "they wait for a check");
    assert_eq!(guard.release_upstreams(t + 55 * SECOND, down(&["u2"])), [service("a")].into(), "u1 is proven");
    assert_eq!((held(&guard), unproven(&guard)), (4, 1));
    assert_eq!(guard.release_upstreams(t + 56 * SECOND, down(&["u1", "u2"])), [service("a")].into(), "u1 was up");
    assert_eq!(held(&guard), 3);
    assert_eq!(guard.release_upstreams(t + 35 * SECOND + PROVEN_WITHIN, down(&["u2"])), [service("a")].into());
    assert_eq!(held(&guard), 2, "u2 never passed");
    for minutes in [2, 5, 20, 60, 60 * 24 * 30] {
        assert_eq!(guard.release_upstreams(t + minutes * MINUTE, up), BTreeSet::new(), "no timer ends it: {minutes}");
    }
}

#[test]
fn a_loss_counts_for_an_hour() {
    let t = Instant::now();
    let mut guard = guard();
    let of = |ids, left| (losses("a", ids), present(left, 100));
    for (minutes, expected) in [(20, 2), (59, 2), (61, 0)] {
        let mut guard = guard.clone();
        let (first, left) = of(1..3, 3);
        guard.record_losses(at(t, 1), first, &left);
        let (next, left) = of(3..4, 2);
        assert_eq!(
            guard.record_losses(at(t + minutes * MINUTE, 1), next, &left).returning.len(),
            expected,
            "{minutes}"
        );
    }
    let (all, left) = of(1..4, 0);
    guard.policy.share = 100;
    assert_eq!(guard.record_losses(at(t, 1), all, &left), MassRemoval::default(), "100% disables the guard");
}

#[test]
fn more_than_half_of_all_is_retained() {
    let t = Instant::now();
    let mut guard = guard();
    let both = [losses("a", 1..3), losses("b", 3..6)].concat();
    let present = UpstreamCounts { services: [(service("a"), 9), (service("b"), 9)].into(), all: 4 };
    assert_eq!(guard.record_losses(at(t, 1), both, &present).recent.len(), 5);
}

#[test]
fn a_retained_upstream_stays_while_it_is_in_maintenance() {
    let t = Instant::now();
    let mut guard = guard();
    guard.retain_upstreams(at(t, 1), recent(losses("a", 1..3)));
    let maintenance = |_: &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| Some(ServerHealth::InMaintenance);
    assert_eq!(guard.release_upstreams(t + 100 * SECOND, maintenance), BTreeSet::new());
    assert_eq!(held(&guard), 2);
}

#[test]
fn a_retained_upstream_goes_when_its_check_fails() {
    let t = Instant::now();
    let mut guard = guard();
    guard.retain_upstreams(at(t, 1), recent(losses("a", 1..5)));
    let sight = |(_, id): &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| match id.as_str() {
        "u2" => Some(ServerHealth::Down),
        "u3" => None,
        "u4" => Some(ServerHealth::Missing),
        _ => Some(ServerHealth::Unknown),
    };
    assert_eq!(guard.release_upstreams(t + SECOND, sight), [service("a")].into());
    assert_eq!(held(&guard), 2, "u4 may not be back in HAProxy yet");
    assert_eq!(guard.release_upstreams(t + 2 * SECOND, sight), [service("a")].into());
    assert_eq!(held(&guard), 1);
    assert_eq!(guard.release_upstreams(t + 3 * SECOND, sight), BTreeSet::new());
}

#[test]
fn a_timer_ends_it_if_there_is_one() {
    let t = Instant::now();
    let up = |_: &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| Some(ServerHealth::Up);
    for (hold, left) in [(Some(300 * SECOND), 0), (None, 3)] {
        let mut guard = RemovalGuard::new(GuardPolicy { hold, ..guard().policy });
        guard.retain_upstreams(at(t, 1), recent(losses("a", 1..4)));
        guard.release_upstreams(t + 299 * SECOND, up);
        assert_eq!(held(&guard), 3);
        guard.release_upstreams(t + 300 * SECOND, up);
        assert_eq!(held(&guard), left, "{hold:?}");
    }
}

#[test]
fn an_explained_loss_does_not_count() {
    let t = Instant::now();
    let mut guard = guard();
    assert_eq!(guard.record_losses(at(t, 1), losses("a", 1..3), &present(8, 100)), MassRemoval::default());
    guard.forget_explained(|it| it.id.as_str() == "u1");
    let mass = guard.record_losses(at(t + SECOND, 1), losses("a", 3..9), &present(2, 94));
    assert_eq!(ids(&mass.recent), ["u2", "u3", "u4", "u5", "u6", "u7", "u8"]);
}

#[test]
fn an_operator_accepts_what_was_noticed_before() {
    let t = Instant::now();
    let mut guard = guard();
    guard.retain_upstreams(at(t, 10), recent(losses("a", 1..3)));
    guard.retain_upstreams(at(t, 20), recent(losses("a", 3..4)));
    guard.record_losses(at(t, 10), losses("a", 4..5), &present(99, 100));
    assert_eq!(guard.apply_acceptance(&Acceptance { cluster: 7, revision: 9 }), BTreeMap::new(), "an older word");
    assert_eq!(guard.apply_acceptance(&Acceptance { cluster: 8, revision: 99 }), BTreeMap::new(), "another store");
    assert_eq!(guard.apply_acceptance(&Acceptance { cluster: 7, revision: 19 }), [(service("a"), 2)].into());
    assert_eq!((held(&guard), guard.services_with_removals().count()), (1, 0));
    // A store that was reset has lower revisions, and it is the only one that can be named.
    guard.lower_revisions(ClusterRevision { cluster: 7, revision: 5 });
    assert_eq!(guard.apply_acceptance(&Acceptance { cluster: 7, revision: 4 }), BTreeMap::new());
    assert_eq!(guard.apply_acceptance(&Acceptance { cluster: 7, revision: 5 }), [(service("a"), 1)].into());
    assert_eq!(guard.services_with_retained(), []);
}

#[test]
fn a_restart_of_confgen_forgets_nothing() {
    let t = Instant::now();
    let mut guard = RemovalGuard::new(GuardPolicy { hold: Some(300 * SECOND), ..guard().policy });
    guard.retain_upstreams(at(t, 1), recent(losses("a", 1..3)));
    guard.record_losses(at(t, 1), losses("a", 3..4), &present(9, 100));
    let later = t + 299 * SECOND;
    let json = serde_json::to_vec(&(guard.persist_retained(later), guard.persist_losses(later))).unwrap();
    let (kept, lost) = serde_json::from_slice(&json).unwrap();
    let mut again = RemovalGuard::new(guard.policy);
    let wall = SystemTime::UNIX_EPOCH + MINUTE;
    again.restore_persisted(t, wall, kept, lost);
    assert_eq!(again.retained_of(&service("a")), guard.retained_of(&service("a")));
    assert!(again.retained_since().all(|(_, since)| since == Some(SystemTime::UNIX_EPOCH + MINUTE)));
    let mass = again.record_losses(at(t, 1), losses("a", 4..7), &present(0, 96));
    assert_eq!(ids(&mass.returning), ["u3"]);
    let up = |_: &UpstreamRef, _: &Upstream, _: &BTreeSet<UpstreamRef>| Some(ServerHealth::Up);
    assert_eq!(again.release_upstreams(t, up), BTreeSet::new());
    assert_eq!(again.release_upstreams(t + SECOND, up), [service("a")].into(), "not for longer than before");
    // The time without confgen counts.
    guard.policy.hold = None;
    let mut later = RemovalGuard::new(guard.policy);
    later.restore_persisted(t, wall + 20 * SECOND, Vec::new(), guard.persist_losses(t));
    assert_eq!(ids(&later.record_losses(at(t, 1), losses("a", 4..7), &present(0, 96)).returning), ["u3"]);
}

#[test]
fn remembered_losses_are_bounded_but_a_mass_removal_is_not() {
    let t = Instant::now();
    let mut guard = guard();
    let many = |from: usize, to: usize| -> Vec<UpstreamRemoval> {
        let one = losses("a", 1..2).remove(0);
        (from..to).map(|n| UpstreamRemoval { id: format!("n{n}").parse().unwrap(), ..one.clone() }).collect()
    };
    assert_eq!(guard.record_losses(at(t, 1), many(0, MAX_LOSSES), &present(99_999, 99_999)), MassRemoval::default());
    guard.record_losses(at(t, 1), many(MAX_LOSSES, MAX_LOSSES + 9), &present(99_999, 99_999));
    guard.record_losses(at(t, 1), Vec::new(), &present(99_999, 99_999));
    assert_eq!(guard.services_with_removals().count(), MAX_LOSSES);
    let mass = guard.record_losses(at(t, 1), many(50_000, 65_000), &present(0, 0));
    assert_eq!(mass.recent.len(), 25_000);
}

#[test]
fn the_last_record_counts_if_both_events_come_together() {
    let gone = |value: &str| {
        let key = "http-services/a/upstreams/u1".to_owned();
        let last =
            discovery::Entry { key: key.clone(), value: value.into(), create_revision: 1, mod_revision: 2, lease: 7 };
        parse_graceful_removal(&Change::Delete { key, revision: 3, previous: Some(last) })
    };
    assert_eq!(gone("10.0.0.1:80"), None);
    let going = gone(r#"{"address":"10.0.0.1:80","state":"drain"}"#);
    assert_eq!(going, Some((service("a"), "u1".parse().unwrap())));
}

#[test]
fn an_announced_removal_is_no_loss() {
    let [mut departure] = <[UpstreamRemoval; 1]>::try_from(losses("a", 1..2)).unwrap();
    assert!(departure.is_unexpected());
    departure.upstream.state = UpstreamState::Drain;
    assert!(!departure.is_unexpected());
    departure.upstream.state = UpstreamState::Ready;
    departure.lease = 0;
    assert!(!departure.is_unexpected(), "written by hand, deleted by hand");
}

#[test]
fn an_upstream_that_is_lost_twice_or_retained_too_is_a_violation() {
    let t = Instant::now();
    let mut guard = guard();
    guard.record_losses(at(t, 1), losses("a", 1..3), &present(9, 100));
    assert_eq!(guard.check_invariants(), Ok(()));
    let loss = guard.losses[0].clone();
    let mut twice = guard.clone();
    twice.losses.push(loss.clone());
    assert_eq!(twice.check_invariants(), Err("http-a/u1 is lost twice".into()));
    let mut both = guard.clone();
    both.retain_upstreams(at(t, 1), recent(losses("a", 1..2)));
    both.losses.push(loss);
    assert_eq!(both.check_invariants(), Err("http-a/u1 is both lost and retained".into()));
    guard.retained.insert(service("a"), BTreeMap::new());
    assert_eq!(guard.check_invariants(), Err("http-a is listed as retained without an upstream".into()));
}

#[test]
fn an_edited_file_that_names_an_upstream_twice_breaks_no_invariant() {
    let t = Instant::now();
    let mut before = guard();
    before.retain_upstreams(at(t, 1), recent(losses("a", 1..2)));
    before.record_losses(at(t, 1), losses("a", 2..3), &present(9, 100));
    let (retained, lost) = (before.persist_retained(t), before.persist_losses(t));
    let mut again = guard();
    again.restore_persisted(t, SystemTime::UNIX_EPOCH, retained.clone(), [retained, lost.clone(), lost].concat());
    assert_eq!(again.check_invariants(), Ok(()));
    assert_eq!((held(&again), again.losses.len()), (1, 1));
}
