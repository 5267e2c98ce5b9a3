//! The removal guard at work: HAProxy says which of the lost upstreams are up, and etcd whether their leases live.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use discovery::{Acceptance, ServiceId, Upstream, UpstreamId};

use super::Reconciler;
use crate::store::StoreUpdate;
use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned};
use crate::store::removal_guard::{Mass, Moment, Noticed, Sight, UpstreamRemoval};

/// How often HAProxy is asked at most whether what is retained is still up.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The pause for each service that retains something: no timer ends that, and HAProxy is asked for each by itself. HAProxy
/// sends nothing to an upstream whose check fails, whether or not it is retained.
const PAUSE_PER_SERVICE: Duration = Duration::from_millis(20);

/// Which servers HAProxy finds up, by service; None while it doesn't answer.
struct Health(Option<BTreeMap<ServiceId, BTreeMap<String, bool>>>);

impl Health {
    fn of(&self, service: &ServiceId, id: &UpstreamId) -> Sight {
        let Some(health) = &self.0 else { return Sight::Unknown };
        match health.get(service).and_then(|of| of.get(id.as_str())) {
            Some(true) => Sight::Up,
            Some(false) => Sight::Down,
            None => Sight::Missing,
        }
    }
}

impl Reconciler {
    /// Has the first listing compared with the store as it was remembered: what was lost while confgen was away counts too.
    pub fn compare_with_remembered(&mut self) {
        if self.stored.position.is_some() {
            self.settled.limit(self.limits());
            self.settled.assume(&self.stored.clone().topology());
        }
    }

    /// Goes on with what was retained and what was lost before this process.
    pub(super) fn restore_guard(&mut self) {
        let (kept, lost) = (std::mem::take(&mut self.stored.kept), std::mem::take(&mut self.stored.lost));
        self.guard.recall(Instant::now(), SystemTime::now(), kept, lost);
        for service in self.guard.holding() {
            self.settled.keep(&service, self.guard.held(&service));
        }
    }

    /// Retains upstreams that lost their keys unexpectedly, if they are too many. Returns the services for which the outcome
    /// changed.
    pub(super) fn guard_losses(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let goodbyes = &news.goodbyes;
        let is_announced = |it: &UpstreamRemoval| goodbyes.contains(&(it.service.clone(), it.id.clone()));
        let departures: Vec<UpstreamRemoval> =
            self.settled.take_departures().into_iter().filter(|it| it.is_unexpected() && !is_announced(it)).collect();
        self.guard.follow_store(noticed(news));
        let settled = &self.settled;
        self.guard.forget(|it| is_announced(it) || settled.has(&it.service, &it.id));
        let mut concerned = self.check_acceptance(news);
        if !departures.is_empty() {
            let lost = self.unexpected(departures);
            let live = self.settled.bearers(lost.iter().map(|it| &it.upstream).chain(self.guard.lost_upstreams()));
            self.guard.forget(|it| has_other_bearer(it, &live));
            let lost: Vec<UpstreamRemoval> = lost.into_iter().filter(|it| !has_other_bearer(it, &live)).collect();
            let services: BTreeSet<ServiceId> =
                lost.iter().map(|it| &it.service).chain(self.guard.services_with_removals()).cloned().collect();
            let present = self.settled.present(&services);
            let moment = moment(news);
            let mass = self.guard.lost(moment, lost, &present);
            concerned.extend(self.keep(moment, mass));
        }
        if !self.guard.holding().is_empty() {
            concerned.extend(self.guard_release(goodbyes));
        }
        concerned
    }

    /// The losses of upstreams that HAProxy finds up and whose lease has ended. If the lease lives, the key was deleted.
    fn unexpected(&self, mut departures: Vec<UpstreamRemoval>) -> Vec<UpstreamRemoval> {
        let health = self.health(&departures.iter().map(|it| it.service.clone()).collect());
        // A HAProxy that is being restarted has found nothing dead.
        departures.retain(|it| matches!(health.of(&it.service, &it.id), Sight::Up | Sight::Unknown));
        if !departures.is_empty() {
            let alive = (self.lives)(departures.iter().map(|it| it.lease).collect());
            departures.retain(|it| !alive.contains(&it.lease));
        }
        departures
    }

    fn keep(&mut self, moment: Moment, mut mass: Mass) -> BTreeSet<ServiceId> {
        // Nothing would prove that one is alive if its service is not checked, or is gone.
        let settled = &self.settled;
        mass.returning.retain(|it| settled.is_checked(&it.service));
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
        self.guard.hold(moment, mass);
        services.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    /// An operator may have said that the store is meant as it is.
    fn check_acceptance(&mut self, news: &StoreUpdate) -> BTreeSet<ServiceId> {
        let word = news.topology.accept_store();
        let written = word.map(|word| (news.position.cluster, word.mod_revision));
        if std::mem::replace(&mut self.accepted, written) == written {
            return BTreeSet::new();
        }
        // One that claims a later revision than its own is of another store: a backup has brought it.
        let acceptance = word.and_then(|word| {
            Acceptance::parse(&word.value).ok().filter(|acceptance| acceptance.revision <= word.mod_revision)
        });
        let Some(acceptance) = acceptance else { return BTreeSet::new() };
        let accepted = self.guard.accept(&acceptance);
        for (service, count) in &accepted {
            tracing::info!("{service}: {count} retained upstreams go: an operator accepts the store as it is");
        }
        accepted.into_keys().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    /// True if HAProxy must be asked again for the checks of retained upstreams.
    pub(super) fn is_release_due(&self) -> bool {
        let services = u32::try_from(self.guard.holding().len()).unwrap_or(u32::MAX);
        self.guarded_at.elapsed() >= ASK_EVERY.max(PAUSE_PER_SERVICE.saturating_mul(services))
    }

    pub(super) fn guard_release(&mut self, goodbyes: &BTreeSet<UpstreamRef>) -> BTreeSet<ServiceId> {
        let now = Instant::now();
        let before = self.guard.upstreams().count();
        let health = if self.is_release_due() {
            self.guarded_at = now;
            self.health(&self.guard.holding().into_iter().collect())
        } else {
            Health(None)
        };
        let live = self.settled.bearers(self.guard.upstreams());
        let settled = &self.settled;
        let changed = self.guard.release(now, |kept, upstream, bore| {
            let (service, id) = kept;
            let goes = goodbyes.contains(kept) || settled.has(service, id) || !settled.is_checked(service);
            let goes = goes || is_elsewhere(kept, upstream, bore, &live);
            (!goes).then(|| health.of(service, id))
        });
        let left = self.guard.upstreams().count();
        if left < before {
            let gone = before - left;
            tracing::info!(
                "{gone} retained upstreams are announced again, or fail their check; {left} are still retained"
            );
        }
        changed.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    fn health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let all = services.iter().map(|service| Some((service.clone(), self.proxy.health(service)?)));
        Health(all.collect())
    }
}

fn noticed(news: &StoreUpdate) -> Noticed {
    Noticed { cluster: news.position.cluster, revision: news.position.revision }
}

fn moment(news: &StoreUpdate) -> Moment {
    Moment { now: Instant::now(), at: SystemTime::now(), noticed: noticed(news) }
}

/// Whether the address of a lost upstream is another record's now.
fn has_other_bearer(lost: &UpstreamRemoval, live: &AddressOwners) -> bool {
    is_elsewhere(&(lost.service.clone(), lost.id.clone()), &lost.upstream, &lost.bore, live)
}

/// Whether the address of an upstream without a key is another record's now.
fn is_elsewhere(gone: &UpstreamRef, upstream: &Upstream, bore: &BTreeSet<UpstreamRef>, live: &AddressOwners) -> bool {
    live.get(&upstream.address)
        .into_iter()
        .flatten()
        .any(|live| live != gone && address_was_reassigned(gone, live, Some(bore)))
}
