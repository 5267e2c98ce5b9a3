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
use haproxy::runtime::{self, Change, Operation, Removal, ServerName, ServerState, Socket, Word};
use haproxy::supervisor::Control;
use haproxy::{masters, process};

use crate::desired::upstream_bound::ServedUpstreams;
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::runtime::plan::Scope;
use crate::state_dir::StateDir;
use crate::store::removal_guard::ServerHealth;
use observed::{Observed, served_service};
pub use restart::RestartResult;

/// The running HAProxy.
pub struct HaproxyControl {
    socket: Socket,
    control: Control,
    /// Lies in the state directory while a stop of ours has not been followed by its start.
    stop_marker: PathBuf,
    /// None until it has been looked at, and after anything that leaves it in doubt.
    observed: Option<Observed>,
    /// Whether the last one that was known passes TLS through.
    passes_through: bool,
    /// What HAProxy said to a change that it doesn't make while it runs.
    refused_change: Option<String>,
    /// What it is to serve TLS with.
    certificates: Arc<Certificates>,
    /// The most files that it can have open after its next start; `None` before it first answered.
    max_open_files: Option<u64>,
    /// The upstreams that HAProxy served when there were too many for the first time. `None` while all have room.
    served: Option<Arc<ServedUpstreams>>,
}

/// The generation that HAProxy runs; none when it doesn't answer, or runs a file of somebody else.
pub fn running_generation(socket: &Socket) -> Option<String> {
    query_generation(socket).ok().flatten()
}

/// The same, where an answer that goes wrong is no answer.
fn query_generation(socket: &Socket) -> anyhow::Result<Option<String>> {
    match socket.show_env(&"CONFGEN_GEN".parse::<Word>()?) {
        Err(runtime::Error::Absent { .. }) => Ok(None),
        answer => Ok(answer?),
    }
}

fn server_health(server: &ServerState) -> ServerHealth {
    match server.operation {
        _ if server.admin.is_in_maintenance() => ServerHealth::InMaintenance,
        Operation::Running | Operation::Starting => ServerHealth::Up,
        _ => ServerHealth::Down,
    }
}

/// The service, unless the section that it needs isn't there to be filled.
type Target<'a> = (&'a ServiceId, Option<&'a DesiredService>);

impl HaproxyControl {
    /// A proxy that has not been looked at yet.
    pub fn new(socket: Socket, control: Control, stop_marker: PathBuf) -> Self {
        let certificates = Arc::default();
        Self {
            socket,
            control,
            stop_marker,
            observed: None,
            passes_through: false,
            refused_change: None,
            certificates,
            max_open_files: None,
            served: None,
        }
    }

    /// Forgets what it runs: it will be looked at before the next change.
    pub fn invalidate(&mut self) {
        self.observed = None;
    }

    /// The most files that HAProxy can have open after its next start. Before HAProxy answered, confgen's own limit has to do.
    pub fn max_open_files(&mut self) -> Option<u64> {
        if self.observed.is_none() || self.max_open_files.is_none() {
            let now = self.socket.show_info().ok().and_then(|info| process::max_open_files(info.pid));
            self.max_open_files = now.or(self.max_open_files);
        }
        self.max_open_files.or_else(process::own_max_open_files)
    }

    /// The upstreams that HAProxy served at the first call since [`Self::forget_served_upstreams`]. Empty before HAProxy answers.
    pub fn served_upstreams(&mut self) -> Arc<ServedUpstreams> {
        if self.served.is_none() {
            let answer = self.socket.show_servers_state();
            let state =
                answer.inspect_err(|error| tracing::debug!(%error, "can't ask which upstreams are served")).ok();
            self.served = state.map(|state| {
                let servers = state.servers.iter().map(|server| (&*server.backend, &*server.server));
                Arc::new(ServedUpstreams::from_servers(servers))
            });
        }
        self.served.clone().unwrap_or_default()
    }

    /// Asks HAProxy anew at the next call of [`Self::served_upstreams`].
    pub fn forget_served_upstreams(&mut self) {
        self.served = None;
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
    pub fn generation_id(&self) -> Option<&str> {
        self.observed.as_ref().map(|known| known.generation_id.as_str())
    }

    /// What it needs a restart for to serve this; none where it doesn't.
    pub fn restart_reason(&self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let lack = |reason: String| Some(RestartReason { reason, services: BTreeSet::new() });
        if let Some(words) = self.refused_change() {
            return lack(format!("HAProxy refuses a change while it runs: {words}"));
        }
        match &self.observed {
            None => lack("HAProxy doesn't answer, or runs no generation of ours".into()),
            Some(known) => known.restart_reason(wanted),
        }
    }

    /// Whether it is known to serve all that it can without a restart.
    pub fn is_synced(&self) -> bool {
        self.observed.is_some() && self.refused_change.is_none()
    }

    /// The services that requests for awaited routes go to until the restart.
    pub fn services_reached_until_restart(&self) -> BTreeSet<ServiceId> {
        let sections = self.observed.iter().flat_map(|known| known.state.sections_until_restart());
        sections.filter_map(crate::desired::names::parse_section).collect()
    }

    /// Which of these services, which wait for a restart, no request can reach until then: HAProxy has no route to them.
    pub fn find_unrouted(&self, settled: &DesiredState, pending: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let Some(known) = &self.observed else { return BTreeSet::new() };
        let meanwhile = known.state.sections_until_restart();
        let has_expression = |id: &ServiceId, wanted: &DesiredService| {
            // HAProxy reads the map of expressions at its start only.
            let words = wanted.url_reg.as_ref().map(|(since, regex)| format!("{since} {regex}"));
            let running = known.fingerprint.shares.get(&id.to_string());
            words.is_some_and(|words| running.is_some_and(|running| running.contains(&words)))
        };
        let is_unrouted = |id: &&ServiceId| {
            let Some(wanted) = settled.service(id) else { return false };
            match wanted.routes.is_empty() {
                _ if id.kind == discovery::Kind::Tcp || id.is_default() => false,
                true => !has_expression(id, wanted),
                false => known.pending.contains(*id) && !meanwhile.contains(id.to_string().as_str()),
            }
        };
        pending.iter().filter(is_unrouted).cloned().collect()
    }

    /// Whether nobody answers.
    pub fn is_unreachable(&self) -> bool {
        self.observed.is_none() && running_generation(&self.socket).is_none()
    }

    /// What HAProxy said to the last changes, if it didn't make them all: a restart alone brings them about.
    pub fn refused_change(&self) -> Option<&str> {
        self.refused_change.as_deref()
    }

    /// Makes HAProxy serve what is wanted of these services, as far as it can without a restart, and says how many
    /// changes that took. One that was in doubt is looked at, and put right as a whole; so is one that complains, once:
    /// somebody else may have changed it. What it still complains of is left to a restart.
    pub fn apply_desired<'a>(
        &mut self,
        settled: &DesiredState,
        touched: impl Iterator<Item = &'a ServiceId>,
        disk: &StateDir,
    ) -> anyhow::Result<usize> {
        self.refused_change = None;
        let touched: Vec<&ServiceId> = touched.collect();
        let mut made = 0;
        loop {
            let looked = self.observed.is_none();
            let (some, complaints) = self.apply_once(settled, &touched, disk)?;
            made += some;
            if complaints.is_empty() {
                return Ok(made);
            }
            // What it is about can't be told.
            self.invalidate();
            if looked {
                self.refused_change = Some(complaints.join("; "));
                return Ok(made);
            }
        }
    }

    /// Makes the changes, and returns how many, with HAProxy's complaints.
    fn apply_once(
        &mut self,
        settled: &DesiredState,
        touched: &[&ServiceId],
        disk: &StateDir,
    ) -> anyhow::Result<(usize, Vec<String>)> {
        if self.observed.as_ref().is_some_and(|known| known.state.retains_pending_routes()) {
            self.invalidate();
        }
        let scope = if self.observed.is_some() { Scope::These } else { Scope::All };
        if scope == Scope::All {
            self.clear_stale_marker()?;
            self.observed = self.observe(disk).context("look at HAProxy")?;
        }
        let Some(known) = &mut self.observed else { return Ok((0, Vec::new())) };
        self.passes_through = known.fingerprint.passes_through();
        let touched: Vec<ServiceId> = match scope {
            Scope::These => touched.iter().map(|id| (*id).clone()).collect(),
            Scope::All => settled.services().map(|(id, _)| id.clone()).chain(known.fingerprint.services()).collect(),
        };
        known.update_pending(settled, &touched);
        let targets: BTreeMap<&ServiceId, Option<&DesiredService>> = touched
            .iter()
            .filter(|id| known.fingerprint.sections.contains_key(&id.to_string()))
            .map(|id| (id, served_service(settled, id)))
            .filter(|(id, wanted)| wanted.is_none_or(|wanted| known.fingerprint.has_section_for(id, wanted)))
            .filter(|(id, wanted)| wanted.is_some() || !known.state.is_needed_until_restart(id))
            .collect();
        let targets: Vec<Target> = targets.into_iter().collect();
        let steps = known.state.plan_changes(scope, &targets, &known.maps);
        let made = steps.changes.len() + steps.removals.len();
        let sent = self.socket.apply_changes(&steps.changes).and_then(|mut complaints| {
            complaints.extend(self.socket.apply_changes(&steps.requeues)?);
            Ok(complaints)
        });
        let mut complaints = match sent {
            Ok(complaints) => complaints,
            Err(error) => {
                self.invalidate();
                return Err(error).context("change HAProxy");
            }
        };
        known.state.mark_applied(scope, &targets);
        self.remove_servers(&steps.removals)?;
        let (swapped, refused) = self.swap_certificates()?;
        complaints.extend(refused);
        Ok((made + swapped, complaints))
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue_sections(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        // While HAProxy has to be observed, so have the weights that this would set.
        let Some(known) = &self.observed else { return Ok(true) };
        let turns: Vec<Change> = sections.iter().flat_map(|section| known.state.plan_requeue(section)).collect();
        let sent = self.socket.apply_changes(&turns);
        let is_fine = sent.as_ref().is_ok_and(Vec::is_empty);
        if !is_fine {
            self.invalidate();
        }
        sent.map(|_| is_fine).context("give servers their turns")
    }

    /// The health of a service's servers, by name, as HAProxy's checks find them. `None` if HAProxy doesn't answer.
    pub fn query_health(&self, id: &ServiceId) -> Option<BTreeMap<String, ServerHealth>> {
        let Ok(backend) = id.to_string().parse::<Word>() else { return Some(BTreeMap::new()) };
        let state = match self.socket.show_servers_state_of(&backend) {
            Ok(state) => state.servers,
            Err(runtime::Error::Refused { .. }) => Vec::new(),
            Err(_) => return None,
        };
        Some(state.into_iter().map(|server| (server.server.clone(), server_health(&server))).collect())
    }

    /// Removes the servers that have been waiting for their last connection. True while some still do.
    pub fn remove_leaving(&mut self) -> anyhow::Result<bool> {
        self.remove_servers(&self.leaving_servers())?;
        Ok(!self.leaving_servers().is_empty())
    }

    /// The servers that wait for their last connection.
    pub fn leaving_servers(&self) -> Vec<ServerName> {
        self.observed.as_ref().map(|known| known.state.leaving_servers()).unwrap_or_default()
    }

    /// Whether another HAProxy listens too.
    pub fn is_another_listening(&self) -> bool {
        masters::other_process_listens(&self.socket)
    }

    /// When the process that answers was started, at the latest: it counts whole seconds.
    pub fn started_at(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.socket.show_info().ok()?.uptime)
    }

    fn remove_servers(&mut self, servers: &[ServerName]) -> anyhow::Result<()> {
        for name in servers {
            match self.socket.remove_server(name) {
                Ok(Removal::InUse) => {}
                Ok(removal) => {
                    if let Removal::Refused(words) = removal {
                        tracing::warn!("{name} stays in maintenance until the next restart: {words}");
                    }
                    if let Some(known) = &mut self.observed {
                        known.state.mark_removed(name);
                    }
                }
                Err(error) => {
                    self.invalidate();
                    return Err(error).with_context(|| format!("remove {name}"));
                }
            }
        }
        Ok(())
    }
}
