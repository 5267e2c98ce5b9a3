//! What the daemon says of itself: to the log, to systemd, and in the report.

use std::sync::Arc;

use daemon::systemd;
use discovery::{Acceptance, Key};

use super::Daemon;
use crate::mirror::{Position, Told};
use crate::report;

impl Daemon {
    /// What has come since the last act and is about no service is applied by that.
    pub(super) fn keep_up(&self) {
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
                Told::Wiped { noticed, keys: 1.., .. } => {
                    let Position { cluster, revision, .. } = *noticed;
                    let (prefix, key, word) = (&self.prefix, Key::AcceptStore, Acceptance { cluster, revision });
                    tracing::warn!(
                        "{told}; to let them all go: discoverctl accept-store, or etcdctl put {prefix}/{key} '{word}'"
                    );
                }
                Told::NotAccepted(_) => tracing::warn!("{told}"),
                Told::Wiped { .. } | Told::LetGo { .. } | Told::Accepted { .. } => tracing::info!("{told}"),
            }
        }
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

    pub(super) fn note(&self, done: report::Done) {
        self.report.send_modify(|report| report.note(done));
    }
}
