//! The removal guard at work: HAProxy says which of the lost upstreams are up, and etcd whether their leases live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use discovery::{Acceptance, ServiceId, Upstream, UpstreamId};

use super::Reconciler;
use crate::store::StoreUpdate;
use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned};
use crate::store::removal_guard::{ClusterRevision, MassRemoval, Moment, ServerHealth, UpstreamRemoval};

/// How often HAProxy is asked at most whether what is retained is still up.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The pause for each service that retains something: no timer ends that, and HAProxy is asked for each by itself. HAProxy
/// sends nothing to an upstream whose check fails, whether or not it is retained.
const PAUSE_PER_SERVICE: Duration = Duration::from_millis(20);

/// Which servers HAProxy finds up, by service; None while it doesn't answer.
struct Health(Option<BTreeMap<ServiceId, BTreeMap<String, ServerHealth>>>);

impl Health {
    fn find(&self, service: &ServiceId, id: &UpstreamId) -> ServerHealth {
        let Some(health) = &self.0 else { return ServerHealth::Unknown };
        health.get(service).and_then(|of| of.get(id.as_str())).copied().unwrap_or(ServerHealth::Missing)
    }
}

impl Reconciler {
    /// Has the first listing compared with the store as it was remembered: what was lost while confgen was away counts too.
    pub fn compare_with_persisted(&mut self) {
        if self.persisted.position.is_some() {
            self.desired.set_policy(self.current_policy());
            self.desired.assume_topology(&self.persisted.clone().into_topology());
        }
    }

    /// Goes on with what was retained and what was lost before this process.
    pub(super) fn restore_removal_guard(&mut self) {
        let (kept, lost) = (std::mem::take(&mut self.persisted.kept), std::mem::take(&mut self.persisted.lost));
        self.removal_guard.restore_persisted(Instant::now(), SystemTime::now(), kept, lost);
        for service in self.removal_guard.services_with_retained() {
            self.desired.set_retained(&service, self.removal_guard.retained_of(&service));
        }
    }

    /// Retains upstreams that lost their keys unexpectedly, if they are too many. Returns the services for which the outcome
    /// changed.
    pub(super) fn retain_removed(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let goodbyes = &news.graceful_removals;
        let is_announced = |it: &UpstreamRemoval| goodbyes.contains(&(it.service.clone(), it.id.clone()));
        let departures: Vec<UpstreamRemoval> =
            self.desired.take_removals().into_iter().filter(|it| it.is_unexpected() && !is_announced(it)).collect();
        self.removal_guard.lower_revisions(to_noticed(news));
        let settled = &self.desired;
        self.removal_guard.forget_explained(|it| is_announced(it) || settled.has_upstream(&it.service, &it.id));
        let mut concerned = self.check_acceptance(news);
        if !departures.is_empty() {
            let lost = self.filter_unexpected(departures);
            let live = self
                .desired
                .find_address_owners(lost.iter().map(|it| &it.upstream).chain(self.removal_guard.lost_upstreams()));
            self.removal_guard.forget_explained(|it| has_new_owner(it, &live));
            let lost: Vec<UpstreamRemoval> = lost.into_iter().filter(|it| !has_new_owner(it, &live)).collect();
            let services: BTreeSet<ServiceId> =
                lost.iter().map(|it| &it.service).chain(self.removal_guard.services_with_removals()).cloned().collect();
            let present = self.desired.count_upstreams(&services);
            let moment = current_moment(news);
            let mass = self.removal_guard.record_losses(moment, lost, &present);
            concerned.extend(self.retain_mass(moment, mass));
        }
        if !self.removal_guard.services_with_retained().is_empty() {
            concerned.extend(self.release_retained(goodbyes));
        }
        concerned
    }

    /// The losses of upstreams that HAProxy finds up and whose lease has ended. If the lease lives, the key was deleted.
    fn filter_unexpected(&self, mut departures: Vec<UpstreamRemoval>) -> Vec<UpstreamRemoval> {
        let health = self.ask_health(&departures.iter().map(|it| it.service.clone()).collect());
        // A HAProxy that is being restarted has found nothing dead. An upstream in maintenance is expected to go.
        departures.retain(|it| matches!(health.find(&it.service, &it.id), ServerHealth::Up | ServerHealth::Unknown));
        if !departures.is_empty() {
            let alive = (self.lease_lookup)(departures.iter().map(|it| it.lease).collect());
            departures.retain(|it| !alive.contains(&it.lease));
        }
        departures
    }

    fn retain_mass(&mut self, moment: Moment, mut mass: MassRemoval) -> BTreeSet<ServiceId> {
        // Nothing would prove that one is alive if its service is not checked, or is gone.
        let settled = &self.desired;
        mass.returning.retain(|it| settled.has_checks(&it.service));
        let of =
            |lost: &[UpstreamRemoval], service: &ServiceId| lost.iter().filter(|it| it.service == *service).count();
        let services: BTreeSet<ServiceId> =
            mass.recent.iter().chain(&mass.returning).map(|it| it.service.clone()).collect();
        for service in &services {
            let (recent, returning) = (of(&mass.recent, service), of(&mass.returning, service));
            if recent > 0 {
                tracing::warn!(
                    "{service}: {recent} upstreams lost their keys without notice and are up; retained until a check fails"
                );
            }
            if returning > 0 {
                tracing::warn!(
                    "{service}: {returning} upstreams that were lost before them are added again, and serve once a check \
                     passes"
                );
            }
        }
        self.removal_guard.retain_upstreams(moment, mass);
        services
            .into_iter()
            .filter(|service| self.desired.set_retained(service, self.removal_guard.retained_of(service)))
            .collect()
    }

    /// An operator may have said that the store is meant as it is.
    fn check_acceptance(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let word = news.topology.accept_store();
        let written = word.map(|word| (news.store_revision.cluster, word.mod_revision));
        if std::mem::replace(&mut self.last_acceptance, written) == written {
            return BTreeSet::new();
        }
        // One that claims a later revision than its own is of another store: a backup has brought it.
        let acceptance = word.and_then(|word| {
            Acceptance::parse(&word.value).ok().filter(|acceptance| acceptance.revision <= word.mod_revision)
        });
        let Some(acceptance) = acceptance else { return BTreeSet::new() };
        let accepted = self.removal_guard.apply_acceptance(&acceptance);
        for (service, count) in &accepted {
            tracing::info!("{service}: {count} retained upstreams go: an operator accepts the store as it is");
        }
        accepted
            .into_keys()
            .filter(|service| self.desired.set_retained(service, self.removal_guard.retained_of(service)))
            .collect()
    }

    /// True if HAProxy must be asked again for the checks of retained upstreams.
    pub(super) fn is_release_due(&self) -> bool {
        let services = u32::try_from(self.removal_guard.services_with_retained().len()).unwrap_or(u32::MAX);
        self.health_asked_at.elapsed() >= ASK_EVERY.max(PAUSE_PER_SERVICE.saturating_mul(services))
    }

    pub(super) fn release_retained(&mut self, goodbyes: &BTreeSet<UpstreamRef>) -> BTreeSet<ServiceId> {
        let now = Instant::now();
        let before = self.removal_guard.retained_upstreams().count();
        let health = if self.is_release_due() {
            self.health_asked_at = now;
            self.ask_health(&self.removal_guard.services_with_retained().into_iter().collect())
        } else {
            Health(None)
        };
        let live = self.desired.find_address_owners(self.removal_guard.retained_upstreams());
        let settled = &self.desired;
        let changed = self.removal_guard.release_upstreams(now, |kept, upstream, bore| {
            let (service, id) = kept;
            let goes = goodbyes.contains(kept) || settled.has_upstream(service, id) || !settled.has_checks(service);
            let goes = goes || address_has_new_owner(kept, upstream, bore, &live);
            (!goes).then(|| health.find(service, id))
        });
        let left = self.removal_guard.retained_upstreams().count();
        if left < before {
            let gone = before - left;
            tracing::info!(
                "{gone} retained upstreams are announced again, or fail their check; {left} are still retained"
            );
        }
        changed
            .into_iter()
            .filter(|service| self.desired.set_retained(service, self.removal_guard.retained_of(service)))
            .collect()
    }

    fn ask_health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let all = services.iter().map(|service| Some((service.clone(), self.haproxy.query_health(service)?)));
        Health(all.collect())
    }
}

fn to_noticed(news: &StoreUpdate) -> ClusterRevision {
    ClusterRevision { cluster: news.store_revision.cluster, revision: news.store_revision.revision }
}

fn current_moment(news: &StoreUpdate) -> Moment {
    Moment { now: Instant::now(), wall_clock: SystemTime::now(), store_revision: to_noticed(news) }
}

/// Whether the address of a lost upstream is another record's now.
fn has_new_owner(lost: &UpstreamRemoval, live: &AddressOwners) -> bool {
    address_has_new_owner(&(lost.service.clone(), lost.id.clone()), &lost.upstream, &lost.previous_owners, live)
}

/// Whether the address of an upstream without a key is another record's now.
fn address_has_new_owner(
    gone: &UpstreamRef,
    upstream: &Upstream,
    bore: &BTreeSet<UpstreamRef>,
    live: &AddressOwners,
) -> bool {
    live.get(&upstream.address)
        .into_iter()
        .flatten()
        .any(|live| live != gone && address_was_reassigned(gone, live, Some(bore)))
}
