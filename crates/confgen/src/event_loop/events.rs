//! What comes in from outside: the store's events, looks at files and HAProxy, counts of what is open.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use daemon::systemd;
use registry::Event;

use super::EventLoop;
use crate::drain::{DrainContext, SessionCount};
use crate::event_loop::observer::Observation;
use crate::event_loop::share::ShareChanges;
use crate::status::metrics::RequeueReason;

impl EventLoop {
    /// Takes in what the store says.
    pub(super) fn on_store_event(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                tracing::info!("store listed: {} keys at revision {}", snapshot.entries.len(), snapshot.revision);
                self.replica.set_listing_time(SystemTime::now());
                self.replica.apply_listing(&snapshot);
                self.observed_stale = true;
                self.scheduler.on_change(Instant::now());
            }
            Event::Changes { revision, changes } => {
                if self.replica.apply_changes(revision, &changes) {
                    self.scheduler.on_change(Instant::now());
                }
            }
            Event::Disconnected { error, .. } => {
                if self.status.borrow().store_error.is_none() {
                    tracing::warn!("store: {error}; HAProxy keeps what it has");
                    systemd::notify_status("the store is away; HAProxy keeps what it has");
                }
                self.status.send_modify(|report| report.store_error = Some(error.to_string()));
                self.use_persisted();
                return;
            }
        }
        self.log_reset_events();
        let seen = self.replica.store_revision();
        if self.status.borrow().store_error.is_some() {
            tracing::info!("store: followed again, at revision {}", seen.revision);
            systemd::notify_status("following the store");
        }
        self.status.send_modify(|report| (report.seen, report.store_error) = (seen, None));
        self.advance_applied();
    }

    /// Takes in what was found to be open.
    pub(super) fn on_drains_counted(&mut self, count: &SessionCount) {
        // After a wipe the file of before has a higher revision, and nothing of the new store.
        let filed = Some(self.status.borrow().reconcile.published).filter(|filed| *filed <= self.applied_up_to);
        let circumstances = DrainContext {
            published_revision: filed.unwrap_or_default(),
            published_at: self.published_at,
            process: self.observation.process,
            is_confirmed: self.observed_current_at >= self.haproxy_changed_at,
        };
        self.drains.apply_count(count, circumstances);
        self.update_drains();
    }

    /// Takes in how often HAProxy has chosen each server. Sections in which some may be set aside are queued again.
    pub(super) fn on_shares_counted(&mut self, seen: ShareChanges) {
        let ShareChanges { grown, starved: found, starving } = seen;
        for ((section, server), starved) in starving.iter().filter(|((section, _), _)| found.contains(section)) {
            let (requests, share) = (starved.requests, starved.share);
            tracing::warn!(%section, %server, requests, share, "upstream is up and gets no requests; giving it its turn");
        }
        let sections = [(RequeueReason::Grown, grown), (RequeueReason::Starved, found)];
        self.status.send_modify(|report| {
            for (starving, _) in report.starving.iter().filter(|(name, _)| !starving.contains_key(name)) {
                let (section, server) = starving;
                tracing::info!(%section, %server, "upstream no longer starves");
            }
            sections.iter().for_each(|(reason, sections)| report.requeues.count_sections(*reason, sections.len()));
            report.starving = starving;
        });
        self.requeued.extend(sections.into_iter().flat_map(|(_, sections)| sections));
        if !self.requeued.is_empty() {
            self.scheduler.want_requeue(Instant::now());
        }
    }

    /// The store is away from the start: what is remembered of it is all there is.
    fn use_persisted(&mut self) {
        if self.replica.use_persisted() {
            let (keys, revision) = (self.replica.count_keys(), self.replica.store_revision().revision);
            tracing::warn!("starting from what is remembered of the store: {keys} keys as of revision {revision}");
            self.observed_stale = true;
            self.scheduler.on_change(Instant::now());
        }
    }

    /// Has the certificates chosen again, if the validity of one has begun or ended. `now` is in Unix seconds. The clock may be
    /// set, so that no timer says when.
    pub(super) fn check_certificate_dates(&mut self, now: i64) {
        let is_idle = self.reconciler.is_some() && !self.files_changed;
        if is_idle && !self.status.borrow().reconcile.certificates.is_current(now) {
            tracing::info!("certificates: the validity of one has begun or ended");
            self.files_changed = true;
            self.scheduler.on_change(Instant::now());
        }
    }

    /// Takes in what a look saw: files that changed are read anew, a HAProxy that isn't the one we know is mended.
    pub(super) fn on_observed(&mut self, seen: Observation) {
        let files = seen.files != self.observation.files;
        let proxy = seen.running != self.observation.running;
        self.files_changed |= files;
        // While two of them listen, either may have answered.
        let alone = self.observation.old_process_listens && !seen.old_process_listens;
        self.observed_stale |= proxy || alone;
        let day = seen.day != self.observation.day;
        let started = seen.process != self.observation.process;
        if proxy {
            self.status.send_modify(|report| report.running.clone_from(&seen.running));
        }
        if seen.unexpected_files != self.observation.unexpected_files {
            seen.unexpected_files.iter().for_each(|words| tracing::error!("out of sync: {words}"));
            self.status.send_modify(|report| report.unexpected_files.clone_from(&seen.unexpected_files));
        }
        if seen.unsupervised != self.observation.unsupervised {
            match &seen.unsupervised {
                Some(words) => tracing::error!("out of sync: {words}"),
                None => tracing::info!("supervisord runs HAProxy again"),
            }
        }
        if (&seen.unsupervised, seen.old) != (&self.observation.unsupervised, self.observation.old) {
            self.status.send_modify(|report| {
                report.unsupervised.clone_from(&seen.unsupervised);
                report.old = seen.old;
            });
        }
        if started || seen.old_process_listens || alone {
            self.haproxy_changed_at = Some(Instant::now());
        }
        self.observation = seen;
        if started {
            let at = self.observation.process.and_then(|(_, since)| SystemTime::now().checked_sub(since.elapsed()));
            let version = self.observation.running.as_ref().map(|running| running.version);
            self.status.send_modify(|report| {
                (report.started, report.haproxy) = (at, version);
                // The new process has counted nothing yet.
                report.starving = Arc::default();
            });
        }
        if files || proxy || alone || day {
            self.scheduler.on_change(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use haproxy::runtime::Socket;

    use super::*;
    use crate::cli::Pacing;
    use crate::drain::task::DrainTask;

    #[test]
    fn a_haproxy_is_looked_at_again_once_it_listens_alone() {
        let second = Duration::from_secs(1);
        let pacing = Pacing { resync: second, min_wait: Duration::ZERO, restart_interval: second };
        let mut daemon = EventLoop::new(None, DrainTask::new(Socket::new("/no/such/socket")), &pacing);
        let process = Some((7, Instant::now()));
        for (shared, is_in_doubt) in [(true, false), (true, false), (false, true), (false, false)] {
            daemon.observed_stale = false;
            daemon.on_observed(Observation { process, old_process_listens: shared, ..Observation::default() });
            assert_eq!(daemon.observed_stale, is_in_doubt, "shared: {shared}");
        }
    }
}
