//! The progress for the event loop, and log lines about facts that changed. It decides nothing.

use std::sync::Arc;

use haproxy::runtime::ServerName;

use super::Reconciler;
use crate::drain::DrainedUpstream;
use crate::local_files::expiry;
use crate::operator_files::filled::OtherBackends;
use crate::status::ReconcileStatus;
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
            is_current: self.haproxy.is_synced() && self.status.reconcile.applied == Some(self.status.store_revision),
            accepts_operator_files: self.files.rejection.is_none(),
            store_revision: self.status.store_revision,
            leaving: self.leaving_upstreams(),
            other_backends: self.other_backends(),
        }
    }

    /// Upstreams that are no longer desired, and that still have connections.
    fn leaving_upstreams(&self) -> Vec<DrainedUpstream> {
        self.haproxy.leaving_servers().iter().filter_map(parse_server_name).collect()
    }

    fn to_status(&self) -> ReconcileStatus {
        ReconcileStatus {
            desired: Arc::new(self.desired.clone()),
            retained: self.retained.list_served(&self.desired),
            reset_lost: self.retained.keys.summarize_loss(),
            acme: self.files.site.acme.clone(),
            quarantined: Arc::clone(&self.logged.quarantined),
            certificates: Arc::clone(&self.files.local.certificates),
            refused_error_pages: self.files.local.pages.rejected.len(),
            manual_changes: self.haproxy.drift_counts().clone(),
            operator_files: self.operator_files_status(),
            ..self.status.reconcile.clone()
        }
    }

    /// Logs each quarantined key once, and once more when it no longer is. The same for remarks on the operator's files.
    pub fn log_quarantine(&mut self) {
        let quarantined = self.desired.quarantined_keys();
        if quarantined == *self.logged.quarantined {
            return self.log_operator_files();
        }
        for (key, reason) in &quarantined {
            if self.logged.quarantined.get(key) != Some(reason) {
                tracing::warn!(%key, %reason, "key quarantined");
            }
        }
        for key in self.logged.quarantined.keys().filter(|key| !quarantined.contains_key(*key)) {
            tracing::info!(%key, "quarantine ended");
        }
        self.logged.quarantined = Arc::new(quarantined);
        self.log_operator_files();
    }

    /// Logs once a day the certificates that expire soon and serve something.
    pub(super) fn log_expiring_certificates(&mut self) {
        for warning in
            self.logged.expiry.due_warnings(self.files.local.certificates.serving_files(), expiry::unix_now())
        {
            tracing::warn!("{warning}");
        }
    }
}

/// `None` for a server that isn't confgen's.
fn parse_server_name(name: &ServerName) -> Option<DrainedUpstream> {
    let service = crate::desired::names::parse_section(name.backend.as_str())?;
    Some((service, name.server.as_str().parse().ok()?))
}
