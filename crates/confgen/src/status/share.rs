//! Finds servers that HAProxy has up and never chooses, and sections whose weights grew. Pure: no I/O, no clock.
//!
//! Only `balance roundrobin` allows the conclusion. It gives each server its turn, so a server that misses twenty turns starves. With
//! `source`, `uri` and `first` a server may rightly get nothing. `leastconn` and `random` prefer servers with fewer open
//! requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use discovery::Balance;
use haproxy::runtime::{RowKind, Stat, Turns};

use crate::desired::names::parse_section;
use crate::desired::{DesiredService, DesiredState};
use crate::status::figures::takes_requests;

/// A server starves after it missed this many turns.
const MISSED_TURNS: u64 = 20;

/// A server starves only after the section had this many requests.
const FEWEST_REQUESTS: u64 = 100;

/// The most servers of one question, unless a single section has more.
const MOST_SERVERS: u64 = 500;

/// The most sections of one question. HAProxy's command line has room for some 500.
const MOST_SECTIONS: usize = 200;

/// Starving servers, by section and name.
pub type Starving = BTreeMap<(String, String), Starved>;

/// A server that is up and that HAProxy doesn't choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starved {
    /// The number of times that HAProxy had chosen it before. A greater number ends the starvation.
    pub chosen: u64,
    /// The number of times that HAProxy chose other servers of the section meanwhile.
    pub requests: u64,
    /// The server's share of those requests, by weight.
    pub share: u64,
}

/// The findings in the figures of all backends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BackendFindings {
    /// The sections with more weight, or more servers in use, than before. HAProxy may give some of their servers no turn.
    pub grown: BTreeSet<String>,
    /// The numbers of the backends whose servers must be counted now.
    pub due: Vec<u32>,
}

/// The counts so far in one HAProxy process. Another process counts from 0.
#[derive(Debug, Default)]
pub struct Tracker {
    pid: Option<u32>,
    sections: BTreeMap<String, Section>,
    /// The number of looks at all backends.
    looks: u64,
    /// The number of counts of servers.
    counts: u64,
}

#[derive(Debug)]
struct Section {
    /// The number of the last look that found the section.
    seen: u64,
    /// The desired service. A new one may be a drain that was taken back between two counts.
    wanted: Arc<DesiredService>,
    weight: u64,
    active: u64,
    chosen: u64,
    /// The number of the last count of its servers, and the number of times that HAProxy had chosen one of them by then.
    counted: Option<(u64, u64)>,
    /// Sorted by name.
    servers: Vec<WaitingServer>,
}

/// A server that takes requests and waits for its turn. There is one for each server of HAProxy's, so its size counts.
#[derive(Clone, Debug)]
struct WaitingServer {
    /// Shared with the desired server's.
    name: Arc<str>,
    since: Instant,
    chosen: u64,
    weight: u64,
    /// The number of times that HAProxy had chosen any server of the section.
    section_chosen: u64,
    /// The greatest weight of the section meanwhile.
    section_weight: u64,
    starved: Option<Box<Starved>>,
}

impl Tracker {
    /// Takes in the figures of all backends, without servers.
    pub fn observe_backends<'a>(
        &mut self,
        pid: u32,
        rows: impl Iterator<Item = Turns<'a>>,
        desired: &DesiredState,
    ) -> BackendFindings {
        if self.pid.replace(pid) != Some(pid) {
            self.sections.clear();
        }
        self.looks += 1;
        let (mut grown, mut due) = (BTreeSet::new(), Vec::new());
        for row in rows {
            let Some(wanted) = parse_section(row.proxy).and_then(|id| desired.service(&id)) else { continue };
            if !takes_turns(&row, wanted) {
                continue;
            }
            let section = match self.sections.get_mut(row.proxy) {
                Some(section) => section,
                None => self.sections.entry(row.proxy.to_owned()).or_insert_with(|| Section::new(&row, wanted)),
            };
            section.seen = self.looks;
            if row.weight > section.weight || row.active > section.active {
                grown.insert(row.proxy.to_owned());
            }
            section.update(&row, wanted);
            if section.is_due() {
                let counted = section.counted.map_or(0, |(count, _)| count);
                due.push((counted, row.active, row.proxy_id));
            }
        }
        self.sections.retain(|_, section| section.seen == self.looks);
        BackendFindings { grown, due: pick_backends(due) }
    }

    /// Takes in the figures of some backends and their servers. Returns the sections with a server that was just found to
    /// starve.
    pub fn count_servers(&mut self, pid: u32, rows: &[Stat], now: Instant) -> BTreeSet<String> {
        // HAProxy was restarted between the two questions, and counts from 0.
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

    pub fn list_starving(&self) -> Starving {
        let mut starving = Starving::new();
        for (section, it) in &self.sections {
            for server in &it.servers {
                let name = || (section.clone(), server.name.to_string());
                starving.extend(server.starved.as_deref().map(|starved| (name(), *starved)));
            }
        }
        starving
    }
}

impl Section {
    fn new(row: &Turns, wanted: &Arc<DesiredService>) -> Self {
        Self {
            seen: 0,
            wanted: Arc::clone(wanted),
            weight: row.weight,
            active: row.active,
            chosen: row.chosen,
            counted: None,
            servers: Vec::new(),
        }
    }

    fn update(&mut self, row: &Turns, wanted: &Arc<DesiredService>) {
        // An operator's `clear counters` sets them to 0, and a new desired service may have been drained meanwhile.
        if row.chosen < self.chosen || !Arc::ptr_eq(&self.wanted, wanted) {
            (self.counted, self.servers) = (None, Vec::new());
        }
        (self.wanted, self.weight, self.active, self.chosen) = (Arc::clone(wanted), row.weight, row.active, row.chosen);
    }

    /// True if the servers must be counted: twice in the time after which one starves, and at once if one may have stopped to
    /// starve.
    fn is_due(&self) -> bool {
        let Some((_, counted)) = self.counted else { return self.active > 1 };
        let new = self.chosen.saturating_sub(counted);
        let has_starving = self.servers.iter().any(|server| server.starved.is_some());
        self.active > 1 && new >= FEWEST_REQUESTS.max(MISSED_TURNS * self.active) / 2 || has_starving && new > 0
    }

    /// True if a server was just found to starve.
    fn count_servers<'a>(&mut self, backend: &Stat, rows: impl Iterator<Item = &'a Stat>, now: Instant) -> bool {
        let before = std::mem::take(&mut self.servers);
        let mut found = false;
        for row in rows.filter(|row| is_in_rotation(row)) {
            let known =
                before.binary_search_by(|it| (*it.name).cmp(&row.name)).ok().and_then(|place| before.get(place));
            let waiting = known.filter(|it| it.still_waits(row, now)).cloned();
            let mut waiting = waiting.unwrap_or_else(|| WaitingServer::new(self.name_of(row), now, row, backend));
            // The greatest weight of the section means the smallest share, so a server that missed it certainly starves.
            waiting.section_weight = waiting.section_weight.max(backend.weight);
            if waiting.starved.is_none() {
                waiting.starved = waiting.find_starvation(backend).map(Box::new);
                found |= waiting.starved.is_some();
            }
            self.servers.push(waiting);
        }
        self.servers.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        self.servers.shrink_to_fit();
        found
    }

    fn name_of(&self, row: &Stat) -> Arc<str> {
        let desired = &self.wanted.servers;
        let place = desired.binary_search_by(|server| server.id.as_str().cmp(&row.name));
        let known = place.ok().and_then(|place| desired.get(place));
        // The section may be a preview's, or the server one that HAProxy keeps until its last connection.
        known.map_or_else(|| row.name.as_str().into(), |server| server.id.shared())
    }
}

impl WaitingServer {
    fn new(name: Arc<str>, now: Instant, row: &Stat, backend: &Stat) -> Self {
        Self {
            name,
            since: now,
            chosen: row.chosen,
            weight: row.weight,
            section_chosen: backend.chosen,
            section_weight: backend.weight,
            starved: None,
        }
    }

    /// True if HAProxy hasn't chosen the server, and it was up with an unchanged weight all the time.
    fn still_waits(&self, row: &Stat, now: Instant) -> bool {
        // HAProxy counts whole seconds, so a change in the same second counts as one.
        let is_unchanged = row.last_change > now.duration_since(self.since).as_secs();
        is_unchanged && (row.chosen, row.weight) == (self.chosen, self.weight)
    }

    fn find_starvation(&self, backend: &Stat) -> Option<Starved> {
        let requests = backend.chosen.saturating_sub(self.section_chosen);
        // In this many requests, the server's weight entitles it to MISSED_TURNS turns.
        let enough = (MISSED_TURNS * self.section_weight).div_ceil(self.weight.max(1)).max(FEWEST_REQUESTS);
        let share = requests * self.weight / self.section_weight.max(1);
        (requests >= enough).then_some(Starved { chosen: self.chosen, requests, share })
    }
}

/// True if HAProxy gives each server of the section its turn. If HAProxy doesn't name the algorithm, a profile may have chosen
/// another one than the service.
fn takes_turns(backend: &Turns, wanted: &DesiredService) -> bool {
    let settings = &wanted.settings;
    match backend.algorithm {
        Some(algorithm) => algorithm == "roundrobin",
        None => settings.balance == Balance::RoundRobin && settings.profile.is_none(),
    }
}

/// True if the server gets a turn from time to time. HAProxy passes over a server that has reached its `maxconn`. A server with a
/// limit and open sessions may have reached it between two counts.
fn is_in_rotation(row: &Stat) -> bool {
    let may_be_full = row.limit.is_some() && row.sessions.now + row.queue.now > 0;
    takes_requests(row) && row.backup == 0 && !may_be_full
}

/// The backends of one question: as many as fit, those first that were counted the longest time ago.
fn pick_backends(mut due: Vec<(u64, u64, u32)>) -> Vec<u32> {
    due.sort_unstable();
    let (mut servers, mut ids) = (0, Vec::new());
    for (_, active, id) in due.into_iter().take(MOST_SECTIONS) {
        servers += active;
        // A section with more servers than that is counted alone. Otherwise it would never be.
        if servers > MOST_SERVERS && !ids.is_empty() {
            break;
        }
        ids.push(id);
    }
    ids
}

#[cfg(test)]
mod tests;
