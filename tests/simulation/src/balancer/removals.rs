//! The inputs of the removal guard, in the order of `confgen/src/reconcile/mass_removal.rs`.

use std::collections::{BTreeMap, BTreeSet};

use confgen::decisions::{
    AddressOwners, ClusterRevision, MassRemoval, Moment, ServerHealth, StoreUpdate, UpstreamRef, UpstreamRemoval,
    address_was_reassigned,
};
use discovery::{Acceptance, ServiceId, Upstream, UpstreamId};

use super::{Context, Reconciler};
use crate::bugs::Bug;
use crate::clock::Clock;

/// By service, the servers' health. `None` while HAProxy doesn't answer.
struct Health(Option<BTreeMap<ServiceId, BTreeMap<String, ServerHealth>>>);

impl Health {
    fn find(&self, service: &ServiceId, id: &UpstreamId) -> ServerHealth {
        let Some(health) = &self.0 else { return ServerHealth::Unknown };
        health.get(service).and_then(|of| of.get(id.as_str())).copied().unwrap_or(ServerHealth::Missing)
    }
}

impl Reconciler {
    pub(super) fn retain_removed(&mut self, update: &StoreUpdate, context: Context<'_>) -> BTreeSet<ServiceId> {
        let none = BTreeSet::new();
        let graceful = if context.has(Bug::ForgetGracefulRemovals) { &none } else { &update.graceful_removals };
        let removals = self.desired.take_removals().into_iter();
        let removals: Vec<UpstreamRemoval> = removals
            .filter(|it| context.has(Bug::ForgetGracefulRemovals) || it.is_unexpected())
            .filter(|it| !is_among(it, graceful))
            .collect();
        let noticed =
            ClusterRevision { cluster: update.store_revision.cluster, revision: update.store_revision.revision };
        self.guard.lower_revisions(noticed);
        let desired = &self.desired;
        self.guard.forget_explained(|it| is_among(it, graceful) || desired.has_upstream(&it.service, &it.id));
        let mut changed = self.check_acceptance(update);
        if !removals.is_empty() {
            let lost = self.filter_unexpected(removals, context);
            let live = lost.iter().map(|it| &it.upstream).chain(self.guard.lost_upstreams());
            let live = self.desired.find_address_owners(live);
            self.guard.forget_explained(|it| has_new_owner(it, &live));
            let lost: Vec<UpstreamRemoval> = lost.into_iter().filter(|it| !has_new_owner(it, &live)).collect();
            let services = lost.iter().map(|it| &it.service).chain(self.guard.services_with_removals());
            let present = self.desired.count_upstreams(&services.cloned().collect());
            let (now, wall_clock) = (context.clock.now(), context.clock.wall());
            let moment = Moment { now, wall_clock, store_revision: noticed };
            let mass = self.guard.record_losses(moment, lost, &present);
            changed.extend(self.retain_mass(moment, mass));
        }
        if !self.guard.services_with_retained().is_empty() {
            changed.extend(self.release_retained(graceful, context.clock));
        }
        changed
    }

    fn filter_unexpected(&self, mut removals: Vec<UpstreamRemoval>, context: Context<'_>) -> Vec<UpstreamRemoval> {
        let health = self.ask_health(&removals.iter().map(|it| it.service.clone()).collect());
        removals.retain(|it| matches!(health.find(&it.service, &it.id), ServerHealth::Up | ServerHealth::Unknown));
        if !removals.is_empty() {
            let alive = context.living(removals.iter().map(|it| it.lease).collect());
            removals.retain(|it| !alive.contains(&it.lease));
        }
        removals
    }

    fn retain_mass(&mut self, moment: Moment, mut mass: MassRemoval) -> BTreeSet<ServiceId> {
        let desired = &self.desired;
        mass.returning.retain(|it| desired.has_checks(&it.service));
        let services: BTreeSet<ServiceId> =
            mass.recent.iter().chain(&mass.returning).map(|it| it.service.clone()).collect();
        self.guard.retain_upstreams(moment, mass);
        self.serve_retained(services)
    }

    fn serve_retained(&mut self, services: BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let services = services.into_iter();
        services.filter(|service| self.desired.set_retained(service, self.guard.retained_of(service))).collect()
    }

    fn check_acceptance(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        let word = update.topology.accept_store();
        let written = word.map(|word| (update.store_revision.cluster, word.mod_revision));
        if std::mem::replace(&mut self.last_acceptance, written) == written {
            return BTreeSet::new();
        }
        let acceptance = word.and_then(|word| {
            Acceptance::parse(&word.value).ok().filter(|acceptance| acceptance.revision <= word.mod_revision)
        });
        let Some(acceptance) = acceptance else { return BTreeSet::new() };
        let accepted = self.guard.apply_acceptance(&acceptance).into_keys().collect();
        self.serve_retained(accepted)
    }

    pub(super) fn release_retained(&mut self, graceful: &BTreeSet<UpstreamRef>, clock: Clock) -> BTreeSet<ServiceId> {
        let health = if self.is_release_due(clock) {
            self.health_asked_at = clock.millis();
            self.ask_health(&self.guard.services_with_retained().into_iter().collect())
        } else {
            Health(None)
        };
        let live = self.desired.find_address_owners(self.guard.retained_upstreams());
        let desired = &self.desired;
        let changed = self.guard.release_upstreams(clock.now(), |kept, upstream, previous_owners| {
            let (service, id) = kept;
            let goes = graceful.contains(kept) || desired.has_upstream(service, id) || !desired.has_checks(service);
            let goes = goes || address_has_new_owner(kept, upstream, previous_owners, &live);
            (!goes).then(|| health.find(service, id))
        });
        self.serve_retained(changed)
    }

    fn ask_health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let all = services.iter().map(|service| Some((service.clone(), self.control.query_health(service)?)));
        Health(all.collect())
    }
}

fn has_new_owner(lost: &UpstreamRemoval, live: &AddressOwners) -> bool {
    address_has_new_owner(&(lost.service.clone(), lost.id.clone()), &lost.upstream, &lost.previous_owners, live)
}

fn address_has_new_owner(
    gone: &UpstreamRef,
    upstream: &Upstream,
    previous_owners: &BTreeSet<UpstreamRef>,
    live: &AddressOwners,
) -> bool {
    let owners = live.get(&upstream.address).into_iter().flatten();
    owners.into_iter().any(|live| live != gone && address_was_reassigned(gone, live, Some(previous_owners)))
}

fn is_among(removal: &UpstreamRemoval, graceful: &BTreeSet<UpstreamRef>) -> bool {
    graceful.contains(&(removal.service.clone(), removal.id.clone()))
}
