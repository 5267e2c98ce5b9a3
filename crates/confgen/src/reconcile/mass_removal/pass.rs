//! One pass of the removal guard: which removals are losses, which losses are retained, and which retained upstreams go. Pure: it
//! asks HAProxy and etcd through [`Evidence`], reads no clock, and only logs. The rules for numbers stand in
//! `store/removal_guard.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use discovery::{Acceptance, ServiceId, Topology, Upstream, UpstreamId};

use crate::desired::DesiredState;
use crate::reconcile::state::Retention;
use crate::store::StoreUpdate;
use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned};
use crate::store::removal_guard::{ClusterRevision, MassRemoval, Moment, ServerHealth, UpstreamRemoval};

/// The servers that HAProxy finds up or down, by service and name. `None` while HAProxy doesn't answer.
#[derive(Clone, Debug, Default)]
pub struct Health(pub Option<BTreeMap<ServiceId, BTreeMap<String, ServerHealth>>>);

impl Health {
    fn find(&self, service: &ServiceId, id: &UpstreamId) -> ServerHealth {
        let Some(health) = &self.0 else { return ServerHealth::Unknown };
        health.get(service).and_then(|of| of.get(id.as_str())).copied().unwrap_or(ServerHealth::Missing)
    }
}

/// The facts that a pass asks for.
pub trait Evidence {
    /// HAProxy's answer about the servers of these services.
    fn ask_health(&self, services: &BTreeSet<ServiceId>) -> Health;

    /// The leases among these that live, by etcd's answer. A lease that etcd doesn't answer for counts as dead.
    fn find_live_leases(&self, leases: BTreeSet<i64>) -> BTreeSet<i64>;
}

/// One pass, with the state that it changes.
pub struct GuardPass<'a> {
    /// The desired state after the services of the update were read.
    pub desired: &'a mut DesiredState,
    /// The guard, and what it remembers from pass to pass.
    pub retained: &'a mut Retention,
    /// HAProxy and etcd.
    pub evidence: &'a dyn Evidence,
    /// The time by the monotonic clock.
    pub now: Instant,
    /// The time by this host's clock, for what is persisted.
    pub wall_clock: SystemTime,
}

impl GuardPass<'_> {
    /// Retains upstreams that lost their keys unexpectedly, if they are too many. Returns the services whose retained upstreams
    /// changed.
    pub fn retain_removed(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        let graceful = &update.graceful_removals;
        let removals = self.desired.take_removals().into_iter();
        let removals: Vec<UpstreamRemoval> =
            removals.filter(|it| it.is_unexpected() && !is_among(it, graceful)).collect();
        self.retained.guard.lower_revisions(to_noticed(update));
        let desired = &*self.desired;
        self.retained.guard.forget_explained(|it| is_among(it, graceful) || desired.has_upstream(&it.service, &it.id));
        let mut changed = self.check_acceptance(update);
        if !removals.is_empty() {
            let lost = self.filter_unexpected(removals);
            let live = self
                .desired
                .find_address_owners(lost.iter().map(|it| &it.upstream).chain(self.retained.guard.lost_upstreams()));
            self.retained.guard.forget_explained(|it| has_new_owner(it, &live));
            let lost: Vec<UpstreamRemoval> = lost.into_iter().filter(|it| !has_new_owner(it, &live)).collect();
            let services: BTreeSet<ServiceId> = lost
                .iter()
                .map(|it| &it.service)
                .chain(self.retained.guard.services_with_removals())
                .cloned()
                .collect();
            let present = self.desired.count_upstreams(&services);
            let moment = self.moment(update);
            let mass = self.retained.guard.record_losses(moment, lost, &present);
            changed.extend(self.retain_mass(moment, mass));
        }
        if !self.retained.guard.services_with_retained().is_empty() {
            changed.extend(self.release_retained(graceful));
        }
        self.log_deleted_services(&update.topology);
        changed
    }

    /// Logs the services whose settings were deleted while the guard retains upstreams of theirs. Settings hang on no lease, so
    /// only a client deletes them, and that is meant. A reset store's settings are still in the topology.
    fn log_deleted_services(&mut self, topology: &Topology) {
        let retained = self.retained.guard.services_with_retained().into_iter();
        let bare: BTreeSet<ServiceId> =
            retained.filter(|id| !id.is_default() && lacks_settings(topology, id)).collect();
        for service in bare.difference(&self.retained.without_settings) {
            let count = self.retained.guard.retained_of(service).len();
            tracing::warn!(%service, count, "service deleted, its retained upstreams serve no host or port");
        }
        self.retained.without_settings = bare;
    }

    /// The removals of upstreams that HAProxy finds up and whose lease has ended. If the lease lives, an operator or an announcer
    /// deleted the key.
    fn filter_unexpected(&self, mut removals: Vec<UpstreamRemoval>) -> Vec<UpstreamRemoval> {
        let health = self.evidence.ask_health(&removals.iter().map(|it| it.service.clone()).collect());
        removals.retain(|it| may_serve(health.find(&it.service, &it.id)));
        if !removals.is_empty() {
            let alive = self.evidence.find_live_leases(removals.iter().map(|it| it.lease).collect());
            removals.retain(|it| !alive.contains(&it.lease));
        }
        removals
    }

    fn retain_mass(&mut self, moment: Moment, mut mass: MassRemoval) -> BTreeSet<ServiceId> {
        // Without a check, nothing would show that an upstream of long ago is alive.
        let desired = &*self.desired;
        mass.returning.retain(|it| desired.has_checks(&it.service));
        let services: BTreeSet<ServiceId> =
            mass.recent.iter().chain(&mass.returning).map(|it| it.service.clone()).collect();
        for service in &services {
            let (recent, returning) = (count_of(&mass.recent, service), count_of(&mass.returning, service));
            if recent > 0 {
                tracing::warn!(%service, count = recent, "retaining upstreams without keys until a check fails");
            }
            if returning > 0 {
                tracing::warn!(%service, count = returning, "adding removed upstreams again, pending a check");
            }
        }
        self.retained.guard.retain_upstreams(moment, mass);
        services
            .into_iter()
            .filter(|service| self.desired.set_retained(service, self.retained.guard.retained_of(service)))
            .collect()
    }

    /// Releases retained upstreams if an operator accepted the store. Returns their services.
    fn check_acceptance(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        let word = update.topology.accept_store();
        let written = word.map(|word| (update.store_revision.cluster, word.mod_revision));
        // An acceptance counts once. The key stays until discoverctl has seen all balancers follow.
        if std::mem::replace(&mut self.retained.last_acceptance, written) == written {
            return BTreeSet::new();
        }
        // An acceptance that names a later revision than its own is of another store, and came with a backup.
        let acceptance = word.and_then(|word| {
            Acceptance::parse(&word.value).ok().filter(|acceptance| acceptance.revision <= word.mod_revision)
        });
        let Some(acceptance) = acceptance else { return BTreeSet::new() };
        let accepted = self.retained.guard.apply_acceptance(&acceptance);
        for (service, count) in &accepted {
            tracing::info!(%service, count, "retained upstreams released, an operator accepted the store");
        }
        accepted
            .into_keys()
            .filter(|service| self.desired.set_retained(service, self.retained.guard.retained_of(service)))
            .collect()
    }

    /// Releases the retained upstreams that HAProxy finds down or whose removal is explained. Returns their services.
    pub fn release_retained(&mut self, graceful: &BTreeSet<UpstreamRef>) -> BTreeSet<ServiceId> {
        let now = self.now;
        let before = self.retained.guard.retained_upstreams().count();
        let health = if self.retained.is_release_due(now) {
            self.retained.health_asked_at = now;
            self.evidence.ask_health(&self.retained.guard.services_with_retained().into_iter().collect())
        } else {
            // An unknown health is no cause for a release.
            Health(None)
        };
        let live = self.desired.find_address_owners(self.retained.guard.retained_upstreams());
        let desired = &*self.desired;
        let changed = self.retained.guard.release_upstreams(now, |kept, upstream, previous_owners| {
            let (service, id) = kept;
            // HAProxy takes a server without a check for up, so nothing would ever end its retention.
            let goes = graceful.contains(kept) || desired.has_upstream(service, id) || !desired.has_checks(service);
            let goes = goes || address_has_new_owner(kept, upstream, previous_owners, &live);
            (!goes).then(|| health.find(service, id))
        });
        let left = self.retained.guard.retained_upstreams().count();
        if left < before {
            // Their keys are back, their check failed, or one of the other causes that `store/removal_guard.rs` names.
            tracing::info!(count = before - left, left, "retained upstreams released");
        }
        changed
            .into_iter()
            .filter(|service| self.desired.set_retained(service, self.retained.guard.retained_of(service)))
            .collect()
    }

    fn moment(&self, update: &StoreUpdate) -> Moment {
        Moment { now: self.now, wall_clock: self.wall_clock, store_revision: to_noticed(update) }
    }
}

/// True if the loss of an upstream with this health may cost requests.
fn may_serve(health: ServerHealth) -> bool {
    // A HAProxy that doesn't answer can't have found an upstream down. An upstream in maintenance is expected to go. No client has
    // reached an upstream that HAProxy doesn't have, because the restart for its new service is under way.
    matches!(health, ServerHealth::Up | ServerHealth::Unknown)
}

fn lacks_settings(topology: &Topology, id: &ServiceId) -> bool {
    topology.services().get(id).is_none_or(|service| service.settings().next().is_none())
}

fn to_noticed(update: &StoreUpdate) -> ClusterRevision {
    ClusterRevision { cluster: update.store_revision.cluster, revision: update.store_revision.revision }
}

/// True if another record has the removed upstream's address now.
fn has_new_owner(lost: &UpstreamRemoval, live: &AddressOwners) -> bool {
    address_has_new_owner(&(lost.service.clone(), lost.id.clone()), &lost.upstream, &lost.previous_owners, live)
}

/// True if another record has the address of the upstream without a key now.
fn address_has_new_owner(
    gone: &UpstreamRef,
    upstream: &Upstream,
    previous_owners: &BTreeSet<UpstreamRef>,
    live: &AddressOwners,
) -> bool {
    live.get(&upstream.address)
        .into_iter()
        .flatten()
        .any(|live| live != gone && address_was_reassigned(gone, live, Some(previous_owners)))
}

fn is_among(removal: &UpstreamRemoval, graceful: &BTreeSet<UpstreamRef>) -> bool {
    graceful.contains(&(removal.service.clone(), removal.id.clone()))
}

fn count_of(removals: &[UpstreamRemoval], service: &ServiceId) -> usize {
    removals.iter().filter(|it| it.service == *service).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_that_haproxy_never_had_is_no_loss() {
        let service: ServiceId = crate::desired::names::parse_section("http-new").unwrap();
        let id: UpstreamId = "a".parse().unwrap();
        // HAProxy answers, and lacks the section of the new service until the restart.
        let answers = Health(Some([(service.clone(), BTreeMap::new())].into()));
        assert_eq!(answers.find(&service, &id), ServerHealth::Missing);
        assert!(!may_serve(answers.find(&service, &id)));
        assert!(may_serve(Health(None).find(&service, &id)), "HAProxy doesn't answer");
        let has = |health| Health(Some([(service.clone(), [("a".to_owned(), health)].into())].into()));
        assert!(may_serve(has(ServerHealth::Up).find(&service, &id)));
        assert!(!may_serve(has(ServerHealth::Down).find(&service, &id)));
    }
}
