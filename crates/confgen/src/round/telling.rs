//! How things stand, for whoever asks, and what is said once to the log.

use std::sync::Arc;

use discovery::ServiceId;
use haproxy::runtime::ServerName;

use super::Rounds;
use crate::draining::Upstream;
use crate::expiry;
use crate::mirror::Position;
use crate::report::Standing;
use crate::structure;

impl Rounds {
    /// Up to where the store was known to the last round.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether HAProxy is known to run all of that, but for what is pending.
    pub fn is_current(&self) -> bool {
        self.proxy.follows() && self.standing.applied == Some(self.position)
    }

    /// Upstreams that nobody wants any more, and that still have connections.
    pub fn leaving(&self) -> Vec<Upstream> {
        let upstream =
            |name: ServerName| Some((structure::service(name.backend.as_str())?, name.server.as_str().parse().ok()?));
        self.proxy.leaving().into_iter().filter_map(upstream).collect()
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let held = |service: &ServiceId| self.guard.held(service).into_keys();
        let held = self.guard.holding().into_iter().flat_map(|of| held(&of).map(move |id| (of.clone(), id)));
        Standing {
            settled: Arc::new(self.settled.clone()),
            held: held.chain(self.held.upstreams(|service, id| self.settled.record(service, id))).collect(),
            quarantined: self.quarantined.clone(),
            certificates: Arc::clone(&self.outside.certificates),
            refused_error_pages: self.outside.pages.refused.len(),
            operators: self.operators(),
            ..self.standing.clone()
        }
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
