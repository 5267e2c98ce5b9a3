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
    /// What has come since the last act and is about no service is applied by that.
    pub(super) fn advance_applied(&self) {
        let position = Some(self.mirror.position());
        if self.current && self.acting.is_none() && !self.mirror.has_news() {
            self.report.send_if_modified(|report| {
                let behind = report.standing.applied != position;
                if behind {
                    Arc::make_mut(&mut report.standing).applied = position;
                }
                behind
            });
        }
    }

    pub(super) fn tell_drains(&self) {
        let (open, over) = (self.drains.draining().open(), self.drains.draining().over());
        self.report.send_if_modified(|report| {
            let another = *report.draining != open || report.drained != over;
            if another {
                (report.draining, report.drained) = (Arc::new(open), over);
            }
            another
        });
    }

    /// Says what has become of held keys, and what ends that they are.
    pub(super) fn tell_held(&mut self) {
        for told in self.mirror.told() {
            match &told {
                ResetEvent::Wiped { noticed, keys: 1.., .. } => {
                    let StoreRevision { cluster, revision, .. } = *noticed;
                    let (prefix, key, word) = (&self.prefix, Key::AcceptStore, Acceptance { cluster, revision });
                    tracing::warn!(
                        "{told}; to let them all go: discoverctl accept-store, or etcdctl put {prefix}/{key} '{word}'"
                    );
                }
                ResetEvent::NotAccepted(_) => tracing::warn!("{told}"),
                ResetEvent::Wiped { .. } | ResetEvent::LetGo { .. } | ResetEvent::Accepted { .. } => {
                    tracing::info!("{told}");
                }
            }
        }
    }

    /// Repeats once an hour what is served without a key, and how that ends.
    pub(super) fn repeat_retained(&mut self, now: Instant) {
        let held = Arc::clone(&self.report.borrow().standing);
        if held.held.is_empty() {
            self.retained_told = None;
            return;
        }
        // The beginning has a line of its own.
        let last = *self.retained_told.get_or_insert(now);
        if now.saturating_duration_since(last) < REPEAT_EVERY {
            return;
        }
        self.retained_told = Some(now);
        let services: BTreeSet<&ServiceId> = held.held.keys().map(|(service, _)| service).collect();
        let names: Vec<String> = services.iter().take(MOST_NAMED).map(ToString::to_string).collect();
        let more = services.len().saturating_sub(MOST_NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let since = held.held.values().filter_map(|it| it.since).min();
        let since = since.map(|at| format!(", the first since {}", humantime::format_rfc3339_seconds(at)));
        tracing::warn!(
            "{} upstreams of {}{more} are served although their keys are gone{}; see discoverctl lint; if they are meant to \
             be gone: discoverctl accept-store",
            held.held.len(),
            names.join(", "),
            since.unwrap_or_default()
        );
    }

    pub(super) fn out_of_sync(&self, reason: &str) {
        systemd::status("out of sync: see the log");
        self.report.send_modify(|report| report.out_of_sync = Some(reason.to_owned()));
    }

    pub(super) fn in_sync(&mut self) {
        self.report.send_modify(|report| report.out_of_sync = None);
        systemd::status("HAProxy runs what the store asks for");
        if !std::mem::replace(&mut self.ready, true) {
            systemd::ready();
        }
    }

    pub(super) fn note(&self, done: status::Done) {
        self.report.send_modify(|report| report.note(done));
    }
}
