//! Asks HAProxy what is open on servers that are on their way out: the running process over its socket, old ones over
//! their masters'. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use discovery::ServiceId;
use haproxy::masters::{self, Worker, Workers};
use haproxy::process;
use haproxy::runtime::{self, Sessions, Socket, Word};

use crate::drain::{Count, Old, PATIENCE};

/// Who counts.
#[derive(Debug)]
pub struct SessionCounter {
    socket: Socket,
    /// Masters that don't answer, since when, and whether the log says so.
    silent: BTreeMap<PathBuf, (Instant, bool)>,
    /// The old processes by their pids, and when each was first found to be old.
    old: BTreeMap<u32, Instant>,
}

impl SessionCounter {
    /// Counts what the HAProxys on that socket have.
    pub fn new(socket: Socket) -> Self {
        Self { socket, silent: BTreeMap::new(), old: BTreeMap::new() }
    }

    /// Counts the sessions of these services' servers, in every process; `everywhere` in all sections.
    pub fn count(&mut self, services: &BTreeSet<ServiceId>, everywhere: bool) -> Count {
        let at = Instant::now();
        let named = services.iter().filter(|_| !everywhere);
        let backends: Vec<Word> = named.filter_map(|service| service.to_string().parse().ok()).collect();
        let pid = self.socket.info().map(|info| info.pid).inspect_err(ignored).ok();
        let Workers { alive, silent, is_starting } = masters::workers(self.socket.path());
        let is_mastered = pid.is_none_or(|pid| alive.iter().any(|worker| worker.pid == pid));
        let mut answers: Vec<_> = alive.iter().map(|worker| worker.sessions(&backends)).collect();
        if !is_mastered {
            // Without handover, or its master doesn't answer.
            answers.push(self.socket.sessions(&backends, None));
        }
        let is_blind = !silent.is_empty() || !is_mastered && pid.and_then(process::is_alone) != Some(true);
        let (silent, is_complete) = (self.tell_silent(silent, at), !is_starting);
        let mut count = Count { at, pid, sessions: BTreeMap::new(), old: Vec::new(), silent, is_blind, is_complete };
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
        self.count_old(&alive, &mut count);
        count
    }

    /// Adds what the processes beside the running one have open.
    fn count_old(&mut self, alive: &[Worker], count: &mut Count) {
        let others: Vec<&Worker> = alive.iter().filter(|worker| Some(worker.pid) != count.pid).collect();
        self.old.retain(|pid, _| others.iter().any(|worker| worker.pid == *pid));
        for worker in others {
            match worker.streams() {
                // A restart is under way: this process has just started, or has not been told to finish yet.
                Ok((info, _)) if !info.stopping => count.is_complete = false,
                Ok((info, mut streams)) => {
                    if info.listening {
                        // For some milliseconds after it was told to finish, clients may still connect to it.
                        streams.connections = streams.connections.max(1);
                        streams.idle = streams.idle.max(1);
                    }
                    let since = *self.old.entry(worker.pid).or_insert(count.at);
                    count.old.push(Old { since: Some(since), streams });
                }
                Err(error) => {
                    ignored(&error);
                    count.is_complete = false;
                }
            }
        }
    }

    /// Logs which masters don't answer, and returns when the latest of them was first asked in vain.
    fn tell_silent(&mut self, silent: Vec<(PathBuf, String)>, now: Instant) -> Option<Instant> {
        self.silent.retain(|path, _| silent.iter().any(|(other, _)| other == path));
        for (path, why) in silent {
            let (since, is_told) = self.silent.entry(path.clone()).or_insert((now, false));
            if now.duration_since(*since) >= PATIENCE && !std::mem::replace(is_told, true) {
                tracing::warn!(
                    "{}: {why}; what old HAProxys still have in hand isn't known, and drains wait for it only for some time \
                     after a restart: is confgen in handover's --group?",
                    path.display()
                );
            }
        }
        self.silent.values().map(|(since, _)| *since).max()
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
    fn a_silent_master_is_known_by_its_path() {
        let mut census = SessionCounter::new(Socket::new("/no/such/socket"));
        let silent = |path: &str| (PathBuf::from(path), "Permission denied".to_owned());
        let (t, later) = (Instant::now(), Instant::now() + PATIENCE);
        assert_eq!(census.tell_silent(Vec::new(), t), None);
        assert_eq!(census.tell_silent(vec![silent("/x.sock")], t), Some(t));
        assert_eq!(census.tell_silent(vec![silent("/x.sock")], later), Some(t));
        assert_eq!(census.tell_silent(vec![silent("/x.sock"), silent("/y.sock")], later), Some(later));
        assert_eq!(census.tell_silent(Vec::new(), later), None);
        assert_eq!(census.tell_silent(vec![silent("/x.sock")], later), Some(later), "another one of that name");
    }

    #[test]
    fn nobody_there_is_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let count = SessionCounter::new(Socket::new(dir.path().join("admin.sock"))).count(&BTreeSet::new(), false);
        assert!(count.pid.is_none() && count.is_complete);
    }
}
