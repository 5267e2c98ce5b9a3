//! The inputs of the removal guard: HAProxy says which removed upstreams are up, etcd which leases live. `pass.rs` decides what
//! follows, and `store/removal_guard.rs` has the rules for numbers.

pub(crate) mod pass;

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use discovery::ServiceId;

use super::Reconciler;
use crate::reconcile::mass_removal::pass::{Evidence, GuardPass, Health};
use crate::reconcile::state::LeaseLookup;
use crate::runtime::HaproxyControl;
use crate::store::StoreUpdate;
use crate::store::address_owners::UpstreamRef;

/// HAProxy and etcd, as they answer now.
struct Asked<'a> {
    haproxy: &'a HaproxyControl,
    lease_lookup: &'a LeaseLookup,
}

impl Evidence for Asked<'_> {
    fn ask_health(&self, services: &BTreeSet<ServiceId>) -> Health {
        let all = services.iter().map(|service| Some((service.clone(), self.haproxy.query_health(service)?)));
        Health(all.collect())
    }

    fn find_live_leases(&self, leases: BTreeSet<i64>) -> BTreeSet<i64> {
        (self.lease_lookup)(leases)
    }
}

impl Reconciler {
    /// Has the first listing compared with the persisted store, so that removals while confgen was down count too.
    pub fn compare_with_persisted(&mut self) {
        if self.retained.persisted.position.is_some() {
            self.desired.set_policy(self.current_policy());
            self.desired.assume_topology(&self.retained.persisted.clone().into_topology());
        }
    }

    /// Goes on with the upstreams that the previous process retained, and with the removals that it counted.
    pub(super) fn restore_removal_guard(&mut self) {
        self.retained.restore_guard(&mut self.desired, Instant::now(), SystemTime::now());
    }

    /// Retains upstreams that lost their keys unexpectedly, if they are too many. Returns the services whose retained upstreams
    /// changed.
    pub(super) fn retain_removed(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        self.with_guard_pass(|mut pass| pass.retain_removed(update))
    }

    /// True if HAProxy may be asked again about the retained upstreams.
    pub(super) fn is_release_due(&self) -> bool {
        self.retained.is_release_due(Instant::now())
    }

    pub(super) fn release_retained(&mut self, graceful: &BTreeSet<UpstreamRef>) -> BTreeSet<ServiceId> {
        self.with_guard_pass(|mut pass| pass.release_retained(graceful))
    }

    fn with_guard_pass<T>(&mut self, run: impl FnOnce(GuardPass<'_>) -> T) -> T {
        let evidence = Asked { haproxy: &self.haproxy, lease_lookup: &self.config.lease_lookup };
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        let (desired, retained) = (&mut self.desired, &mut self.retained);
        run(GuardPass { desired, retained, evidence: &evidence, now, wall_clock })
    }
}
