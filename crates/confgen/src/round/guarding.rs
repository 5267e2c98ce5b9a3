//! The guard at work: HAProxy is asked which of what vanished is up, and etcd whether its lease lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use discovery::{ServiceId, Upstream, UpstreamId};

use super::Rounds;
use crate::bearers::{Bearer, Bearers, has_moved};
use crate::guard::Departure;

/// How often HAProxy is asked whether what is kept is still up.
pub(super) const GUARD_EVERY: Duration = Duration::from_secs(1);
/// A server that was put back may be missing from HAProxy's answer for as long as that takes.
const PUT_BACK: Duration = Duration::from_secs(2);

/// Which servers HAProxy finds up, by service; None while it doesn't answer.
struct Health(Option<BTreeMap<ServiceId, BTreeMap<String, bool>>>);

impl Health {
    /// None where it has no such server, or one in maintenance.
    fn of(&self, service: &ServiceId, id: &UpstreamId) -> Option<bool> {
        match &self.0 {
            Some(health) => health.get(service).and_then(|of| of.get(id.as_str())).copied(),
            // A HAProxy that is being restarted has found nobody dead.
            None => Some(true),
        }
    }
}

impl Rounds {
    /// Goes on keeping what was kept before this process.
    pub(super) fn keep_on(&mut self) {
        self.guard.recall(Instant::now(), std::mem::take(&mut self.stored.kept));
        for service in self.guard.holding() {
            self.settled.keep(&service, self.guard.held(&service));
        }
    }

    /// Keeps what vanished in a crowd. Says for which services the outcome is another one.
    pub(super) fn guard_losses(&mut self, goodbyes: &BTreeSet<Bearer>) -> BTreeSet<ServiceId> {
        let unasked = |it: &Departure| it.is_loss() && !goodbyes.contains(&(it.service.clone(), it.id.clone()));
        let departures: Vec<Departure> = self.settled.take_departures().into_iter().filter(unasked).collect();
        let mut concerned = BTreeSet::new();
        let settled = &self.settled;
        self.guard.forget(|service, id| goodbyes.contains(&(service.clone(), id.clone())) || settled.has(service, id));
        if !departures.is_empty() {
            let services: BTreeSet<ServiceId> =
                departures.iter().map(|it| &it.service).chain(self.guard.losers()).cloned().collect();
            let health = self.health(&services);
            let is_up = |it: &Departure| health.of(&it.service, &it.id) == Some(true);
            let present = self.settled.present(&services);
            let crowd = self.guard.lost(Instant::now(), departures.into_iter().filter(is_up).collect(), &present);
            concerned = self.keep(crowd);
        }
        if !self.guard.holding().is_empty() {
            concerned.extend(self.guard_release(goodbyes));
        }
        concerned
    }

    /// Keeps a crowd, but for those whose lease lives, since somebody deleted their keys, and those whose address is
    /// another record's now.
    fn keep(&mut self, mut crowd: Vec<Departure>) -> BTreeSet<ServiceId> {
        if crowd.is_empty() {
            return BTreeSet::new();
        }
        let live = self.settled.bearers(crowd.iter().map(|it| &it.upstream));
        crowd.retain(|it| !is_elsewhere(&(it.service.clone(), it.id.clone()), &it.upstream, &it.bore, &live));
        let alive = (self.lives)(crowd.iter().map(|it| it.lease).collect());
        crowd.retain(|it| !alive.contains(&it.lease));
        let services: BTreeSet<ServiceId> = crowd.iter().map(|it| it.service.clone()).collect();
        for service in &services {
            let count = crowd.iter().filter(|it| it.service == *service).count();
            tracing::warn!("{service}: {count} upstreams vanished at once and are up; kept until their checks fail");
        }
        self.guard.hold(Instant::now(), crowd);
        services.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    pub(super) fn guard_release(&mut self, goodbyes: &BTreeSet<Bearer>) -> BTreeSet<ServiceId> {
        self.guarded_at = Instant::now();
        let health = self.health(&self.guard.holding().into_iter().collect());
        let live = self.settled.bearers(self.guard.upstreams());
        let settled = &self.settled;
        let released = self.guard.release(self.guarded_at, |kept, upstream, bore, lasts| {
            let (service, id) = kept;
            let goes = goodbyes.contains(kept) || settled.has(service, id) || !settled.is_checked(service);
            !goes && !is_elsewhere(kept, upstream, bore, &live) && health.of(service, id).unwrap_or(lasts < PUT_BACK)
        });
        for service in &released {
            tracing::info!("{service}: upstreams that were kept are back, or let go");
        }
        released.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    fn health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let all = services.iter().map(|service| Some((service.clone(), self.proxy.health(service)?)));
        Health(all.collect())
    }
}

/// Whether the address of an upstream without a key is another record's now.
fn is_elsewhere(gone: &Bearer, upstream: &Upstream, bore: &BTreeSet<Bearer>, live: &Bearers) -> bool {
    live.get(&upstream.address).into_iter().flatten().any(|live| live != gone && has_moved(gone, live, Some(bore)))
}
