//! Asks HAProxy what is open on servers that are on their way out: the running process over its socket, old ones over
//! their masters'. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use discovery::ServiceId;
use haproxy::masters::{self, Worker, Workers};
use haproxy::process;
use haproxy::runtime::{self, Sessions, Socket, Word};

use crate::drain::{OldProcess, SILENT_MASTER_WAIT, SessionCount};

/// Who counts.
#[derive(Debug)]
pub struct SessionCounter {
    socket: Socket,
    /// Masters that don't answer, since when, and whether the log says so.
    silent_masters: BTreeMap<PathBuf, (Instant, bool)>,
    /// The old processes by their pids, and when each was first found to be old.
    old_processes: BTreeMap<u32, Instant>,
}

impl SessionCounter {
    /// Counts what the HAProxys on that socket have.
    pub fn new(socket: Socket) -> Self {
        Self { socket, silent_masters: BTreeMap::new(), old_processes: BTreeMap::new() }
    }

    /// Counts the sessions of these services' servers, in every process; `everywhere` in all sections.
    pub fn count_sessions(&mut self, services: &BTreeSet<ServiceId>, everywhere: bool) -> SessionCount {
        let at = Instant::now();
        let named = services.iter().filter(|_| !everywhere);
        let backends: Vec<Word> = named.filter_map(|service| service.to_string().parse().ok()).collect();
        let pid = self.socket.show_info().map(|info| info.pid).inspect_err(log_failed_question).ok();
        let Workers { alive, silent, is_starting } = masters::list_workers(self.socket.path());
        let is_mastered = pid.is_none_or(|pid| alive.iter().any(|worker| worker.pid == pid));
        let mut answers: Vec<_> = alive.iter().map(|worker| worker.count_sessions(&backends)).collect();
        if !is_mastered {
            // Without handover, or its master doesn't answer.
            answers.push(self.socket.count_sessions(&backends, None));
        }
        let is_blind = !silent.is_empty() || !is_mastered && pid.and_then(process::is_alone) != Some(true);
        let (silent, is_complete) = (self.log_silent_masters(silent, at), !is_starting);
        let mut count = SessionCount {
            at,
            pid,
            sessions: BTreeMap::new(),
            old_processes: Vec::new(),
            silent_since: silent,
            is_blind,
            is_complete,
        };
        for answer in answers {
            match answer {
                Ok(sessions) => add_sessions(&mut count, sessions),
                // It has just ended, or is asked again.
                Err(error) => {
                    log_failed_question(&error);
                    count.is_complete = false;
                }
            }
        }
        self.count_old_processes(&alive, &mut count);
        count
    }

    /// Adds what the processes beside the running one have open.
    fn count_old_processes(&mut self, alive: &[Worker], count: &mut SessionCount) {
        let others: Vec<&Worker> = alive.iter().filter(|worker| Some(worker.pid) != count.pid).collect();
        self.old_processes.retain(|pid, _| others.iter().any(|worker| worker.pid == *pid));
        for worker in others {
            match worker.count_streams() {
                // A restart is under way: this process has just started, or has not been told to finish yet.
                Ok((info, _)) if !info.stopping => count.is_complete = false,
                Ok((info, mut streams)) => {
                    if info.listening {
                        // For some milliseconds after it was told to finish, clients may still connect to it.
                        streams.connections = streams.connections.max(1);
                        streams.idle = streams.idle.max(1);
                    }
                    let since = *self.old_processes.entry(worker.pid).or_insert(count.at);
                    count.old_processes.push(OldProcess { since: Some(since), streams });
                }
                Err(error) => {
                    log_failed_question(&error);
                    count.is_complete = false;
                }
            }
        }
    }

    /// Logs which masters don't answer, and returns when the latest of them was first asked in vain.
    fn log_silent_masters(&mut self, silent: Vec<(PathBuf, String)>, now: Instant) -> Option<Instant> {
        self.silent_masters.retain(|path, _| silent.iter().any(|(other, _)| other == path));
        for (path, why) in silent {
            let (since, is_told) = self.silent_masters.entry(path.clone()).or_insert((now, false));
            if now.duration_since(*since) >= SILENT_MASTER_WAIT && !std::mem::replace(is_told, true) {
                tracing::warn!(
                    "{}: {why}; what old HAProxys still have in hand isn't known, and drains wait for it only for some time \
                     after a restart: is confgen in handover's --group?",
                    path.display()
                );
            }
        }
        self.silent_masters.values().map(|(since, _)| *since).max()
    }
}

fn log_failed_question(error: &runtime::Error) {
    tracing::debug!("count sessions: {error}");
}

fn add_sessions(count: &mut SessionCount, sessions: Vec<Sessions>) {
    for Sessions { backend, server, count: some } in sessions {
        *count.sessions.entry((backend, server)).or_default() += some;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_master_is_known_by_its_path() {
        let mut census = SessionCounter::new(Socket::new("/no/such/socket"));
        let silent = |path: &str| (PathBuf::from(path), "Permission denied".to_owned());
        let (t, later) = (Instant::now(), Instant::now() + SILENT_MASTER_WAIT);
        assert_eq!(census.log_silent_masters(Vec::new(), t), None);
        assert_eq!(census.log_silent_masters(vec![silent("/x.sock")], t), Some(t));
        assert_eq!(census.log_silent_masters(vec![silent("/x.sock")], later), Some(t));
        assert_eq!(census.log_silent_masters(vec![silent("/x.sock"), silent("/y.sock")], later), Some(later));
        assert_eq!(census.log_silent_masters(Vec::new(), later), None);
        assert_eq!(census.log_silent_masters(vec![silent("/x.sock")], later), Some(later), "another one of that name");
    }

    #[test]
    fn nobody_there_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let count =
            SessionCounter::new(Socket::new(dir.path().join("admin.sock"))).count_sessions(&BTreeSet::new(), false);
        assert!(count.pid.is_none() && count.is_complete);
    }
}
