//! Ends old HAProxys if there are too many, or if they have too much memory.
//!
//! An old HAProxy lives as long as one of its connections, at most for `hard-stop-after`. [`choose_surplus`] decides, purely.
//! [`Surplus`] asks and acts. It counts the HAProxys of all starts, so only the handover that serves may use it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::processes::{Haproxy, time_since_boot};
use crate::release::{Releases, SILENT_LIMIT};
use crate::run_dir::{Load, RunDir};

/// An old HAProxy has this long to end by itself. By then ordinary requests have ended, and so have idle connections
/// (`timeout http-keep-alive 4s` in haproxy.cfg), which would count as much as WebSockets.
const SETTLING: Duration = Duration::from_secs(5);

/// The bounds on all old HAProxys together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) processes: usize,
    /// In bytes.
    pub(crate) memory: u64,
}

/// An old HAProxy that finishes its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// The time since its successor's start.
    old_for: Duration,
    /// Its client connections. `None` if they are unknown.
    connections: Option<u64>,
    /// In bytes.
    memory: u64,
    /// It was told to finish and takes no new connection.
    is_finishing: bool,
}

/// Chooses the HAProxys to end, by their index. The oldest is the first in the list. Of those with the fewest connections
/// the oldest ends first. One whose connections are unknown ends last, because it may have many.
fn choose_surplus(old: &[Candidate], bounds: Bounds) -> Vec<usize> {
    let mut order: Vec<(usize, &Candidate)> = old.iter().enumerate().filter(|(_, it)| it.is_finishing).collect();
    order.sort_by_key(|(index, it)| (it.connections.unwrap_or(u64::MAX), *index));
    let mut processes = old.len();
    let mut memory: u64 = old.iter().map(|it| it.memory).sum();
    // Without this, restarts that follow each other within the settling time would put the end off for ever.
    let may_wait = processes <= bounds.processes.saturating_mul(2) && memory <= bounds.memory.saturating_mul(2);
    let mut chosen = Vec::new();
    for (index, candidate) in order {
        if processes <= bounds.processes && memory <= bounds.memory {
            break;
        }
        if candidate.old_for < SETTLING {
            if may_wait {
                break;
            }
            continue;
        }
        processes -= 1;
        memory -= candidate.memory;
        chosen.push(index);
    }
    chosen
}

/// The surplus of old HAProxys.
#[derive(Debug)]
pub(crate) struct Surplus {
    bounds: Bounds,
    /// The HAProxys whose workers don't answer although their masters do, by the name of their start.
    silent: BTreeMap<String, Instant>,
}

impl Surplus {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, silent: BTreeMap::new() }
    }

    /// Ends the surplus of all HAProxys of this socket, except that of `start`, which serves. Its handover calls this.
    pub(crate) fn end_surplus(&mut self, run_dir: &RunDir, start: &str, all: &[Haproxy], releases: &mut Releases) {
        // The name of a start begins with its time, so that the list has the oldest first.
        let old: Vec<&Haproxy> = all.iter().filter(|it| it.start != start && !releases.is_ending(&it.start)).collect();
        let memory: u64 = old.iter().map(|it| it.measure_memory()).sum();
        if old.len() <= self.bounds.processes && memory <= self.bounds.memory {
            return self.silent.clear();
        }
        // A later start has a handover of its own, and its HAProxy is no old one.
        if !run_dir.is_latest(start) {
            return;
        }
        let now = time_since_boot();
        let successors = old.iter().skip(1).copied().chain(all.iter().filter(|it| it.start == start));
        let candidates: Vec<Candidate> = old
            .iter()
            .zip(successors)
            .map(|(haproxy, successor)| Candidate {
                old_for: now.saturating_sub(successor.started()),
                connections: self.count_connections(run_dir, haproxy),
                memory: haproxy.measure_memory(),
                is_finishing: releases.is_finishing(&haproxy.start),
            })
            .collect();
        self.silent.retain(|start, _| old.iter().any(|it| it.start == *start));
        if self.silent.values().any(|since| since.elapsed() < SILENT_LIMIT) {
            // It may have hung. Then it ends instead of one that serves its clients.
            return;
        }
        for index in choose_surplus(&candidates, self.bounds) {
            let (Some(haproxy), Some(candidate)) = (old.get(index), candidates.get(index)) else { continue };
            let connections = candidate.connections.unwrap_or_default();
            tracing::warn!(
                pid = haproxy.pid(),
                connections,
                age = %humantime::format_duration(whole_seconds(now.saturating_sub(haproxy.started()))),
                memory_mib = candidate.memory >> 20,
                old_processes = old.len(),
                old_memory_mib = memory >> 20,
                hint = "restart less often, or raise --old-processes or --old-memory",
                "too many old HAProxys, ending the one with the fewest connections"
            );
            releases.end_haproxy(haproxy);
            run_dir.count_cutoff(connections);
        }
    }

    /// Counts the client connections. One that has hung for a while forwards nothing, and counts as one without any.
    fn count_connections(&mut self, run_dir: &RunDir, haproxy: &Haproxy) -> Option<u64> {
        match run_dir.measure_load(haproxy) {
            Load::Connections(count) => {
                self.silent.remove(&haproxy.start);
                Some(count)
            }
            Load::WorkerSilent => {
                let since = *self.silent.entry(haproxy.start.clone()).or_insert_with(Instant::now);
                (since.elapsed() >= SILENT_LIMIT).then_some(0)
            }
            Load::MasterSilent => None,
        }
    }
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BOUNDS: Bounds = Bounds { processes: 2, memory: 100 * MIB };

    fn old(connections: u64) -> Candidate {
        Candidate { old_for: SETTLING, connections: Some(connections), memory: 10 * MIB, is_finishing: true }
    }

    #[test]
    fn within_the_bounds_none_ends() {
        assert_eq!(choose_surplus(&[], BOUNDS), [0_usize; 0]);
        assert_eq!(choose_surplus(&[old(0), old(9)], BOUNDS), [0_usize; 0]);
    }

    #[test]
    fn the_oldest_of_those_with_the_fewest_connections_ends_first() {
        assert_eq!(choose_surplus(&[old(9), old(3), old(3)], BOUNDS), [1]);
        assert_eq!(choose_surplus(&[old(9), old(3), old(3), old(1)], BOUNDS), [3, 1]);
        assert_eq!(choose_surplus(&[old(9), old(3)], Bounds { processes: 0, ..BOUNDS }), [1, 0]);
    }

    #[test]
    fn one_that_has_just_become_old_is_waited_for() {
        let young = |connections| Candidate { old_for: SETTLING - Duration::from_millis(1), ..old(connections) };
        assert_eq!(choose_surplus(&[old(9), old(8), young(1)], BOUNDS), [0_usize; 0], "it may end by itself");
        assert_eq!(choose_surplus(&[old(9), old(8), young(10)], BOUNDS), [1]);
        assert_eq!(choose_surplus(&[young(1), young(1), young(1)], BOUNDS), [0_usize; 0]);
        let many = [old(9), old(8), old(7), young(2), young(1)];
        assert_eq!(choose_surplus(&many, BOUNDS), [2, 1, 0], "but not beyond twice the bound");
    }

    #[test]
    fn one_that_still_listens_is_left_to_its_release() {
        let listening = Candidate { is_finishing: false, ..old(0) };
        assert_eq!(choose_surplus(&[listening, old(9), old(8)], BOUNDS), [2]);
    }

    #[test]
    fn one_whose_connections_are_unknown_ends_last() {
        let unknown = Candidate { connections: None, ..old(0) };
        assert_eq!(choose_surplus(&[unknown, old(900), old(800)], BOUNDS), [2]);
        assert_eq!(choose_surplus(&[unknown, unknown, unknown], BOUNDS), [0], "but the bound holds");
    }

    #[test]
    fn too_much_memory_ends_some_too() {
        let large = |connections| Candidate { memory: 60 * MIB, ..old(connections) };
        assert_eq!(choose_surplus(&[large(5), old(1), large(4)], Bounds { processes: 8, ..BOUNDS }), [1, 2]);
        assert_eq!(choose_surplus(&[large(5), large(4)], Bounds { processes: 8, ..BOUNDS }), [1]);
    }
}
