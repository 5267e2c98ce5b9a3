//! How things stand, for whoever asks, and what is said once to the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use haproxy::runtime::ServerName;

use super::Reconciler;
use crate::drain::Upstream;
use crate::local_files::expiry;
use crate::status::{ReconcileStatus, Retained, Retainer};
use crate::store::StoreRevision;

impl Reconciler {
    /// Up to where the store was known to the last round.
    pub fn position(&self) -> StoreRevision {
        self.position
    }

    /// Whether HAProxy is known to run all of that, but for what is pending.
    pub fn is_current(&self) -> bool {
        self.proxy.follows() && self.standing.applied == Some(self.position)
    }

    /// Upstreams that nobody wants any more, and that still have connections.
    pub fn leaving(&self) -> Vec<Upstream> {
        let upstream = |name: ServerName| {
            Some((crate::desired::names::service(name.backend.as_str())?, name.server.as_str().parse().ok()?))
        };
        self.proxy.leaving().into_iter().filter_map(upstream).collect()
    }

    /// How things stand.
    pub fn standing(&self) -> ReconcileStatus {
        ReconcileStatus {
            settled: Arc::new(self.settled.clone()),
            held: self.retained(),
            lost: self.held.lost(),
            acme: self.site.acme.clone(),
            quarantined: self.quarantined.clone(),
            certificates: Arc::clone(&self.outside.certificates),
            refused_error_pages: self.outside.pages.refused.len(),
            operators: self.operators(),
            ..self.standing.clone()
        }
    }

    /// The upstreams that are served although their keys are gone.
    fn retained(&self) -> BTreeMap<Upstream, Retained> {
        let reset = Retained { by: Retainer::Reset, since: self.held.since() };
        let lost = self.held.upstreams(|service, id| self.settled.record(service, id));
        let mut retained: BTreeMap<Upstream, Retained> = lost.into_iter().map(|name| (name, reset)).collect();
        retained.extend(self.guard.since().map(|(name, since)| (name, Retained { by: Retainer::Guard, since })));
        retained
    }

    /// Says once what is refused, and once that it no longer is.
    pub fn tell_quarantine(&mut self) {
        let quarantined = self.settled.quarantined();
        for (key, reason) in &quarantined {
            if self.quarantined.get(key) != Some(reason) {
                tracing::warn!("quarantine: {key}: {reason}");
            }
        }
        for key in self.quarantined.keys().filter(|key| !quarantined.contains_key(*key)) {
            tracing::info!("quarantine: {key}: followed again, or gone");
        }
        self.quarantined = quarantined;
        self.tell_operators();
    }

    /// Says once a day which certificates expire, of those that serve something.
    pub(super) fn tell_expiry(&mut self) {
        for warning in self.expiry.warnings(self.outside.certificates.serving(), expiry::now()) {
            tracing::warn!("{warning}");
        }
    }
}
