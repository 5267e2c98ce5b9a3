//! The daemon's own words: in the log, for systemd, in the status. It decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::systemd;
use discovery::{Acceptance, Key, ServiceId};

use super::EventLoop;
use crate::status::HistoryEntry;
use crate::store::{ResetEvent, StoreRevision};

/// The log repeats this often that upstreams are retained, because no timer ends it.
const REPEAT_EVERY: Duration = Duration::from_secs(3600);
/// The most services that one line names.
const SERVICES_NAMED: usize = 8;

impl EventLoop {
    /// HAProxy needs no action for changes that concern no service, so they count as applied.
    pub(super) fn advance_applied(&self) {
        let applied = self.replica.revision_without_changes().filter(|_| self.scheduler.is_current());
        if applied.is_none() {
            return;
        }
        self.status.send_if_modified(|status| {
            let is_behind = status.reconcile.applied != applied;
            if is_behind {
                Arc::make_mut(&mut status.reconcile).applied = applied;
            }
            is_behind
        });
    }

    /// Has the log of changes take those that HAProxy has.
    pub(super) fn record_changes(&mut self) {
        let reconcile = Arc::clone(&self.status.borrow().reconcile);
        self.changes.record_applied(&reconcile);
    }

    pub(super) fn update_drains(&self) {
        let (open, ended) = (self.drains.tracker().open_drains(), self.drains.tracker().count_ended());
        self.status.send_if_modified(|status| {
            let is_changed = *status.draining != open || status.drains_ended != ended;
            if is_changed {
                (status.draining, status.drains_ended) = (Arc::new(open), ended);
            }
            is_changed
        });
    }

    /// Logs what became of retained keys, and what an operator can do about them.
    pub(super) fn log_reset_events(&mut self) {
        for event in self.replica.take_reset_events() {
            match &event {
                // Only a reset that retains keys needs the operator.
                ResetEvent::StoreReset { noticed, keys: 1.., .. } => {
                    let StoreRevision { cluster, revision, .. } = *noticed;
                    let (prefix, key, word) = (&self.prefix, Key::AcceptStore, Acceptance { cluster, revision });
                    let hint = format!(
                        "discoverctl accept-store releases them all, and so does etcdctl put {prefix}/{key} '{word}'"
                    );
                    tracing::warn!(%hint, "{event}");
                }
                ResetEvent::AcceptanceRejected(_) => tracing::warn!("{event}"),
                ResetEvent::StoreReset { .. } | ResetEvent::KeysReleased { .. } | ResetEvent::Accepted { .. } => {
                    tracing::info!("{event}");
                }
            }
        }
    }

    /// Logs once an hour that upstreams are retained. Their begin has a line of its own.
    pub(super) fn repeat_retained_warning(&mut self, now: Instant) {
        let reconcile = Arc::clone(&self.status.borrow().reconcile);
        let retained = &reconcile.retained;
        if retained.is_empty() {
            self.retained_logged_at = None;
            return;
        }
        let last = *self.retained_logged_at.get_or_insert(now);
        if now.saturating_duration_since(last) < REPEAT_EVERY {
            return;
        }
        self.retained_logged_at = Some(now);
        let services: BTreeSet<&ServiceId> = retained.keys().map(|(service, _)| service).collect();
        let names: Vec<String> = services.iter().take(SERVICES_NAMED).map(ToString::to_string).collect();
        let since = retained.values().filter_map(|it| it.since).min().map(humantime::format_rfc3339_seconds);
        tracing::warn!(
            upstreams = retained.len(),
            services = services.len(),
            first_services = names.join(","),
            since = since.map(tracing::field::display),
            hint = "discoverctl lint lists them, discoverctl accept-store releases them",
            "serving retained upstreams",
        );
    }

    pub(super) fn report_out_of_sync(&self, problem: &str) {
        systemd::notify_status("out of sync: see the log");
        self.status.send_modify(|status| status.out_of_sync = Some(problem.to_owned()));
    }

    pub(super) fn report_in_sync(&mut self) {
        self.status.send_modify(|status| status.out_of_sync = None);
        systemd::notify_status("HAProxy runs what the store asks for");
        if !std::mem::replace(&mut self.is_ready, true) {
            systemd::notify_ready();
        }
    }

    pub(super) fn record_action(&self, entry: HistoryEntry) {
        self.status.send_modify(|status| status.record_action(entry));
    }
}
