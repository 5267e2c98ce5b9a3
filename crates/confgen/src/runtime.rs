//! HAProxy as confgen drives it: what it runs is looked at, changed over the Runtime API, and else restarted. Blocks.

mod certificates;
mod observed;
mod plan;
pub(crate) mod ports;
mod restart;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use discovery::ServiceId;
use haproxy::runtime::{self, Change, Operation, Removal, ServerName, Socket, Word};
use haproxy::supervisor::Control;
use haproxy::{masters, process};

use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::runtime::plan::Scope;
use crate::state_dir::StateDir;
use observed::{Observed, served};
pub use restart::Restart;

/// The running HAProxy.
pub struct HaproxyControl {
    socket: Socket,
    control: Control,
    /// Lies in the state directory while a stop of ours has not been followed by its start.
    marker: PathBuf,
    /// None until it has been looked at, and after anything that leaves it in doubt.
    known: Option<Observed>,
    /// Whether the last one that was known passes TLS through.
    passes_through: bool,
    /// What HAProxy said to a change that it doesn't make while it runs.
    refused: Option<String>,
    /// What it is to serve TLS with.
    certificates: Arc<Certificates>,
    /// The most files that it can have open after its next start; `None` before it first answered.
    most_files: Option<u64>,
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
type Target<'a> = (&'a ServiceId, Option<&'a DesiredService>);

impl HaproxyControl {
    /// A proxy that has not been looked at yet.
    pub fn new(socket: Socket, control: Control, marker: PathBuf) -> Self {
        let certificates = Arc::default();
        Self {
            socket,
            control,
            marker,
            known: None,
            passes_through: false,
            refused: None,
            certificates,
            most_files: None,
        }
    }

    /// Forgets what it runs: it will be looked at before the next change.
    pub fn doubt(&mut self) {
        self.known = None;
    }

    /// The most files that HAProxy can have open after its next start. Before HAProxy answered, confgen's own limit has to do.
    pub fn most_files(&mut self) -> Option<u64> {
        if self.known.is_none() || self.most_files.is_none() {
            let now = self.socket.info().ok().and_then(|info| process::most_files(info.pid));
            self.most_files = now.or(self.most_files);
        }
        self.most_files.or_else(process::most_files_here)
    }

    /// From the next change on, it is to serve TLS with these.
    pub fn set_certificates(&mut self, certificates: &Arc<Certificates>) {
        self.certificates = Arc::clone(certificates);
    }

    /// Whether it was passing TLS through when it was last looked at.
    pub fn passes_through(&self) -> bool {
        self.passes_through
    }

    /// The generation it was found to run.
    pub fn stamp(&self) -> Option<&str> {
        self.known.as_ref().map(|known| known.stamp.as_str())
    }

    /// What it needs a restart for to serve this; none where it doesn't.
    pub fn lacks(&self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let lack = |reason: String| Some(RestartReason { reason, services: BTreeSet::new() });
        if let Some(words) = self.refused() {
            return lack(format!("HAProxy refuses a change while it runs: {words}"));
        }
        match &self.known {
            None => lack("HAProxy doesn't answer, or runs no generation of ours".into()),
            Some(known) => known.lacks(wanted),
        }
    }

    /// Whether it is known to serve all that it can without a restart.
    pub fn follows(&self) -> bool {
        self.known.is_some() && self.refused.is_none()
    }

    /// The services that requests for awaited routes go to until the restart.
    pub fn reached_meanwhile(&self) -> BTreeSet<ServiceId> {
        let sections = self.known.iter().flat_map(|known| known.live.leads_meanwhile());
        sections.filter_map(crate::desired::names::service).collect()
    }

    /// Which of these services, which wait for a restart, no request can reach until then: HAProxy has no route to them.
    pub fn unrouted(&self, settled: &DesiredState, pending: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let Some(known) = &self.known else { return BTreeSet::new() };
        let meanwhile = known.live.leads_meanwhile();
        let has_expression = |id: &ServiceId, wanted: &DesiredService| {
            // HAProxy reads the map of expressions at its start only.
            let words = wanted.url_reg.as_ref().map(|(since, regex)| format!("{since} {regex}"));
            let running = known.structure.shares.get(&id.to_string());
            words.is_some_and(|words| running.is_some_and(|running| running.contains(&words)))
        };
        let is_unrouted = |id: &&ServiceId| {
            let Some(wanted) = settled.service(id) else { return false };
            match wanted.routes.is_empty() {
                _ if id.kind == discovery::Kind::Tcp || id.is_default() => false,
                true => !has_expression(id, wanted),
                false => known.waiting.contains(*id) && !meanwhile.contains(id.to_string().as_str()),
            }
        };
        pending.iter().filter(is_unrouted).cloned().collect()
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
        settled: &DesiredState,
        touched: impl Iterator<Item = &'a ServiceId>,
        disk: &StateDir,
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
        settled: &DesiredState,
        touched: &[&ServiceId],
        disk: &StateDir,
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
        self.passes_through = known.structure.passes_through();
        let touched: Vec<ServiceId> = match scope {
            Scope::These => touched.iter().map(|id| (*id).clone()).collect(),
            Scope::All => settled.services().map(|(id, _)| id.clone()).chain(known.structure.services()).collect(),
        };
        known.wait(settled, &touched);
        let targets: BTreeMap<&ServiceId, Option<&DesiredService>> = touched
            .iter()
            .filter(|id| known.structure.sections.contains_key(&id.to_string()))
            .map(|id| (id, served(settled, id)))
            .filter(|(id, wanted)| wanted.is_none_or(|wanted| known.structure.fits(id, wanted)))
            .filter(|(id, wanted)| wanted.is_some() || !known.live.needs(id))
            .collect();
        let targets: Vec<Target> = targets.into_iter().collect();
        let steps = known.live.steps(scope, &targets, &known.maps);
        let made = steps.changes.len() + steps.removals.len();
        let sent = self.socket.change(&steps.changes).and_then(|mut complaints| {
            complaints.extend(self.socket.change(&steps.turns)?);
            Ok(complaints)
        });
        let mut complaints = match sent {
            Ok(complaints) => complaints,
            Err(error) => {
                self.doubt();
                return Err(error).context("change HAProxy");
            }
        };
        known.live.made(scope, &targets);
        self.remove(&steps.removals)?;
        let (swapped, refused) = self.swap_certificates()?;
        complaints.extend(refused);
        Ok((made + swapped, complaints))
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        // While HAProxy has to be observed, so have the weights that this would set.
        let Some(known) = &self.known else { return Ok(true) };
        let turns: Vec<Change> = sections.iter().flat_map(|section| known.live.turns(section)).collect();
        let sent = self.socket.change(&turns);
        let is_fine = sent.as_ref().is_ok_and(Vec::is_empty);
        if !is_fine {
            self.doubt();
        }
        sent.map(|_| is_fine).context("give servers their turns")
    }

    /// Which of a service's servers HAProxy's own checks find up; one that isn't there, or in maintenance, is not said.
    /// None while HAProxy doesn't answer.
    pub fn health(&self, id: &ServiceId) -> Option<BTreeMap<String, bool>> {
        let Ok(backend) = id.to_string().parse::<Word>() else { return Some(BTreeMap::new()) };
        let state = match self.socket.servers_state_of(&backend) {
            Ok(state) => state.servers,
            Err(runtime::Error::Refused { .. }) => Vec::new(),
            Err(_) => return None,
        };
        let up = |operation| matches!(operation, Operation::Running | Operation::Starting);
        let seen = state.into_iter().filter(|server| !server.admin.maintenance());
        Some(seen.map(|server| (server.server, up(server.operation))).collect())
    }

    /// Removes the servers that have been waiting for their last connection. True while some still do.
    pub fn sweep(&mut self) -> anyhow::Result<bool> {
        self.remove(&self.leaving())?;
        Ok(!self.leaving().is_empty())
    }

    /// The servers that wait for their last connection.
    pub fn leaving(&self) -> Vec<ServerName> {
        self.known.as_ref().map(|known| known.live.leaving()).unwrap_or_default()
    }

    /// Whether another HAProxy listens too.
    pub fn is_shared(&self) -> bool {
        masters::share(&self.socket)
    }

    /// When the process that answers was started, at the latest: it counts whole seconds.
    pub fn born(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.socket.info().ok()?.uptime)
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
}
