//! HAProxy as confgen drives it: what it runs is looked at, changed over the Runtime API, and else restarted. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use discovery::ServiceId;
use haproxy::runtime::{self, Operation, Removal, ServerName, Socket, Word};
use haproxy::supervisor::{Control, State};

use crate::disk::Disk;
use crate::live::{Live, MapPaths, Scope};
use crate::settle::{Settled, Wanted};
use crate::structure::Structure;
use crate::view::has_section;

/// A restart checks the file, starts HAProxy and waits for its answer: under a second for thousands of servers. A
/// process that isn't live after this is looked at again by the next try.
const LIVE_WITHIN: Duration = Duration::from_secs(15);
/// How soon, and how often, supervisord is asked whether HAProxy's start has failed.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(500);
/// How often HAProxy is asked whether it has got there.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// While both processes hold the socket, for some tens of milliseconds, either may answer: the new one has it alone when
/// it has answered so often in a row.
const SURE: u32 = 5;

/// What is known of the running HAProxy.
struct Known {
    stamp: String,
    /// What its file lets it be changed to without a restart.
    structure: Structure,
    maps: MapPaths,
    live: Live,
    /// Services whose section it lacks.
    waiting: BTreeSet<ServiceId>,
}

/// The running HAProxy.
pub struct Proxy {
    socket: Socket,
    control: Control,
    /// Lies in the state directory while a stop of ours has not been followed by its start.
    marker: PathBuf,
    /// None until it has been looked at, and after anything that leaves it in doubt.
    known: Option<Known>,
    /// What HAProxy said to a change that it doesn't make while it runs.
    refused: Option<String>,
}

/// How a restart went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// HAProxy runs the wanted generation.
    Taken,
    /// An operator has stopped it, and so it stays.
    Stopped,
    /// It didn't take, for this reason.
    NotLive(String),
}

/// The generation that HAProxy runs; none when it doesn't answer, or runs a file of somebody else.
pub fn running(socket: &Socket) -> Option<String> {
    generation(socket).ok().flatten()
}

/// The same, where an answer that goes wrong is no answer.
fn generation(socket: &Socket) -> anyhow::Result<Option<String>> {
    match socket.env(&"CONFGEN_GEN".parse::<Word>()?) {
        Err(runtime::Error::Absent { .. }) => Ok(None),
        answer => Ok(answer?),
    }
}

/// The service, unless the section that it needs isn't there to be filled.
type Target<'a> = (&'a ServiceId, Option<&'a Wanted>);

/// The service as the file has it: one without a section of its own gets no request.
fn served<'a>(settled: &'a Settled, id: &ServiceId) -> Option<&'a Wanted> {
    settled.service(id).map(|wanted| &**wanted).filter(|wanted| has_section(id, wanted))
}

impl Known {
    /// Takes note of which of these services wait for a restart.
    fn wait(&mut self, settled: &Settled, touched: &[ServiceId]) {
        for id in touched {
            if settled.service(id).is_some() && !self.structure.sections.contains_key(&id.to_string()) {
                self.waiting.insert(id.clone());
            } else {
                self.waiting.remove(id);
            }
        }
        self.live.awaiting(self.waiting.iter().filter_map(|id| served(settled, id)));
    }
}

impl Proxy {
    /// A proxy that has not been looked at yet.
    pub fn new(socket: Socket, control: Control, marker: PathBuf) -> Self {
        Self { socket, control, marker, known: None, refused: None }
    }

    /// Forgets what it runs: it will be looked at before the next change.
    pub fn doubt(&mut self) {
        self.known = None;
    }

    /// The generation it was found to run.
    pub fn stamp(&self) -> Option<&str> {
        self.known.as_ref().map(|known| known.stamp.as_str())
    }

    /// Why it needs a restart to serve this; none where it doesn't.
    pub fn lacks(&self, wanted: &Structure) -> Option<String> {
        if let Some(words) = self.refused() {
            return Some(format!("HAProxy refuses a change while it runs: {words}"));
        }
        match &self.known {
            None => Some("HAProxy doesn't answer, or runs no generation of ours".into()),
            Some(known) => known.structure.lacks(wanted),
        }
    }

    /// Whether nobody answers.
    pub fn is_silent(&self) -> bool {
        self.known.is_none() && running(&self.socket).is_none()
    }

    /// What HAProxy said to the last changes, if it didn't make them all: a restart alone brings them about.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Makes HAProxy serve what is wanted of these services, as far as it can without a restart, and says how many
    /// changes that took. One that was in doubt is looked at, and put right as a whole; so is one that complains, once:
    /// somebody else may have changed it. What it still complains of is left to a restart.
    pub fn follow<'a>(
        &mut self,
        settled: &Settled,
        touched: impl Iterator<Item = &'a ServiceId>,
        disk: &Disk,
    ) -> anyhow::Result<usize> {
        self.refused = None;
        let touched: Vec<&ServiceId> = touched.collect();
        let mut made = 0;
        loop {
            let looked = self.known.is_none();
            let (some, complaints) = self.change(settled, &touched, disk)?;
            made += some;
            if complaints.is_empty() {
                return Ok(made);
            }
            // What it is about can't be told.
            self.doubt();
            if looked {
                self.refused = Some(complaints.join("; "));
                return Ok(made);
            }
        }
    }

    /// Makes the changes, and returns how many, with HAProxy's complaints.
    fn change(
        &mut self,
        settled: &Settled,
        touched: &[&ServiceId],
        disk: &Disk,
    ) -> anyhow::Result<(usize, Vec<String>)> {
        if self.known.as_ref().is_some_and(|known| known.live.holds_back()) {
            self.doubt();
        }
        let scope = if self.known.is_some() { Scope::These } else { Scope::All };
        if scope == Scope::All {
            self.started()?;
            self.known = self.look(disk).context("look at HAProxy")?;
        }
        let Some(known) = &mut self.known else { return Ok((0, Vec::new())) };
        let touched: Vec<ServiceId> = match scope {
            Scope::These => touched.iter().map(|id| (*id).clone()).collect(),
            Scope::All => settled.services().map(|(id, _)| id.clone()).chain(known.structure.services()).collect(),
        };
        known.wait(settled, &touched);
        let targets: BTreeMap<&ServiceId, Option<&Wanted>> = touched
            .iter()
            .filter(|id| known.structure.sections.contains_key(&id.to_string()))
            .map(|id| (id, served(settled, id)))
            .filter(|(id, wanted)| wanted.is_some() || !known.live.needs(id))
            .collect();
        let targets: Vec<Target> = targets.into_iter().collect();
        let steps = known.live.steps(scope, &targets, &known.maps);
        let made = steps.changes.len() + steps.removals.len();
        let complaints = match self.socket.change(&steps.changes) {
            Ok(complaints) => complaints,
            Err(error) => {
                self.doubt();
                return Err(error).context("change HAProxy");
            }
        };
        known.live.made(scope, &targets);
        self.remove(&steps.removals)?;
        Ok((made, complaints))
    }

    /// Which of a service's servers HAProxy's own checks find up; one that isn't there, or in maintenance, is not said.
    pub fn health(&self, id: &ServiceId) -> BTreeMap<String, bool> {
        let Ok(backend) = id.to_string().parse::<Word>() else { return BTreeMap::new() };
        let state = self.socket.servers_state_of(&backend).map(|state| state.servers).unwrap_or_default();
        let up = |operation| matches!(operation, Operation::Running | Operation::Starting);
        let seen = state.into_iter().filter(|server| !server.admin.maintenance());
        seen.map(|server| (server.server, up(server.operation))).collect()
    }

    /// Removes the servers that have been waiting for their last connection. True while some still do.
    pub fn sweep(&mut self) -> anyhow::Result<bool> {
        let leaving = self.known.as_ref().map(|known| known.live.leaving()).unwrap_or_default();
        self.remove(&leaving)?;
        Ok(self.known.as_ref().is_some_and(|known| !known.live.leaving().is_empty()))
    }

    fn remove(&mut self, servers: &[ServerName]) -> anyhow::Result<()> {
        for name in servers {
            match self.socket.remove(name) {
                Ok(Removal::StillUsed) => {}
                Ok(removal) => {
                    if let Removal::Refused(words) = removal {
                        tracing::warn!("{name} stays in maintenance until the next restart: {words}");
                    }
                    if let Some(known) = &mut self.known {
                        known.live.removed(name);
                    }
                }
                Err(error) => {
                    self.doubt();
                    return Err(error).with_context(|| format!("remove {name}"));
                }
            }
        }
        Ok(())
    }

    /// What HAProxy runs, in its own words; none when nobody answers or it runs no file of ours. A question that goes
    /// wrong says neither, and is no reason for a restart.
    fn look(&self, disk: &Disk) -> anyhow::Result<Option<Known>> {
        let Some(stamp) = generation(&self.socket)? else { return Ok(None) };
        let Some(structure) = disk.structure(&stamp) else { return Ok(None) };
        let Some(maps) = MapPaths::among(&self.socket.maps()?, &stamp) else { return Ok(None) };
        let (hosts, paths) = (self.socket.map(&maps.hosts)?, self.socket.map(&maps.paths)?);
        let live = Live::observed(&self.socket.servers_state()?, hosts, paths);
        Ok(Some(Known { stamp, structure, maps, live, waiting: BTreeSet::new() }))
    }

    /// Takes the marker away where it no longer stands for a stop without its start: a confgen that was killed may have
    /// left it, and an operator's stop would be taken for ours.
    fn started(&self) -> anyhow::Result<()> {
        let under_way = |state| !matches!(state, State::Stopped | State::Stopping | State::Unknown);
        if self.marker.exists() && self.control.state().is_ok_and(under_way) { self.unmark() } else { Ok(()) }
    }

    fn unmark(&self) -> anyhow::Result<()> {
        fs::remove_file(&self.marker).with_context(|| format!("remove {}", self.marker.display()))
    }

    /// Has HAProxy restarted into the generation that lies on disk, and waits until it runs it.
    pub fn restart(&mut self, stamp: &str) -> anyhow::Result<Restart> {
        self.doubt();
        // A stop of ours that a crash cut short is mended; one of an operator's is respected.
        if matches!(self.control.state(), Ok(State::Stopped | State::Stopping)) && !self.marker.exists() {
            return Ok(Restart::Stopped);
        }
        // The old process may run the same generation: servers alone are no part of its stamp.
        let process = || self.socket.info().ok().map(|info| info.pid);
        let old = process();
        fs::File::create(&self.marker).with_context(|| format!("create {}", self.marker.display()))?;
        if let Err(error) = self.control.restart() {
            // It may have failed between the stop and the start, and is then ours to finish.
            self.started()?;
            return Ok(Restart::NotLive(error.to_string()));
        }
        self.unmark()?;
        let deadline = Instant::now() + LIVE_WITHIN;
        let mut answers = 0;
        let mut ask_supervisord = Instant::now() + GIVEN_UP_AFTER;
        while Instant::now() < deadline {
            if answers == 0 && Instant::now() >= ask_supervisord {
                ask_supervisord += GIVEN_UP_AFTER;
                if let Ok(state @ (State::Backoff | State::Fatal | State::Exited)) = self.control.state() {
                    return Ok(Restart::NotLive(format!("HAProxy doesn't start; supervisord: {state:?}")));
                }
            }
            let new = process() != old && running(&self.socket).as_deref() == Some(stamp);
            answers = if new { answers + 1 } else { 0 };
            if answers == SURE {
                return Ok(Restart::Taken);
            }
            std::thread::sleep(ASK_EVERY);
        }
        let state = self.control.state().map_or_else(|error| error.to_string(), |state| format!("{state:?}"));
        Ok(Restart::NotLive(format!(
            "HAProxy doesn't run generation {stamp} after {LIVE_WITHIN:?}; supervisord: {state}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::replace;

    /// A supervisorctl that knows one state, and does what `restart` says to it.
    fn proxy(dir: &Path, state: &str, restart: &str) -> Proxy {
        let (script, file) = (dir.join("script"), dir.join("state"));
        let text = format!(
            "case $2 in\nstatus) echo \"haproxy $(cat {file})\" ;;\nrestart) {restart} ;;\nesac\n",
            file = file.display(),
            restart = restart.replace("STATE", &file.display().to_string())
        );
        replace(&script, text.as_bytes(), 0o600).unwrap();
        replace(&file, state.as_bytes(), 0o600).unwrap();
        let command = format!("sh {} supervisorctl restart haproxy", script.display());
        let control = Control::new(command.parse().unwrap(), None);
        Proxy::new(Socket::new(dir.join("none.sock")), control, dir.join("restarting"))
    }

    #[test]
    fn a_port_that_is_withdrawn_is_served_no_longer() {
        use crate::settle::tests::{settle, topology};
        let is_served = |store: &str| {
            let settled = settle(&topology(store), &Default::default(), &Default::default());
            let id = settled.services().next().unwrap().0.clone();
            served(&settled, &id).is_some()
        };
        let upstream = "tcp-services/db/upstreams/1 10.0.0.1:3306\n";
        assert!(is_served(&format!("{upstream} tcp-services/db/ports 3306")));
        assert!(!is_served(upstream));
    }

    #[test]
    fn an_operators_stop_is_respected() {
        for state in ["STOPPED", "STOPPING"] {
            let dir = tempfile::tempdir().unwrap();
            let mut proxy = proxy(dir.path(), state, "exit 9");
            assert_eq!(proxy.restart("0123456789abcdef").unwrap(), Restart::Stopped, "{state}");
        }
    }

    #[test]
    fn a_start_that_fails_after_our_stop_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "echo STOPPED >STATE; exit 1");
        for _ in 0..2 {
            assert!(matches!(proxy.restart("0123456789abcdef").unwrap(), Restart::NotLive(_)));
        }
    }

    #[test]
    fn a_marker_that_a_killed_confgen_left_ends_with_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("haproxy.cfg"), dir.path()).unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "exit 9");
        replace(&dir.path().join("restarting"), b" ", 0o600).unwrap();
        proxy.follow(&Settled::default(), std::iter::empty(), &disk).unwrap();
        replace(&dir.path().join("state"), b"STOPPED", 0o600).unwrap();
        assert_eq!(proxy.restart("0123456789abcdef").unwrap(), Restart::Stopped);
    }
}
