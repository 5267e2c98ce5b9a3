//! What the daemon says of itself: to the log, to systemd, and in the report.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::systemd;
use discovery::{Acceptance, Key, ServiceId};

use super::EventLoop;
use crate::status;
use crate::store::{ResetEvent, StoreRevision};

/// How often the log repeats what is retained. No timer ends that, so nobody may forget it.
const REPEAT_EVERY: Duration = Duration::from_secs(3600);
/// The most services that one line names.
const MOST_NAMED: usize = 8;

impl EventLoop {
    /// Changes since the last action that concern no service need none: HAProxy has them.
    pub(super) fn advance_applied(&self) {
        let position = Some(self.replica.store_revision());
        if self.scheduler.is_current() && !self.replica.has_unseen_changes() {
            self.status.send_if_modified(|report| {
                let behind = report.reconcile.applied != position;
                if behind {
                    Arc::make_mut(&mut report.reconcile).applied = position;
                }
                behind
            });
        }
    }

    pub(super) fn update_drains(&self) {
        let (open, over) = (self.drains.tracker().open_drains(), self.drains.tracker().count_ended());
        self.status.send_if_modified(|report| {
            let another = *report.draining != open || report.drains_ended != over;
            if another {
                (report.draining, report.drains_ended) = (Arc::new(open), over);
            }
            another
        });
    }

    /// Says what has become of held keys, and what ends that they are.
    pub(super) fn log_reset_events(&mut self) {
        for told in self.replica.take_reset_events() {
            match &told {
                ResetEvent::StoreReset { noticed, keys: 1.., .. } => {
                    let StoreRevision { cluster, revision, .. } = *noticed;
                    let (prefix, key, word) = (&self.prefix, Key::AcceptStore, Acceptance { cluster, revision });
                    tracing::warn!(
                        "{told}; to let them all go: discoverctl accept-store, or etcdctl put {prefix}/{key} '{word}'"
                    );
                }
                ResetEvent::AcceptanceRejected(_) => tracing::warn!("{told}"),
                ResetEvent::StoreReset { .. } | ResetEvent::KeysReleased { .. } | ResetEvent::Accepted { .. } => {
                    tracing::info!("{told}");
                }
            }
        }
    }

    /// Repeats once an hour what is served without a key, and how that ends.
    pub(super) fn repeat_retained_warning(&mut self, now: Instant) {
        let held = Arc::clone(&self.status.borrow().reconcile);
        if held.retained.is_empty() {
            self.retained_logged_at = None;
            return;
        }
        // The beginning has a line of its own.
        let last = *self.retained_logged_at.get_or_insert(now);
        if now.saturating_duration_since(last) < REPEAT_EVERY {
            return;
        }
        self.retained_logged_at = Some(now);
        let services: BTreeSet<&ServiceId> = held.retained.keys().map(|(service, _)| service).collect();
        let names: Vec<String> = services.iter().take(MOST_NAMED).map(ToString::to_string).collect();
        let more = services.len().saturating_sub(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let since = held.retained.values().filter_map(|it| it.since).min();
        let since = since.map(|at| format!(", the first since {}", humantime::format_rfc3339_seconds(at)));
        tracing::warn!(
            "{} upstreams of {}{more} are served although their keys are gone{}; see discoverctl lint; if they are meant to \
             be gone: discoverctl accept-store",
            held.retained.len(),
            names.join(", "),
            since.unwrap_or_default()
        );
    }

    pub(super) fn report_out_of_sync(&self, reason: &str) {
        systemd::notify_status("out of sync: see the log");
        self.status.send_modify(|report| report.out_of_sync = Some(reason.to_owned()));
    }

    pub(super) fn report_in_sync(&mut self) {
        self.status.send_modify(|report| report.out_of_sync = None);
        systemd::notify_status("HAProxy runs what the store asks for");
        if !std::mem::replace(&mut self.is_ready, true) {
            systemd::notify_ready();
        }
    }

    pub(super) fn record_action(&self, done: status::HistoryEntry) {
        self.status.send_modify(|report| report.record_action(done));
    }
}
