//! The removal guard: if more upstreams lose their keys than die, the store is at fault. Pure: it is told the time.
//!
//! etcd can't tell a lease that expired from one that was revoked, and after a freeze it deletes every leased key before
//! the announcers have written theirs again. A crashed app fails HAProxy's check before its lease ends. So a lease that ends
//! while the check passes is unexpected. The guard remembers such upstreams, and retains them once they are too many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use discovery::{Acceptance, Change, Key, ServiceId, Upstream, UpstreamId, UpstreamState};
use serde::{Deserialize, Serialize};

use crate::store::address_owners::UpstreamRef;

/// How long an upstream that lost its key unexpectedly counts. Announcers of one service may have different `--ttl`, and
/// an expired client certificate ends one lease after the other, as connections break.
pub const MEMORY: Duration = Duration::from_secs(3600);
/// The most that are remembered at a time, some 3 MB. The oldest are forgotten first.
const MOST_LOSSES: usize = 10_000;
/// An upstream that returns after a while starts as DOWN, and goes if no check has passed by then: two in a row do, and
/// an operator's `inter` may be 20 s.
const PROVEN_WITHIN: Duration = Duration::from_secs(60);
/// HAProxy's answer may lack a server that was put back, for as long as that takes.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(2);

/// When upstreams are retained, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardPolicy {
    /// Percent of a service's upstreams, or of all. If more are lost, they are retained. 100 disables the guard.
    pub share: u8,
    /// Upstreams lost within this time return at once. Those lost earlier have to pass a check first.
    pub window: Duration,
    /// Retained upstreams go after this time. None if no timer ends it.
    pub hold: Option<Duration>,
}

/// An upstream whose key went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRemoval {
    /// Its service.
    pub service: ServiceId,
    /// Its id.
    pub id: UpstreamId,
    /// Its last record.
    pub upstream: Upstream,
    /// The lease that its key hung on; 0 is none.
    pub lease: i64,
    /// Whose records bore its address when it went.
    pub previous_owners: BTreeSet<UpstreamRef>,
}

impl UpstreamRemoval {
    /// Nothing asked for it: the key hung on a lease, and its last record did not say that the upstream goes.
    pub fn is_unexpected(&self) -> bool {
        self.lease != 0 && self.upstream.state == UpstreamState::Ready
    }
}

/// An upstream that is retained, or that was lost, as the state directory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedUpstream {
    service: ServiceId,
    id: UpstreamId,
    upstream: Upstream,
    #[serde(default)]
    bore: BTreeSet<UpstreamRef>,
    /// For how many seconds it has been.
    #[serde(default)]
    seconds: u64,
    /// Since when, by this host's clock; None if an older confgen wrote it.
    #[serde(default)]
    since: Option<SystemTime>,
    #[serde(default)]
    noticed: ClusterRevision,
    #[serde(default)]
    is_unproven: bool,
}

/// An upstream that is served without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedUpstream {
    /// Its last record.
    pub record: Upstream,
    /// It was out of HAProxy for a while. It starts as DOWN, since its app may have been stopped meanwhile.
    pub is_unproven: bool,
}

/// The store's position when an upstream was lost. An acceptance that was written later is about this loss too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRevision {
    /// The store's cluster id.
    pub cluster: u64,
    /// Its revision.
    pub revision: i64,
}

/// What HAProxy says of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHealth {
    /// Its check passes.
    Up,
    /// Its check fails.
    Down,
    /// HAProxy has no such server.
    Missing,
    /// HAProxy has the server in maintenance, where no check runs.
    InMaintenance,
    /// HAProxy doesn't answer.
    Unknown,
}

/// The upstream that an event takes away after its last record said so, or whose last record hung on no lease. Both events
/// may come in one revision. Then no round has seen the record that said so.
pub fn parse_graceful_removal(change: &Change) -> Option<(ServiceId, UpstreamId)> {
    let Change::Delete { key, previous: Some(last), .. } = change else { return None };
    let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else { return None };
    let going = Upstream::parse(&last.value).is_ok_and(|upstream| upstream.state != UpstreamState::Ready);
    (going || last.lease == 0).then_some((service, id))
}

/// The lost and the retained upstreams.
#[derive(Clone, Debug)]
pub struct RemovalGuard {
    policy: GuardPolicy,
    /// Upstreams that HAProxy found up when their keys went, the latest last.
    losses: Vec<Loss>,
    retained: BTreeMap<ServiceId, BTreeMap<UpstreamId, Retention>>,
}

#[derive(Clone, Debug)]
struct Loss {
    elapsed: Elapsed,
    noticed: ClusterRevision,
    removal: UpstreamRemoval,
}

#[derive(Clone, Debug)]
struct Retention {
    elapsed: Elapsed,
    noticed: ClusterRevision,
    upstream: Upstream,
    previous_owners: BTreeSet<UpstreamRef>,
    is_unproven: bool,
}

/// The time since something happened, also before this process.
#[derive(Clone, Copy, Debug)]
struct Elapsed {
    from: Instant,
    /// What had passed by then.
    before: Duration,
    /// When it happened, by this host's clock.
    since: Option<SystemTime>,
}

impl Elapsed {
    fn age_at(&self, now: Instant) -> Duration {
        self.before.saturating_add(now.saturating_duration_since(self.from))
    }
}

/// How many upstreams the store has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Of each service that has lost some.
    pub services: BTreeMap<ServiceId, usize>,
    /// Of all services.
    pub all: usize,
}

/// Upstreams that are to be retained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MassRemoval {
    /// HAProxy has them, or had them a moment ago.
    pub recent: Vec<UpstreamRemoval>,
    /// They were removed a while ago.
    pub returning: Vec<UpstreamRemoval>,
}

/// When, for what is persisted too.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the clock that nobody sets.
    pub now: Instant,
    /// By this host's clock.
    pub wall_clock: SystemTime,
    /// The store's position.
    pub store_revision: ClusterRevision,
}

impl Moment {
    fn start_elapsed(&self) -> Elapsed {
        Elapsed { from: self.now, before: Duration::ZERO, since: Some(self.wall_clock) }
    }
}

impl RemovalGuard {
    /// A guard that has seen nothing yet.
    pub fn new(policy: GuardPolicy) -> Self {
        Self { policy, losses: Vec::new(), retained: BTreeMap::new() }
    }

    /// Forgets the losses that are explained: the upstream is back, its removal was announced, or its address is another
    /// record's.
    pub fn forget_explained(&mut self, is_explained: impl Fn(&UpstreamRemoval) -> bool) {
        self.losses.retain(|loss| !is_explained(&loss.removal));
    }

    /// Takes in losses of upstreams that HAProxy finds up, and says which of all that are remembered are to be retained:
    /// too many of one service, or of all.
    pub fn record_losses(
        &mut self,
        moment: Moment,
        losses: Vec<UpstreamRemoval>,
        present: &UpstreamCounts,
    ) -> MassRemoval {
        let now = moment.now;
        let again: BTreeSet<(&ServiceId, &UpstreamId)> = losses.iter().map(|it| (&it.service, &it.id)).collect();
        self.losses.retain(|Loss { elapsed: span, removal: departure, .. }| {
            span.age_at(now) < MEMORY && !again.contains(&(&departure.service, &departure.id))
        });
        // What is lost in one round is never too much: all of it was in the store.
        self.losses.drain(..self.losses.len().saturating_sub(MOST_LOSSES));
        let new = losses.into_iter().map(|departure| Loss {
            elapsed: moment.start_elapsed(),
            noticed: moment.store_revision,
            removal: departure,
        });
        self.losses.extend(new);
        let is_mass = |lost: usize, present: usize| lost * 100 > usize::from(self.policy.share) * (lost + present);
        // What is retained was lost too: further losses belong to the same event.
        let kept = |service: &ServiceId| self.retained.get(service).map_or(0, BTreeMap::len);
        let mut lost: BTreeMap<&ServiceId, usize> = BTreeMap::new();
        for loss in &self.losses {
            *lost.entry(&loss.removal.service).or_default() += 1;
        }
        let all = is_mass(self.losses.len() + self.retained.keys().map(kept).sum::<usize>(), present.all);
        let belongs = |loss: &&Loss| {
            let service = &loss.removal.service;
            let present = present.services.get(service).copied().unwrap_or_default();
            all || is_mass(lost.get(service).copied().unwrap_or_default() + kept(service), present)
        };
        let (recent, returning): (Vec<&Loss>, Vec<&Loss>) = self
            .losses
            .iter()
            .filter(belongs)
            .partition(|loss| loss.elapsed.age_at(now) < self.policy.window.max(SAME_RECONCILE));
        let departures = |losses: Vec<&Loss>| losses.into_iter().map(|loss| loss.removal.clone()).collect();
        MassRemoval { recent: departures(recent), returning: departures(returning) }
    }

    /// The services that have lost some: [`UpstreamCounts`] has to count them.
    pub fn services_with_removals(&self) -> impl Iterator<Item = &ServiceId> {
        self.losses.iter().map(|loss| &loss.removal.service)
    }

    /// The upstreams that were lost.
    pub fn lost_upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.losses.iter().map(|loss| &loss.removal.upstream)
    }

    /// Retains these. They are no longer losses.
    pub fn retain_upstreams(&mut self, moment: Moment, mass: MassRemoval) {
        let taken: BTreeSet<UpstreamRef> =
            mass.recent.iter().chain(&mass.returning).map(|it| (it.service.clone(), it.id.clone())).collect();
        self.losses.retain(|loss| !taken.contains(&(loss.removal.service.clone(), loss.removal.id.clone())));
        let recent = mass.recent.into_iter().map(|it| (it, false));
        for (departure, is_unproven) in recent.chain(mass.returning.into_iter().map(|it| (it, true))) {
            let UpstreamRemoval { service, id, upstream, previous_owners: bore, .. } = departure;
            let hold = Retention {
                elapsed: moment.start_elapsed(),
                noticed: moment.store_revision,
                upstream,
                previous_owners: bore,
                is_unproven,
            };
            self.retained.entry(service).or_default().insert(id, hold);
        }
    }

    /// What is retained, to be remembered over a restart.
    pub fn persist_retained(&self, now: Instant) -> Vec<PersistedUpstream> {
        let kept = |(service, id, hold): (&ServiceId, &UpstreamId, &Retention)| PersistedUpstream {
            service: service.clone(),
            id: id.clone(),
            upstream: hold.upstream.clone(),
            bore: hold.previous_owners.clone(),
            seconds: hold.elapsed.age_at(now).as_secs(),
            since: hold.elapsed.since,
            noticed: hold.noticed,
            is_unproven: hold.is_unproven,
        };
        self.iter_retained().map(kept).collect()
    }

    /// What was lost, to be remembered over a restart.
    pub fn persist_losses(&self, now: Instant) -> Vec<PersistedUpstream> {
        let kept = |loss: &Loss| PersistedUpstream {
            service: loss.removal.service.clone(),
            id: loss.removal.id.clone(),
            upstream: loss.removal.upstream.clone(),
            bore: loss.removal.previous_owners.clone(),
            seconds: loss.elapsed.age_at(now).as_secs(),
            since: loss.elapsed.since,
            noticed: loss.noticed,
            is_unproven: false,
        };
        self.losses.iter().map(kept).collect()
    }

    /// Goes on with what was retained and what was lost before a restart.
    pub fn restore_persisted(
        &mut self,
        now: Instant,
        at: SystemTime,
        kept: Vec<PersistedUpstream>,
        lost: Vec<PersistedUpstream>,
    ) {
        // What passed while confgen was away counts too. A clock that was set back takes nothing away.
        let passed =
            |it: &PersistedUpstream| it.since.and_then(|since| at.duration_since(since).ok()).unwrap_or_default();
        let age = |it: &PersistedUpstream| passed(it).max(Duration::from_secs(it.seconds));
        let span = |it: &PersistedUpstream| Elapsed { from: now, before: age(it), since: it.since };
        for it in kept {
            let span = span(&it);
            let PersistedUpstream { service, id, upstream, bore, noticed, is_unproven, .. } = it;
            let hold = Retention { elapsed: span, noticed, upstream, previous_owners: bore, is_unproven };
            self.retained.entry(service).or_default().insert(id, hold);
        }
        for it in lost.into_iter().take(MOST_LOSSES) {
            let span = span(&it);
            let PersistedUpstream { service, id, upstream, bore, noticed, .. } = it;
            let departure = UpstreamRemoval { service, id, upstream, previous_owners: bore, lease: 0 };
            self.losses.push(Loss { elapsed: span, noticed, removal: departure });
        }
    }

    /// Compares everything with the store as it is now. After a reset it has another id or a lower revision, and an
    /// acceptance can name that only.
    pub fn lower_revisions(&mut self, now: ClusterRevision) {
        let holds = self.retained.values_mut().flat_map(BTreeMap::values_mut).map(|hold| &mut hold.noticed);
        for noticed in holds.chain(self.losses.iter_mut().map(|loss| &mut loss.noticed)) {
            if noticed.cluster != now.cluster || noticed.revision > now.revision {
                *noticed = now;
            }
        }
    }

    /// Drops what an operator has accepted to be gone. Returns the services concerned, and how many of their upstreams go.
    pub fn apply_acceptance(&mut self, acceptance: &Acceptance) -> BTreeMap<ServiceId, usize> {
        let is_meant = |noticed: &ClusterRevision| {
            noticed.cluster == acceptance.cluster && noticed.revision <= acceptance.revision
        };
        self.losses.retain(|loss| !is_meant(&loss.noticed));
        let mut concerned = BTreeMap::new();
        for (service, held) in &mut self.retained {
            let before = held.len();
            held.retain(|_, hold| !is_meant(&hold.noticed));
            if held.len() < before {
                concerned.insert(service.clone(), before - held.len());
            }
        }
        self.retained.retain(|_, held| !held.is_empty());
        concerned
    }

    /// The upstreams that are retained.
    pub fn retained_upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.retained.values().flat_map(BTreeMap::values).map(|hold| &hold.upstream)
    }

    /// Drops what no longer is to be retained: upstreams that fail their check, those past the timer, if there is one, and
    /// those for which `sight` is None because something explains their removal. Returns the services for which anything
    /// changed.
    pub fn release_upstreams(
        &mut self,
        now: Instant,
        sight: impl Fn(&UpstreamRef, &Upstream, &BTreeSet<UpstreamRef>) -> Option<ServerHealth>,
    ) -> BTreeSet<ServiceId> {
        let mut concerned = BTreeSet::new();
        for (service, held) in &mut self.retained {
            held.retain(|id, hold| {
                let sight = sight(&(service.clone(), id.clone()), &hold.upstream, &hold.previous_owners);
                let was_unproven = hold.is_unproven;
                let stays = sight.is_some_and(|sight| hold.apply_health(now, sight, self.policy.hold));
                if !stays || hold.is_unproven != was_unproven {
                    concerned.insert(service.clone());
                }
                stays
            });
        }
        self.retained.retain(|_, held| !held.is_empty());
        concerned
    }

    /// What is retained of a service.
    pub fn retained_of(&self, service: &ServiceId) -> BTreeMap<UpstreamId, RetainedUpstream> {
        let held = self.retained.get(service).into_iter().flatten();
        let retained =
            |hold: &Retention| RetainedUpstream { record: hold.upstream.clone(), is_unproven: hold.is_unproven };
        held.map(|(id, hold)| (id.clone(), retained(hold))).collect()
    }

    /// The upstreams that are retained, and since when; None if that isn't known.
    pub fn retained_since(&self) -> impl Iterator<Item = (UpstreamRef, Option<SystemTime>)> {
        self.iter_retained().map(|(service, id, hold)| ((service.clone(), id.clone()), hold.elapsed.since))
    }

    /// The services of which something is retained.
    pub fn services_with_retained(&self) -> Vec<ServiceId> {
        self.retained.keys().cloned().collect()
    }

    fn iter_retained(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId, &Retention)> {
        self.retained.iter().flat_map(|(service, held)| held.iter().map(move |(id, hold)| (service, id, hold)))
    }
}

/// What one round lost has not left HAProxy yet, whatever `--guard-window` says.
const SAME_RECONCILE: Duration = Duration::from_millis(1);

impl Retention {
    fn apply_health(&mut self, now: Instant, sight: ServerHealth, timer: Option<Duration>) -> bool {
        let age = self.elapsed.age_at(now);
        if timer.is_some_and(|timer| age >= timer) {
            return false;
        }
        match sight {
            ServerHealth::Up => {
                self.is_unproven = false;
                true
            }
            // An operator's `maint`, or another active color, says nothing about the app. It serves again afterwards.
            ServerHealth::InMaintenance | ServerHealth::Unknown => true,
            ServerHealth::Down | ServerHealth::Missing if self.is_unproven => age < PROVEN_WITHIN,
            ServerHealth::Down => false,
            ServerHealth::Missing => age < PUT_BACK_WITHIN,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let unproven =
            |guard: &RemovalGuard| guard.retained_of(&service("a")).values().filter(|it| it.is_unproven).count();
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
        assert_eq!(
            guard.release_upstreams(t + 51 * SECOND, down(&["u1", "u2"])),
            BTreeSet::new(),
            "they wait for a check"
        );
        assert_eq!(guard.release_upstreams(t + 55 * SECOND, down(&["u2"])), [service("a")].into(), "u1 is proven");
        assert_eq!((held(&guard), unproven(&guard)), (4, 1));
        assert_eq!(guard.release_upstreams(t + 56 * SECOND, down(&["u1", "u2"])), [service("a")].into(), "u1 was up");
        assert_eq!(held(&guard), 3);
        assert_eq!(guard.release_upstreams(t + 35 * SECOND + PROVEN_WITHIN, down(&["u2"])), [service("a")].into());
        assert_eq!(held(&guard), 2, "u2 never passed");
        for minutes in [2, 5, 20, 60, 60 * 24 * 30] {
            assert_eq!(
                guard.release_upstreams(t + minutes * MINUTE, up),
                BTreeSet::new(),
                "no timer ends it: {minutes}"
            );
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
    fn what_is_remembered_is_bounded_but_a_mass_is_not() {
        let t = Instant::now();
        let mut guard = guard();
        let many = |from: usize, to: usize| -> Vec<UpstreamRemoval> {
            let one = losses("a", 1..2).remove(0);
            (from..to).map(|n| UpstreamRemoval { id: format!("n{n}").parse().unwrap(), ..one.clone() }).collect()
        };
        assert_eq!(
            guard.record_losses(at(t, 1), many(0, MOST_LOSSES), &present(99_999, 99_999)),
            MassRemoval::default()
        );
        guard.record_losses(at(t, 1), many(MOST_LOSSES, MOST_LOSSES + 9), &present(99_999, 99_999));
        guard.record_losses(at(t, 1), Vec::new(), &present(99_999, 99_999));
        assert_eq!(guard.services_with_removals().count(), MOST_LOSSES);
        let mass = guard.record_losses(at(t, 1), many(50_000, 65_000), &present(0, 0));
        assert_eq!(mass.recent.len(), 25_000);
    }

    #[test]
    fn the_last_record_counts_if_both_events_come_together() {
        let gone = |value: &str| {
            let key = "http-services/a/upstreams/u1".to_owned();
            let last = discovery::Entry {
                key: key.clone(),
                value: value.into(),
                create_revision: 1,
                mod_revision: 2,
                lease: 7,
            };
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
}
