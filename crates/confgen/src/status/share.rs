//! Finds servers that HAProxy has up and never chooses, and sections whose weights grew. Pure: no I/O, no clock.
//!
//! Only `balance roundrobin` allows the conclusion. It gives each server its turn, so a server that misses twenty turns starves. With
//! `source`, `uri` and `first` a server may rightly get nothing. `leastconn` and `random` prefer servers with fewer open
//! requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use discovery::Balance;
use haproxy::runtime::{RowKind, Stat};

use crate::desired::names::parse_section;
use crate::desired::{DesiredService, DesiredState};
use crate::status::figures::takes_requests;

/// A server starves after this many turns that it should have had.
const MISSED_TURNS: u64 = 20;

/// A section with two servers has to have had so many requests before one of them starves.
const FEWEST_REQUESTS: u64 = 100;

/// The most servers that one question is about, unless a single section has more.
const MOST_SERVERS: u64 = 500;

/// The most sections that one question is about. HAProxy's command line has room for some 500.
const MOST_SECTIONS: usize = 200;

/// The servers that starve, by section and name.
pub type Starving = BTreeMap<(String, String), Starved>;

/// A server that HAProxy doesn't choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starved {
    /// How often HAProxy had chosen it before. A greater count ends the starvation.
    pub chosen: u64,
    /// How often HAProxy chose other servers of the section while this one waited.
    pub requests: u64,
    /// How many of those requests were its share.
    pub share: u64,
}

/// What the figures of all backends show.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BackendFindings {
    /// The sections with more weight, or more servers in use, than before. HAProxy may have set some of their servers aside.
    pub grown: BTreeSet<String>,
    /// The backends whose servers are to be counted now, by their number.
    pub due: Vec<u32>,
}

/// What was counted so far in one process of HAProxy.
#[derive(Debug, Default)]
pub struct Tracker {
    pid: Option<u32>,
    sections: BTreeMap<String, Section>,
    /// How many times servers were counted.
    counts: u64,
}

#[derive(Debug)]
struct Section {
    /// What the store asked for. A new decision may be a drain that was taken back unseen.
    wanted: Arc<DesiredService>,
    weight: u64,
    active: u64,
    chosen: u64,
    /// When its servers were counted last, as a number of counts, and how often HAProxy had chosen one of them.
    counted: Option<(u64, u64)>,
    servers: BTreeMap<String, WaitingServer>,
}

/// A server that takes requests, since HAProxy last chose it.
#[derive(Debug)]
struct WaitingServer {
    since: Instant,
    chosen: u64,
    weight: u64,
    /// How often HAProxy had chosen any server of the section.
    section_chosen: u64,
    /// The greatest weight of the section meanwhile.
    section_weight: u64,
    starved: Option<Starved>,
}

impl Tracker {
    /// Takes in the figures of all backends, without their servers.
    pub fn observe_backends(&mut self, pid: u32, rows: &[Stat], settled: &DesiredState) -> BackendFindings {
        if self.pid.replace(pid) != Some(pid) {
            self.sections.clear();
        }
        let mut before = std::mem::take(&mut self.sections);
        let (mut grown, mut due) = (BTreeSet::new(), Vec::new());
        for row in rows.iter().filter(|row| row.kind == RowKind::Backend) {
            let Some(wanted) = parse_section(&row.proxy).and_then(|id| settled.service(&id)) else { continue };
            if !takes_turns(row, wanted) {
                continue;
            }
            let mut section = before.remove(&row.proxy).unwrap_or_else(|| Section::new(row, wanted));
            if row.weight > section.weight || row.active > section.active {
                grown.insert(row.proxy.clone());
            }
            section.update(row, wanted);
            if section.is_due() {
                let counted = section.counted.map_or(0, |(count, _)| count);
                due.push((counted, row.active, row.proxy_id));
            }
            self.sections.insert(row.proxy.clone(), section);
        }
        BackendFindings { grown, due: pick_backends(due) }
    }

    /// Takes in the figures of some backends and their servers. Returns the sections with a server that was just found to
    /// starve.
    pub fn count_servers(&mut self, pid: u32, rows: &[Stat], now: Instant) -> BTreeSet<String> {
        if self.pid != Some(pid) {
            return BTreeSet::new();
        }
        self.counts += 1;
        let backends = rows.iter().filter(|row| row.kind == RowKind::Backend);
        let found = backends.filter(|backend| {
            let Some(section) = self.sections.get_mut(&backend.proxy) else { return false };
            section.counted = Some((self.counts, backend.chosen));
            let servers = rows.iter().filter(|row| row.kind == RowKind::Server && row.proxy_id == backend.proxy_id);
            section.count_servers(backend, servers, now)
        });
        found.map(|backend| backend.proxy.clone()).collect()
    }

    /// The servers that starve.
    pub fn list_starving(&self) -> Starving {
        let of_section = |(section, it): (&String, &Section)| -> Vec<_> {
            let starved = it.servers.iter().filter_map(|(name, it)| Some((name, it.starved?)));
            starved.map(|(name, starved)| ((section.clone(), name.clone()), starved)).collect()
        };
        self.sections.iter().flat_map(of_section).collect()
    }
}

impl Section {
    fn new(row: &Stat, wanted: &Arc<DesiredService>) -> Self {
        Self {
            wanted: Arc::clone(wanted),
            weight: row.weight,
            active: row.active,
            chosen: row.chosen,
            counted: None,
            servers: BTreeMap::new(),
        }
    }

    fn update(&mut self, row: &Stat, wanted: &Arc<DesiredService>) {
        // `clear counters` over the Runtime API starts them anew.
        if row.chosen < self.chosen || !Arc::ptr_eq(&self.wanted, wanted) {
            (self.counted, self.servers) = (None, BTreeMap::new());
        }
        (self.wanted, self.weight, self.active, self.chosen) = (Arc::clone(wanted), row.weight, row.active, row.chosen);
    }

    /// Its servers are to be counted: twice in the time after which one starves, and at once if one of them may have stopped
    /// starving.
    fn is_due(&self) -> bool {
        let Some((_, counted)) = self.counted else { return self.active > 1 };
        let new = self.chosen.saturating_sub(counted);
        let has_starving = self.servers.values().any(|server| server.starved.is_some());
        self.active > 1 && new >= FEWEST_REQUESTS.max(MISSED_TURNS * self.active) / 2 || has_starving && new > 0
    }

    /// True if a server was just found to starve.
    fn count_servers<'a>(&mut self, backend: &Stat, rows: impl Iterator<Item = &'a Stat>, now: Instant) -> bool {
        let mut before = std::mem::take(&mut self.servers);
        let mut found = false;
        for row in rows.filter(|row| is_in_rotation(row)) {
            let waiting = before.remove(&row.name).filter(|it| it.still_waits(row, now));
            let mut waiting = waiting.unwrap_or_else(|| WaitingServer::new(now, row, backend));
            waiting.section_weight = waiting.section_weight.max(backend.weight);
            if waiting.starved.is_none() {
                waiting.starved = waiting.find_starvation(backend);
                found |= waiting.starved.is_some();
            }
            self.servers.insert(row.name.clone(), waiting);
        }
        found
    }
}

impl WaitingServer {
    fn new(now: Instant, row: &Stat, backend: &Stat) -> Self {
        Self {
            since: now,
            chosen: row.chosen,
            weight: row.weight,
            section_chosen: backend.chosen,
            section_weight: backend.weight,
            starved: None,
        }
    }

    /// HAProxy hasn't chosen the server, which has been up with the same weight all the time. HAProxy counts whole seconds.
    fn still_waits(&self, row: &Stat, now: Instant) -> bool {
        let is_unchanged = row.last_change > now.duration_since(self.since).as_secs();
        is_unchanged && (row.chosen, row.weight) == (self.chosen, self.weight)
    }

    fn find_starvation(&self, backend: &Stat) -> Option<Starved> {
        let requests = backend.chosen.saturating_sub(self.section_chosen);
        let enough = (MISSED_TURNS * self.section_weight).div_ceil(self.weight.max(1)).max(FEWEST_REQUESTS);
        let share = requests * self.weight / self.section_weight.max(1);
        (requests >= enough).then_some(Starved { chosen: self.chosen, requests, share })
    }
}

/// HAProxy gives each server of the section its turn. Where HAProxy doesn't name the algorithm, a profile may have chosen
/// another one than the service.
fn takes_turns(backend: &Stat, wanted: &DesiredService) -> bool {
    let settings = &wanted.settings;
    let says_so = || settings.balance == Balance::RoundRobin && settings.profile.is_none();
    backend.algorithm.as_deref().map_or_else(says_so, |algorithm| algorithm == "roundrobin")
}

/// It is this server's turn from time to time. HAProxy passes over a server that has reached its `maxconn`; one with a limit
/// and anything open may have reached it meanwhile.
fn is_in_rotation(row: &Stat) -> bool {
    let may_be_full = row.limit.is_some() && row.sessions.now + row.queue.now > 0;
    takes_requests(row) && row.backup == 0 && !may_be_full
}

/// The backends that one question is about: those that were counted the longest time ago, as many as fit.
fn pick_backends(mut due: Vec<(u64, u64, u32)>) -> Vec<u32> {
    due.sort_unstable();
    let mut servers = 0;
    let fits = |(_, active, _): &(u64, u64, u32)| {
        let is_first = servers == 0;
        servers += active;
        is_first || servers <= MOST_SERVERS
    };
    due.into_iter().take(MOST_SECTIONS).take_while(fits).map(|(.., id)| id).collect()
}

#[cfg(test)]
mod tests;
