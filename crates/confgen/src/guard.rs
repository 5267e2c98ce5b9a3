//! The removal guard: when more upstreams vanish than die, it is the store that is ill. Pure: it is told the time.
//!
//! etcd can't tell a lease that expired from one that was revoked, and after a freeze it deletes every leased key before
//! the announcers have written theirs again. So what vanishes in a crowd, while HAProxy's own checks find it up, is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use discovery::{Change, Key, ServiceId, Upstream, UpstreamId, UpstreamState};
use serde::{Deserialize, Serialize};

use crate::bearers::Bearer;

/// What counts as a crowd, and for how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Percent of a service's upstreams, or of all; more than that is a crowd. 100 is never.
    pub share: u8,
    /// Losses within this belong together.
    pub window: Duration,
    /// What is kept is let go after this, whatever its checks say.
    pub hold: Duration,
}

/// An upstream whose key went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Its service.
    pub service: ServiceId,
    /// Its id.
    pub id: UpstreamId,
    /// Its last record.
    pub upstream: Upstream,
    /// The lease that its key hung on; 0 is none.
    pub lease: i64,
    /// Whose records bore its address when it went.
    pub bore: BTreeSet<Bearer>,
}

/// An upstream that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    service: ServiceId,
    id: UpstreamId,
    upstream: Upstream,
    #[serde(default)]
    bore: BTreeSet<Bearer>,
    /// For how many seconds it has been.
    #[serde(default)]
    seconds: u64,
}

impl Departure {
    /// Nobody asked for it: the key hung on a lease, and its last word was not that it is going.
    pub fn is_loss(&self) -> bool {
        self.lease != 0 && self.upstream.state == UpstreamState::Ready
    }
}

/// The upstream that an event takes away after its last word was that it is going, or whose last record hung on no lease.
/// Both events may come in one breath: then nobody has seen the record that said so.
pub fn goodbye(change: &Change) -> Option<(ServiceId, UpstreamId)> {
    let Change::Delete { key, previous: Some(last), .. } = change else { return None };
    let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else { return None };
    let going = Upstream::parse(&last.value).is_ok_and(|upstream| upstream.state != UpstreamState::Ready);
    (going || last.lease == 0).then_some((service, id))
}

/// What was lost of late, and what is kept.
#[derive(Clone, Debug)]
pub struct Guard {
    policy: Policy,
    /// Losses of upstreams that HAProxy found up.
    losses: Vec<(Instant, Departure)>,
    held: BTreeMap<ServiceId, BTreeMap<UpstreamId, Hold>>,
}

#[derive(Clone, Debug)]
struct Hold {
    /// None for longer than this machine runs.
    since: Option<Instant>,
    upstream: Upstream,
    bore: BTreeSet<Bearer>,
}

impl Hold {
    fn lasts(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::MAX, |since| now.saturating_duration_since(since))
    }
}

/// How many upstreams the store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Of each service that has lost some.
    pub services: BTreeMap<ServiceId, usize>,
    /// Of all services.
    pub all: usize,
}

impl Guard {
    /// A guard that has seen nothing yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, losses: Vec::new(), held: BTreeMap::new() }
    }

    /// These losses are none: whoever is back, or has said goodbye since, belongs to no crowd.
    pub fn forget(&mut self, is_none: impl Fn(&ServiceId, &UpstreamId) -> bool) {
        self.losses.retain(|(_, loss)| !is_none(&loss.service, &loss.id));
    }

    /// Takes in losses of upstreams that HAProxy finds up, and says which of those within the window are a crowd: of
    /// one service, or of all.
    pub fn lost(&mut self, now: Instant, losses: Vec<Departure>, present: &Present) -> Vec<Departure> {
        self.losses.retain(|(at, _)| now.saturating_duration_since(*at) < self.policy.window);
        self.losses.extend(losses.into_iter().map(|loss| (now, loss)));
        let crowd = |lost: usize, present: usize| lost * 100 > usize::from(self.policy.share) * (lost + present);
        // What is kept already was lost too: whoever follows belongs to the same crowd.
        let kept = |service: &ServiceId| self.held.get(service).map_or(0, BTreeMap::len);
        let lost = |service: &ServiceId| self.losses.iter().filter(|(_, loss)| loss.service == *service).count();
        let of = |service: &ServiceId| lost(service) + kept(service);
        let all = crowd(self.losses.len() + self.held.keys().map(kept).sum::<usize>(), present.all);
        let in_crowd = |loss: &&Departure| {
            let present = present.services.get(&loss.service).copied().unwrap_or_default();
            all || crowd(of(&loss.service), present)
        };
        self.losses.iter().map(|(_, loss)| loss).filter(in_crowd).cloned().collect()
    }

    /// The services that have lost some of late: [`Present`] has to count them.
    pub fn losers(&self) -> impl Iterator<Item = &ServiceId> {
        self.losses.iter().map(|(_, loss)| &loss.service)
    }

    /// Keeps these. They are no longer losses.
    pub fn hold(&mut self, now: Instant, crowd: Vec<Departure>) {
        for Departure { service, id, upstream, bore, .. } in crowd {
            self.losses.retain(|(_, loss)| (&loss.service, &loss.id) != (&service, &id));
            self.held.entry(service).or_default().insert(id, Hold { since: Some(now), upstream, bore });
        }
    }

    /// What is kept, to be remembered over a restart.
    pub fn kept(&self, now: Instant) -> Vec<Kept> {
        let all = self.held.iter().flat_map(|(service, held)| held.iter().map(move |(id, hold)| (service, id, hold)));
        let kept = |(service, id, hold): (&ServiceId, &UpstreamId, &Hold)| Kept {
            service: service.clone(),
            id: id.clone(),
            upstream: hold.upstream.clone(),
            bore: hold.bore.clone(),
            seconds: hold.lasts(now).as_secs(),
        };
        all.map(kept).collect()
    }

    /// Goes on keeping what was kept before a restart.
    pub fn recall(&mut self, now: Instant, kept: Vec<Kept>) {
        for Kept { service, id, upstream, bore, seconds } in kept {
            let since = now.checked_sub(Duration::from_secs(seconds));
            self.held.entry(service).or_default().insert(id, Hold { since, upstream, bore });
        }
    }

    /// The upstreams that are kept.
    pub fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.held.values().flat_map(BTreeMap::values).map(|hold| &hold.upstream)
    }

    /// Lets go what has been kept for long enough, and what `stays` is not true of; it is told who bore the address, and
    /// for how long that has been kept. Says which services that concerns.
    pub fn release(
        &mut self,
        now: Instant,
        stays: impl Fn(&Bearer, &Upstream, &BTreeSet<Bearer>, Duration) -> bool,
    ) -> BTreeSet<ServiceId> {
        let mut concerned = BTreeSet::new();
        for (service, held) in &mut self.held {
            let before = held.len();
            held.retain(|id, hold| {
                let kept = hold.lasts(now);
                let bearer = (service.clone(), id.clone());
                kept < self.policy.hold && stays(&bearer, &hold.upstream, &hold.bore, kept)
            });
            if held.len() < before {
                concerned.insert(service.clone());
            }
        }
        self.held.retain(|_, held| !held.is_empty());
        concerned
    }

    /// What is kept of a service.
    pub fn held(&self, service: &ServiceId) -> BTreeMap<UpstreamId, Upstream> {
        let held = self.held.get(service).into_iter().flatten();
        held.map(|(id, hold)| (id.clone(), hold.upstream.clone())).collect()
    }

    /// The upstreams that are kept, and for how long they have been; [`Duration::MAX`] is longer than this machine runs.
    pub fn lasts(&self, now: Instant) -> impl Iterator<Item = ((ServiceId, UpstreamId), Duration)> {
        let all = self.held.iter().flat_map(|(service, held)| held.iter().map(move |(id, hold)| (service, id, hold)));
        all.map(move |(service, id, hold)| ((service.clone(), id.clone()), hold.lasts(now)))
    }

    /// The services of which something is kept.
    pub fn holding(&self) -> Vec<ServiceId> {
        self.held.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use discovery::Kind;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn guard() -> Guard {
        Guard::new(Policy { share: 50, window: 10 * SECOND, hold: 300 * SECOND })
    }

    fn service(name: &str) -> ServiceId {
        ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
    }

    fn losses(name: &str, ids: std::ops::Range<u8>) -> Vec<Departure> {
        let loss = |n| Departure {
            service: service(name),
            id: format!("u{n}").parse().unwrap(),
            upstream: Upstream::parse(format!("10.0.0.{n}:80").as_bytes()).unwrap(),
            lease: 7,
            bore: BTreeSet::new(),
        };
        ids.map(loss).collect()
    }

    fn present(of_a: usize, all: usize) -> Present {
        Present { services: [(service("a"), of_a)].into(), all }
    }

    #[test]
    fn more_than_half_of_a_service_is_a_crowd() {
        let t = Instant::now();
        let mut guard = guard();
        assert_eq!(guard.lost(t, losses("a", 1..4), &present(3, 100)), [], "half is not more than half");
        let crowd = guard.lost(t + SECOND, losses("a", 4..5), &present(2, 99));
        assert_eq!(crowd.len(), 4, "the earlier ones of the window too");
        guard.hold(t + SECOND, crowd);
        assert_eq!(guard.held(&service("a")).len(), 4);
        assert_eq!(guard.lost(t + 2 * SECOND, Vec::new(), &present(2, 99)), [], "what is kept is not kept twice");
        let next = guard.lost(t + 20 * SECOND, losses("a", 5..6), &present(1, 98));
        assert_eq!(next.len(), 1, "whoever follows belongs to the same crowd");
    }

    #[test]
    fn more_than_half_of_all_is_a_crowd_and_old_losses_are_forgotten() {
        let t = Instant::now();
        let mut guard = guard();
        let both = [losses("a", 1..3), losses("b", 3..6)].concat();
        let present = Present { services: [(service("a"), 9), (service("b"), 9)].into(), all: 4 };
        assert_eq!(guard.lost(t, both, &present).len(), 5);
        assert_eq!(guard.lost(t + 11 * SECOND, losses("a", 9..10), &present), []);
        let mut never = Guard::new(Policy { share: 100, ..guard.policy });
        assert_eq!(never.lost(t, losses("a", 1..9), &self::present(0, 0)), []);
    }

    #[test]
    fn what_is_kept_is_let_go() {
        let t = Instant::now();
        let mut guard = guard();
        guard.hold(t, losses("a", 1..4));
        let down = |(_, id): &Bearer, _: &Upstream, _: &BTreeSet<Bearer>, _| id.as_str() != "u2";
        assert_eq!(guard.release(t + SECOND, down), [service("a")].into());
        assert_eq!(guard.held(&service("a")).len(), 2);
        assert_eq!(guard.release(t + 2 * SECOND, down), BTreeSet::new());
        assert_eq!(guard.release(t + 300 * SECOND, |_, _, _, _| true), [service("a")].into());
        assert_eq!(guard.holding(), []);
    }

    #[test]
    fn whoever_came_back_is_of_no_later_crowd() {
        let t = Instant::now();
        let mut guard = guard();
        assert_eq!(guard.lost(t, losses("a", 1..3), &present(8, 100)), []);
        guard.forget(|_, id| id.as_str() == "u1");
        let crowd = guard.lost(t + SECOND, losses("a", 3..9), &present(2, 94));
        let ids: Vec<&str> = crowd.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["u2", "u3", "u4", "u5", "u6", "u7", "u8"]);
    }

    #[test]
    fn what_is_kept_is_kept_over_a_restart() {
        let t = Instant::now();
        let mut guard = guard();
        guard.hold(t, losses("a", 1..3));
        let json = serde_json::to_vec(&guard.kept(t + 299 * SECOND)).unwrap();
        let mut again = self::guard();
        again.recall(t, serde_json::from_slice(&json).unwrap());
        assert_eq!(again.held(&service("a")), guard.held(&service("a")));
        assert_eq!(again.release(t, |_, _, _, _| true), BTreeSet::new());
        assert_eq!(again.release(t + SECOND, |_, _, _, _| true), [service("a")].into(), "not for longer than before");
    }

    #[test]
    fn the_last_word_is_heard_in_the_event_too() {
        let gone = |value: &str| {
            let key = "http-services/a/upstreams/u1".to_owned();
            let last = discovery::Entry {
                key: key.clone(),
                value: value.into(),
                create_revision: 1,
                mod_revision: 2,
                lease: 7,
            };
            goodbye(&Change::Delete { key, revision: 3, previous: Some(last) })
        };
        assert_eq!(gone("10.0.0.1:80"), None);
        let going = gone(r#"{"address":"10.0.0.1:80","state":"drain"}"#);
        assert_eq!(going, Some((service("a"), "u1".parse().unwrap())));
    }

    #[test]
    fn whoever_is_asked_to_go_is_no_loss() {
        let [mut departure] = <[Departure; 1]>::try_from(losses("a", 1..2)).unwrap();
        assert!(departure.is_loss());
        departure.upstream.state = UpstreamState::Drain;
        assert!(!departure.is_loss());
        departure.upstream.state = UpstreamState::Ready;
        departure.lease = 0;
        assert!(!departure.is_loss(), "written by hand, deleted by hand");
    }
}
