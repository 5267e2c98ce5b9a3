//! Events from outside: the store's, observations of files and HAProxy, counts of sessions and requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use daemon::systemd;
use registry::Event;

use super::EventLoop;
use crate::drain::{DrainContext, SessionCount};
use crate::event_loop::observer::Observation;
use crate::event_loop::scheduler::Input;
use crate::event_loop::share::ShareChanges;
use crate::status::Status;
use crate::status::metrics::RequeueReason;

impl EventLoop {
    pub(super) fn on_store_event(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                let (keys, revision) = (snapshot.entries.len(), snapshot.revision);
                tracing::info!(keys, revision, "store listed");
                self.replica.set_listing_time(SystemTime::now());
                let (known, before) = (self.replica.store_revision(), Arc::clone(self.replica.topology()));
                self.replica.apply_listing(snapshot);
                self.changes.note_listing(known, &before, self.replica.store_revision(), self.replica.topology());
                self.schedule(Input::StoreListed);
            }
            Event::Changes { revision, changes } => {
                self.changes.note_changes(self.replica.topology(), revision, &changes);
                if self.replica.apply_changes(revision, &changes) {
                    self.schedule(Input::from_changes(&changes));
                }
            }
            Event::Disconnected { error, .. } => {
                if self.status.borrow().store_error.is_none() {
                    tracing::warn!(%error, "can't reach the store, keeping HAProxy unchanged");
                    systemd::notify_status("the store is away; HAProxy keeps what it has");
                }
                self.status.send_modify(|status| status.store_error = Some(error.to_string()));
                self.use_persisted();
                return;
            }
        }
        self.log_reset_events();
        let seen = self.replica.store_revision();
        if self.status.borrow().store_error.is_some() {
            tracing::info!(revision = seen.revision, "following the store again");
            systemd::notify_status("following the store");
        }
        self.status.send_modify(|status| (status.seen, status.store_error) = (seen, None));
        self.advance_applied();
        // Changes of services are recorded after their reconcile, so that they don't delay it.
        if self.changes.has_balancers() {
            self.record_changes();
        }
    }

    /// Each listing of the store has HAProxy observed. While the store is away, time does.
    pub(super) fn observe_without_store(&mut self, now: Instant) {
        let is_away = self.status.borrow().store_error.is_some();
        let is_due = now.duration_since(self.followed_at) >= self.resync;
        if is_away && is_due {
            self.schedule(Input::HaproxyChanged);
        }
        if !is_away || is_due {
            self.followed_at = now;
        }
    }

    /// Without the store, the persisted one counts. Only before the first listing: later the replica is newer.
    fn use_persisted(&mut self) {
        if self.replica.use_persisted() {
            let (keys, revision) = (self.replica.count_keys(), self.replica.store_revision().revision);
            tracing::warn!(keys, revision, "starting from the persisted store");
            self.schedule(Input::StoreListed);
        }
    }

    pub(super) fn on_drains_counted(&mut self, count: &SessionCount) {
        let published = self.status.borrow().reconcile.published;
        let context = DrainContext {
            published_revision: DrainContext::usable_file_revision(published, self.reconciled_revision),
            published_at: self.published_at,
            process: self.observation.process,
            is_confirmed: self.scheduler.is_confirmed(),
        };
        self.drains.apply_count(count, context);
        self.update_drains();
    }

    /// Takes in how often HAProxy chose each server. Sections in which HAProxy may have set servers aside are requeued.
    pub(super) fn on_shares_counted(&mut self, changes: ShareChanges) {
        let ShareChanges { grown, starved, starving } = changes;
        for ((section, server), it) in starving.iter().filter(|((section, _), _)| starved.contains(section)) {
            let (requests, share) = (it.requests, it.share);
            tracing::warn!(%section, %server, requests, share, "upstream starves, requeuing it");
        }
        let sections = [(RequeueReason::Grown, grown), (RequeueReason::Starved, starved)];
        self.status.send_modify(|status| {
            for (section, server) in status.starving.keys().filter(|name| !starving.contains_key(*name)) {
                tracing::info!(%section, %server, "upstream no longer starves");
            }
            sections.iter().for_each(|(reason, sections)| status.requeues.count_sections(*reason, sections.len()));
            status.starving = starving;
        });
        let sections: BTreeSet<String> = sections.into_iter().flat_map(|(_, sections)| sections).collect();
        if !sections.is_empty() {
            self.schedule(Input::TurnsMissed { sections });
        }
    }

    /// Has the certificates chosen again if the validity of one began or ended. `now` is in Unix seconds. An operator may set the
    /// clock, so no timer can say when.
    pub(super) fn check_certificate_dates(&mut self, now: i64) {
        // A reload that runs or is due chooses the certificates anyway. This check runs each second.
        let is_idle = !self.scheduler.is_acting() && !self.scheduler.is_reload_due();
        if is_idle && !self.status.borrow().reconcile.certificates.is_current(now) {
            tracing::info!("the validity of a certificate began or ended, reloading files");
            self.schedule(Input::FilesChanged);
        }
    }

    pub(super) fn on_observed(&mut self, observation: Observation) {
        let last = std::mem::replace(&mut self.observation, observation);
        self.show_observation(&last);
        for input in self.observation.inputs_since(&last) {
            self.schedule(input);
        }
    }

    fn show_observation(&self, last: &Observation) {
        let now = &self.observation;
        self.log_limits(last);
        if now.unexpected_files != last.unexpected_files {
            now.unexpected_files.iter().for_each(|problem| tracing::error!(%problem, "out of sync"));
        }
        if now.unsupervised != last.unsupervised {
            match &now.unsupervised {
                Some(problem) => tracing::error!(%problem, "out of sync"),
                None => tracing::info!("supervisord runs HAProxy again"),
            }
        }
        self.status.send_modify(|status| {
            status.running.clone_from(&now.running);
            status.unexpected_files.clone_from(&now.unexpected_files);
            status.unsupervised.clone_from(&now.unsupervised);
            status.old = Arc::clone(&now.old);
            status.cutoffs = now.cutoffs;
            status.limits = now.limits;
            if now.process != last.process {
                status.started = now.process.and_then(|(_, since)| SystemTime::now().checked_sub(since.elapsed()));
                status.haproxy = now.running.as_ref().map(|running| running.version);
                // The new process has counted nothing yet.
                status.starving = Arc::default();
            }
        });
    }

    /// Logs the limits of the whole process that were changed over the Runtime API.
    fn log_limits(&self, last: &Observation) {
        if self.observation.limits == last.limits {
            return;
        }
        let status = Status { limits: self.observation.limits, ..self.status.borrow().clone() };
        for limit in status.changed_limits() {
            let (limit, now, written) = (limit.keyword, limit.now, limit.written);
            tracing::warn!(limit, now, written, "HAProxy's limit was changed over the Runtime API, leaving it");
        }
    }
}
