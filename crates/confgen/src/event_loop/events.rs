//! What comes in from outside: the store's events, looks at files and HAProxy, counts of what is open.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use daemon::systemd;
use registry::Event;

use super::EventLoop;
use crate::drain::{Count, DrainContext};
use crate::event_loop::observer::Observation;
use crate::event_loop::share::Seen;
use crate::status::metrics::Requeued;

impl EventLoop {
    /// Takes in what the store says.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                tracing::info!("store listed: {} keys at revision {}", snapshot.entries.len(), snapshot.revision);
                self.mirror.stamp(SystemTime::now());
                self.mirror.list(&snapshot);
                self.doubt = true;
                self.pace.changed(Instant::now());
            }
            Event::Changes { revision, changes } => {
                if self.mirror.apply(revision, &changes) {
                    self.pace.changed(Instant::now());
                }
            }
            Event::Disconnected { error, .. } => {
                if self.report.borrow().away.is_none() {
                    tracing::warn!("store: {error}; HAProxy keeps what it has");
                    systemd::status("the store is away; HAProxy keeps what it has");
                }
                self.report.send_modify(|report| report.away = Some(error.to_string()));
                self.use_persisted();
                return;
            }
        }
        self.tell_held();
        let seen = self.mirror.position();
        if self.report.borrow().away.is_some() {
            tracing::info!("store: followed again, at revision {}", seen.revision);
            systemd::status("following the store");
        }
        self.report.send_modify(|report| (report.seen, report.away) = (seen, None));
        self.advance_applied();
    }

    /// Takes in what was found to be open.
    pub(super) fn counted(&mut self, count: &Count) {
        // After a wipe the file of before has a higher revision, and nothing of the new store.
        let filed = Some(self.report.borrow().standing.filed).filter(|filed| *filed <= self.given);
        let circumstances = DrainContext {
            filed: filed.unwrap_or_default(),
            filed_at: self.filed_at,
            process: self.seen.process,
            is_confirmed: self.confirmed >= self.unsettled,
        };
        self.drains.counted(count, circumstances);
        self.tell_drains();
    }

    /// Takes in how often HAProxy has chosen each server. Sections in which some may be set aside are queued again.
    pub(super) fn counted_shares(&mut self, seen: Seen) {
        let Seen { grown, found, starving } = seen;
        for ((section, server), starved) in starving.iter().filter(|((section, _), _)| found.contains(section)) {
            let (requests, share) = (starved.requests, starved.share);
            tracing::warn!(%section, %server, requests, share, "upstream is up and gets no requests; giving it its turn");
        }
        let sections = [(Requeued::Grown, grown), (Requeued::Starved, found)];
        self.report.send_modify(|report| {
            for (starving, _) in report.starving.iter().filter(|(name, _)| !starving.contains_key(name)) {
                let (section, server) = starving;
                tracing::info!(%section, %server, "upstream no longer starves");
            }
            sections.iter().for_each(|(reason, sections)| report.requeues.count(*reason, sections.len()));
            report.starving = starving;
        });
        self.requeued.extend(sections.into_iter().flat_map(|(_, sections)| sections));
        if !self.requeued.is_empty() {
            self.pace.requeue(Instant::now());
        }
    }

    /// The store is away from the start: what is remembered of it is all there is.
    fn use_persisted(&mut self) {
        if self.mirror.use_persisted() {
            let (keys, revision) = (self.mirror.keys(), self.mirror.position().revision);
            tracing::warn!("starting from what is remembered of the store: {keys} keys as of revision {revision}");
            self.doubt = true;
            self.pace.changed(Instant::now());
        }
    }

    /// Has the certificates chosen again, if the validity of one has begun or ended. `now` is in Unix seconds. The clock may be
    /// set, so that no timer says when.
    pub(super) fn follow_clock(&mut self, now: i64) {
        let is_idle = self.rounds.is_some() && !self.outside_changed;
        if is_idle && !self.report.borrow().standing.certificates.is_current(now) {
            tracing::info!("certificates: the validity of one has begun or ended");
            self.outside_changed = true;
            self.pace.changed(Instant::now());
        }
    }

    /// Takes in what a look saw: files that changed are read anew, a HAProxy that isn't the one we know is mended.
    pub(super) fn looked(&mut self, seen: Observation) {
        let files = seen.files != self.seen.files;
        let proxy = seen.running != self.seen.running;
        self.outside_changed |= files;
        // While two of them listen, either may have answered.
        let alone = self.seen.shared && !seen.shared;
        self.doubt |= proxy || alone;
        let day = seen.day != self.seen.day;
        let started = seen.process != self.seen.process;
        if proxy {
            self.report.send_modify(|report| report.running.clone_from(&seen.running));
        }
        if seen.strange != self.seen.strange {
            seen.strange.iter().for_each(|words| tracing::error!("out of sync: {words}"));
            self.report.send_modify(|report| report.strange.clone_from(&seen.strange));
        }
        if seen.unsupervised != self.seen.unsupervised {
            match &seen.unsupervised {
                Some(words) => tracing::error!("out of sync: {words}"),
                None => tracing::info!("supervisord runs HAProxy again"),
            }
        }
        if (&seen.unsupervised, seen.old) != (&self.seen.unsupervised, self.seen.old) {
            self.report.send_modify(|report| {
                report.unsupervised.clone_from(&seen.unsupervised);
                report.old = seen.old;
            });
        }
        if started || seen.shared || alone {
            self.unsettled = Some(Instant::now());
        }
        self.seen = seen;
        if started {
            let at = self.seen.process.and_then(|(_, since)| SystemTime::now().checked_sub(since.elapsed()));
            let version = self.seen.running.as_ref().map(|running| running.version);
            self.report.send_modify(|report| {
                (report.started, report.haproxy) = (at, version);
                // The new process has counted nothing yet.
                report.starving = Arc::default();
            });
        }
        if files || proxy || alone || day {
            self.pace.changed(Instant::now());
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
        let mut daemon = EventLoop::new(None, DrainTask::of(Socket::new("/no/such/socket")), &pacing);
        let process = Some((7, Instant::now()));
        for (shared, is_in_doubt) in [(true, false), (true, false), (false, true), (false, false)] {
            daemon.doubt = false;
            daemon.looked(Observation { process, shared, ..Observation::default() });
            assert_eq!(daemon.doubt, is_in_doubt, "shared: {shared}");
        }
    }
}
