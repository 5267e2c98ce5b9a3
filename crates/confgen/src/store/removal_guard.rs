//! The removal guard (`--guard`): it retains upstreams that lose their keys together. Pure: the caller tells the time.
//!
//! etcd can't tell a lease that expired from one that was revoked, and after a freeze it deletes every leased key before
//! the announcers have written theirs again. A crashed app fails HAProxy's check before its lease ends. So a lease that ends
//! while the check passes is unexpected. The guard remembers such upstreams, and retains them once they are too many.

mod invariants;
mod persisted;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use discovery::{Acceptance, Change, Key, ServiceId, Upstream, UpstreamId, UpstreamState};
use serde::{Deserialize, Serialize};

use crate::store::address_owners::UpstreamRef;

pub use persisted::PersistedUpstream;

/// A loss counts for this long. Announcers of one service may have different `--ttl`, and an expired client certificate ends
/// one lease after the other, as connections break.
pub const MEMORY: Duration = Duration::from_secs(3600);
/// The guard remembers at most this many losses, some 3 MB. It forgets the oldest first.
const MAX_LOSSES: usize = 10_000;
/// An upstream that returns as DOWN is dropped if no check passes within this time. Two checks in a row make it UP, and an
/// operator's `inter` may be 20 s.
const PROVEN_WITHIN: Duration = Duration::from_secs(60);
/// HAProxy's answer may lack a server that is being added again. Adding takes at most this long.
const PUT_BACK_WITHIN: Duration = Duration::from_secs(2);
/// HAProxy still has the upstreams that the same reconcile lost, even if `--guard-window` is 0.
const SAME_RECONCILE: Duration = Duration::from_millis(1);

/// The options of the removal guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardPolicy {
    /// `--guard`, in percent of a service's upstreams, or of all. If more are lost, they are retained. 100 disables the guard.
    pub share: u8,
    /// `--guard-window`. Upstreams lost within this time return at once. Those lost earlier must pass a check first.
    pub window: Duration,
    /// `--guard-hold`. Retained upstreams are dropped after this time. `None` if no timer drops them.
    pub hold: Option<Duration>,
}

/// An upstream that lost its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRemoval {
    /// The service that had the key.
    pub service: ServiceId,
    /// The upstream's id.
    pub id: UpstreamId,
    /// The last record.
    pub upstream: Upstream,
    /// The lease of the key. 0 if it had none.
    pub lease: i64,
    /// The upstreams, this one included, with records of the same address before the removal.
    pub previous_owners: BTreeSet<UpstreamRef>,
}

impl UpstreamRemoval {
    /// True if the key hung on a lease and its last record did not announce the removal. A key without a lease goes only if a
    /// person or a program deletes it, so its removal is intended.
    pub fn is_unexpected(&self) -> bool {
        self.lease != 0 && self.upstream.state == UpstreamState::Ready
    }

    fn upstream_ref(&self) -> UpstreamRef {
        (self.service.clone(), self.id.clone())
    }
}

/// An upstream that is served without a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedUpstream {
    /// The last record before the key was lost.
    pub record: Upstream,
    /// HAProxy lacked the upstream for a while, and its app may have been stopped meanwhile. So HAProxy adds it as DOWN.
    pub is_unproven: bool,
}

/// The store's position when an upstream was lost. An acceptance that was written later is about this loss too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRevision {
    /// The store's cluster id.
    pub cluster: u64,
    /// etcd's revision.
    pub revision: i64,
}

/// HAProxy's answer about one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHealth {
    /// The check passes.
    Up,
    /// The check fails.
    Down,
    /// HAProxy has no such server.
    Missing,
    /// HAProxy has the server in maintenance, where no check runs.
    InMaintenance,
    /// HAProxy doesn't answer.
    Unknown,
}

/// The upstream that an event removes, if its last record announced that or had no lease. The announcement and the removal may
/// come in one revision. Then no reconcile has seen the announcement.
pub fn parse_graceful_removal(change: &Change) -> Option<(ServiceId, UpstreamId)> {
    let Change::Delete { key, previous: Some(last), .. } = change else { return None };
    let Ok(Key::Upstream { service, id, .. }) = key.parse::<Key>() else { return None };
    let is_announced = Upstream::parse(&last.value).is_ok_and(|upstream| upstream.state != UpstreamState::Ready);
    (is_announced || last.lease == 0).then_some((service, id))
}

/// The upstreams that were lost unexpectedly, and those of them that are retained.
#[derive(Clone, Debug)]
pub struct RemovalGuard {
    policy: GuardPolicy,
    /// Upstreams that HAProxy found up when their keys went, and that aren't retained. The latest is the last.
    losses: Vec<Loss>,
    /// No inner map is empty.
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

/// The time since an event that may have happened before this process started.
#[derive(Clone, Copy, Debug)]
struct Elapsed {
    from: Instant,
    /// The time that had passed by `from`.
    before: Duration,
    /// The time of the event, by this host's clock. `None` if an older confgen noted the event.
    since: Option<SystemTime>,
}

impl Elapsed {
    fn age_at(&self, now: Instant) -> Duration {
        self.before.saturating_add(now.saturating_duration_since(self.from))
    }
}

/// The numbers of upstreams that the store has now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// The number of each service that lost upstreams.
    pub services: BTreeMap<ServiceId, usize>,
    /// The number of all services together.
    pub all: usize,
}

/// The lost upstreams that are too many, and so are to be retained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MassRemoval {
    /// Upstreams that HAProxy has, or had within `--guard-window`.
    pub recent: Vec<UpstreamRemoval>,
    /// Upstreams that were removed longer ago.
    pub returning: Vec<UpstreamRemoval>,
}

/// The time of a reconcile, by all clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time by the monotonic clock.
    pub now: Instant,
    /// The time by this host's clock, for what is persisted.
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
    /// A guard without losses.
    pub fn new(policy: GuardPolicy) -> Self {
        Self { policy, losses: Vec::new(), retained: BTreeMap::new() }
    }

    /// Forgets the losses that are explained: the upstream is back, its removal was announced, or its address has another
    /// record.
    pub fn forget_explained(&mut self, is_explained: impl Fn(&UpstreamRemoval) -> bool) {
        self.losses.retain(|loss| !is_explained(&loss.removal));
    }

    /// Records losses of upstreams that HAProxy finds up. Returns the losses, also earlier ones, that are to be retained because
    /// they are too many of one service, or of all.
    pub fn record_losses(
        &mut self,
        moment: Moment,
        losses: Vec<UpstreamRemoval>,
        present: &UpstreamCounts,
    ) -> MassRemoval {
        // An upstream that is lost again counts once, from now on.
        let again: BTreeSet<(&ServiceId, &UpstreamId)> = losses.iter().map(|it| (&it.service, &it.id)).collect();
        self.losses.retain(|Loss { elapsed, removal, .. }| {
            elapsed.age_at(moment.now) < MEMORY && !again.contains(&(&removal.service, &removal.id))
        });
        // The bound counts before the new losses are added: one reconcile can't lose more than the store had.
        self.losses.drain(..self.losses.len().saturating_sub(MAX_LOSSES));
        self.losses.extend(losses.into_iter().map(|removal| Loss {
            elapsed: moment.start_elapsed(),
            noticed: moment.store_revision,
            removal,
        }));
        debug_assert_eq!(self.check_invariants(), Ok(()));
        self.find_mass_removal(moment.now, present)
    }

    fn find_mass_removal(&self, now: Instant, present: &UpstreamCounts) -> MassRemoval {
        let mut lost_of: BTreeMap<&ServiceId, usize> = BTreeMap::new();
        for loss in &self.losses {
            *lost_of.entry(&loss.removal.service).or_default() += 1;
        }
        // Retained upstreams count as lost: further losses belong to the same event.
        let lost = self.losses.len() + self.iter_retained().count();
        let exceeds_in_all = self.exceeds_share(lost, present.all);
        let mut mass = MassRemoval::default();
        for Loss { elapsed, removal, .. } in &self.losses {
            let retained = self.retained.get(&removal.service).map_or(0, BTreeMap::len);
            let lost = lost_of.get(&removal.service).copied().unwrap_or_default() + retained;
            let present = present.services.get(&removal.service).copied().unwrap_or_default();
            if !exceeds_in_all && !self.exceeds_share(lost, present) {
                continue;
            }
            let is_recent = elapsed.age_at(now) < self.policy.window.max(SAME_RECONCILE);
            let candidates = if is_recent { &mut mass.recent } else { &mut mass.returning };
            candidates.push(removal.clone());
        }
        mass
    }

    fn exceeds_share(&self, lost: usize, present: usize) -> bool {
        // Lost upstreams are no longer present, so both together are what the store had.
        lost * 100 > usize::from(self.policy.share) * (lost + present)
    }

    /// The services of all losses. [`UpstreamCounts`] must count them.
    pub fn services_with_removals(&self) -> impl Iterator<Item = &ServiceId> {
        self.losses.iter().map(|loss| &loss.removal.service)
    }

    /// The last records of all losses.
    pub fn lost_upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.losses.iter().map(|loss| &loss.removal.upstream)
    }

    /// Retains upstreams. They no longer count as losses.
    pub fn retain_upstreams(&mut self, moment: Moment, mass: MassRemoval) {
        let retained: BTreeSet<UpstreamRef> =
            mass.recent.iter().chain(&mass.returning).map(UpstreamRemoval::upstream_ref).collect();
        self.losses.retain(|loss| !retained.contains(&loss.removal.upstream_ref()));
        let recent = mass.recent.into_iter().map(|removal| (removal, false));
        for (removal, is_unproven) in recent.chain(mass.returning.into_iter().map(|removal| (removal, true))) {
            let UpstreamRemoval { service, id, upstream, previous_owners, .. } = removal;
            let (elapsed, noticed) = (moment.start_elapsed(), moment.store_revision);
            let retention = Retention { elapsed, noticed, upstream, previous_owners, is_unproven };
            self.retained.entry(service).or_default().insert(id, retention);
        }
        debug_assert_eq!(self.check_invariants(), Ok(()));
    }

    /// Moves noted positions that lie beyond the store's position to that. After a reset the store has another cluster id or a
    /// lower revision, and an acceptance can name only that.
    pub fn lower_revisions(&mut self, now: ClusterRevision) {
        let retained = self.retained.values_mut().flat_map(BTreeMap::values_mut).map(|it| &mut it.noticed);
        for noticed in retained.chain(self.losses.iter_mut().map(|loss| &mut loss.noticed)) {
            if noticed.cluster != now.cluster || noticed.revision > now.revision {
                *noticed = now;
            }
        }
    }

    /// Drops the losses and retained upstreams that an acceptance is about. Returns the number of dropped upstreams by service.
    pub fn apply_acceptance(&mut self, acceptance: &Acceptance) -> BTreeMap<ServiceId, usize> {
        self.losses.retain(|loss| !loss.noticed.is_covered_by(acceptance));
        let mut dropped = BTreeMap::new();
        for (service, retained) in &mut self.retained {
            let before = retained.len();
            retained.retain(|_, it| !it.noticed.is_covered_by(acceptance));
            if retained.len() < before {
                dropped.insert(service.clone(), before - retained.len());
            }
        }
        self.retained.retain(|_, retained| !retained.is_empty());
        dropped
    }

    /// The last records of the retained upstreams.
    pub fn retained_upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.iter_retained().map(|(_, _, it)| &it.upstream)
    }

    /// Drops retained upstreams that fail their check, that are past `--guard-hold`, or for which `health` is `None` because
    /// their removal is explained. Returns the services for which anything changed.
    pub fn release_upstreams(
        &mut self,
        now: Instant,
        health: impl Fn(&UpstreamRef, &Upstream, &BTreeSet<UpstreamRef>) -> Option<ServerHealth>,
    ) -> BTreeSet<ServiceId> {
        let mut changed = BTreeSet::new();
        for (service, retained) in &mut self.retained {
            // A proof is a change too, because the desired server says whether it is unproven.
            retained.retain(|id, it| {
                let health = health(&(service.clone(), id.clone()), &it.upstream, &it.previous_owners);
                let was_unproven = it.is_unproven;
                let stays = health.is_some_and(|health| it.apply_health(now, health, self.policy.hold));
                if !stays || it.is_unproven != was_unproven {
                    changed.insert(service.clone());
                }
                stays
            });
        }
        // An empty map would keep confgen asking HAProxy about the service.
        self.retained.retain(|_, retained| !retained.is_empty());
        changed
    }

    /// The retained upstreams of one service.
    pub fn retained_of(&self, service: &ServiceId) -> BTreeMap<UpstreamId, RetainedUpstream> {
        let retained = self.retained.get(service).into_iter().flatten();
        retained.map(|(id, it)| (id.clone(), it.to_retained_upstream())).collect()
    }

    /// The retained upstreams, each with the time since when. `None` if an older confgen retained it.
    pub fn retained_since(&self) -> impl Iterator<Item = (UpstreamRef, Option<SystemTime>)> {
        self.iter_retained().map(|(service, id, it)| ((service.clone(), id.clone()), it.elapsed.since))
    }

    /// The services that have retained upstreams.
    pub fn services_with_retained(&self) -> Vec<ServiceId> {
        self.retained.keys().cloned().collect()
    }

    fn iter_retained(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId, &Retention)> {
        self.retained.iter().flat_map(|(service, retained)| retained.iter().map(move |(id, it)| (service, id, it)))
    }
}

impl ClusterRevision {
    fn is_covered_by(self, acceptance: &Acceptance) -> bool {
        self.cluster == acceptance.cluster && self.revision <= acceptance.revision
    }
}

impl Retention {
    /// Takes HAProxy's answer in. Returns false if the upstream is to be dropped.
    fn apply_health(&mut self, now: Instant, health: ServerHealth, timer: Option<Duration>) -> bool {
        let age = self.elapsed.age_at(now);
        if timer.is_some_and(|timer| age >= timer) {
            return false;
        }
        match health {
            ServerHealth::Up => {
                self.is_unproven = false;
                true
            }
            // A HAProxy that is being restarted has found nothing dead.
            // An operator's `maint`, or another active color, says nothing about the app. It serves again afterwards.
            ServerHealth::InMaintenance | ServerHealth::Unknown => true,
            // HAProxy adds it as DOWN, so DOWN proves nothing before its first checks had time to pass.
            ServerHealth::Down | ServerHealth::Missing if self.is_unproven => age < PROVEN_WITHIN,
            ServerHealth::Down => false,
            ServerHealth::Missing => age < PUT_BACK_WITHIN,
        }
    }

    fn to_retained_upstream(&self) -> RetainedUpstream {
        RetainedUpstream { record: self.upstream.clone(), is_unproven: self.is_unproven }
    }
}

#[cfg(test)]
mod tests;
