//! Asks HAProxy what is open on servers that are on their way out: the running process over its socket, old ones over
//! their masters'. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use discovery::ServiceId;
use haproxy::masters::{self, Workers};
use haproxy::runtime::{self, Sessions, Socket, Word};

use crate::draining::Count;

/// An old process that can't be asked is waited for as long as an announcer waits by default (`--drain 15s`).
const PATIENCE: Duration = Duration::from_secs(15);

/// Who counts.
#[derive(Debug)]
pub struct Census {
    socket: Socket,
    /// Masters that don't answer, since when, and whether they are no longer waited for.
    silent: BTreeMap<PathBuf, (Instant, bool)>,
}

impl Census {
    /// Counts what the HAProxys on that socket have.
    pub fn new(socket: Socket) -> Self {
        Self { socket, silent: BTreeMap::new() }
    }

    /// Counts the sessions of these services' servers, in every process; `everywhere` in all sections.
    pub fn count(&mut self, services: &BTreeSet<ServiceId>, everywhere: bool) -> Count {
        let at = Instant::now();
        let named = services.iter().filter(|_| !everywhere);
        let backends: Vec<Word> = named.filter_map(|service| service.to_string().parse().ok()).collect();
        let mut count = Count { at, pid: None, sessions: BTreeMap::new(), is_complete: true };
        count.pid = self.socket.info().map(|info| info.pid).inspect_err(ignored).ok();
        let Workers { alive, silent } = masters::workers(self.socket.path());
        let mut answers: Vec<_> = alive.iter().map(|worker| worker.sessions(&backends)).collect();
        if count.pid.is_some_and(|pid| alive.iter().all(|worker| worker.pid != pid)) {
            // Without handover, or its master doesn't answer.
            answers.push(self.socket.sessions(&backends, None));
        }
        for answer in answers {
            match answer {
                Ok(sessions) => add(&mut count, sessions),
                // It has just ended, or is asked again.
                Err(error) => {
                    ignored(&error);
                    count.is_complete = false;
                }
            }
        }
        count.is_complete &= !self.is_waiting(silent, at);
        count
    }

    /// Whether somebody who doesn't answer is still waited for.
    fn is_waiting(&mut self, silent: Vec<(PathBuf, String)>, now: Instant) -> bool {
        self.silent.retain(|path, _| silent.iter().any(|(other, _)| other == path));
        let mut waiting = false;
        for (path, why) in silent {
            let (since, is_told) = self.silent.entry(path.clone()).or_insert((now, false));
            if now.duration_since(*since) < PATIENCE {
                waiting = true;
            } else if !std::mem::replace(is_told, true) {
                tracing::warn!(
                    "{}: {why}; what old HAProxys still have in hand isn't known, and drains no longer wait for it: is \
                     confgen in handover's --group?",
                    path.display()
                );
            }
        }
        waiting
    }
}

fn ignored(error: &runtime::Error) {
    tracing::debug!("count sessions: {error}");
}

fn add(count: &mut Count, sessions: Vec<Sessions>) {
    for Sessions { backend, server, count: some } in sessions {
        *count.sessions.entry((backend, server)).or_default() += some;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_never_answers_is_waited_for_and_given_up() {
        let mut census = Census::new(Socket::new("/no/such/socket"));
        let silent = || vec![(PathBuf::from("/x.sock"), "Permission denied".to_owned())];
        let t = Instant::now();
        assert!(!census.is_waiting(Vec::new(), t));
        assert!(census.is_waiting(silent(), t) && census.is_waiting(silent(), t + PATIENCE / 2));
        assert!(!census.is_waiting(silent(), t + PATIENCE));
        assert!(!census.is_waiting(Vec::new(), t + PATIENCE));
        assert!(census.is_waiting(silent(), t + PATIENCE), "another one of that name");
    }

    #[test]
    fn nobody_there_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let count = Census::new(Socket::new(dir.path().join("admin.sock"))).count(&BTreeSet::new(), false);
        assert!(count.pid.is_none() && count.is_complete);
    }
}
