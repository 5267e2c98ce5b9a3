//! How things stand, for whoever asks, and what is said once to the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use haproxy::runtime::ServerName;

use super::Reconciler;
use crate::drain::DrainedUpstream;
use crate::local_files::expiry;
use crate::operator_files::filled::OtherBackends;
use crate::status::{ReconcileStatus, Retained, Retainer};
use crate::store::StoreRevision;

/// The reconciler's state after an action, as far as others need it.
pub struct Progress {
    /// The status for the API, the metrics and the balancer record.
    pub status: ReconcileStatus,
    /// HAProxy is known to run all of `store_revision`, except for pending services.
    pub is_current: bool,
    /// The operator's files are accepted as they are.
    pub accepts_operator_files: bool,
    /// The store, as the last reconcile had it.
    pub store_revision: StoreRevision,
    /// Upstreams that are no longer desired and still have connections.
    pub leaving: Vec<DrainedUpstream>,
    /// The operator's sections that send to upstreams too.
    pub other_backends: OtherBackends,
}

impl Reconciler {
    /// The progress after an action.
    pub fn progress(&self) -> Progress {
        Progress {
            status: self.to_status(),
            is_current: self.haproxy.is_synced() && self.status.applied == Some(self.position),
            accepts_operator_files: self.rejection.is_none(),
            store_revision: self.position,
            leaving: self.leaving_upstreams(),
            other_backends: self.other_backends(),
        }
    }

    /// Upstreams that nobody wants any more, and that still have connections.
    fn leaving_upstreams(&self) -> Vec<DrainedUpstream> {
        let upstream = |name: ServerName| {
            Some((crate::desired::names::parse_section(name.backend.as_str())?, name.server.as_str().parse().ok()?))
        };
        self.haproxy.leaving_servers().into_iter().filter_map(upstream).collect()
    }

    /// How things stand.
    fn to_status(&self) -> ReconcileStatus {
        ReconcileStatus {
            desired: Arc::new(self.desired.clone()),
            retained: self.retained_upstreams(),
            reset_lost: self.retained_keys.summarize_loss(),
            acme: self.site.acme.clone(),
            quarantined: self.quarantined.clone(),
            certificates: Arc::clone(&self.files.certificates),
            refused_error_pages: self.files.pages.rejected.len(),
            operator_files: self.operator_files_status(),
            ..self.status.clone()
        }
    }

    /// The upstreams that are served although their keys are gone.
    fn retained_upstreams(&self) -> BTreeMap<DrainedUpstream, Retained> {
        let reset = Retained { by: Retainer::Reset, since: self.retained_keys.retained_since() };
        let lost = self.retained_keys.served_upstreams(|service, id| self.desired.record_key(service, id));
        let mut retained: BTreeMap<DrainedUpstream, Retained> = lost.into_iter().map(|name| (name, reset)).collect();
        retained.extend(
            self.removal_guard.retained_since().map(|(name, since)| (name, Retained { by: Retainer::Guard, since })),
        );
        retained
    }

    /// Says once what is refused, and once that it no longer is.
    pub fn log_quarantine(&mut self) {
        let quarantined = self.desired.quarantined_keys();
        for (key, reason) in &quarantined {
            if self.quarantined.get(key) != Some(reason) {
                tracing::warn!("quarantine: {key}: {reason}");
            }
        }
        for key in self.quarantined.keys().filter(|key| !quarantined.contains_key(*key)) {
            tracing::info!("quarantine: {key}: followed again, or gone");
        }
        self.quarantined = quarantined;
        self.log_operator_files();
    }

    /// Says once a day which certificates expire, of those that serve something.
    pub(super) fn log_expiring_certificates(&mut self) {
        for warning in self.expiry.due_warnings(self.files.certificates.serving_files(), expiry::unix_now()) {
            tracing::warn!("{warning}");
        }
    }
}
