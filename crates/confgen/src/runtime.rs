//! Observes, changes and restarts HAProxy. Blocks, and decides nothing about the desired state.
//!
//! After any error the observed state is stale, and HAProxy is observed again.

mod backends;
mod certificates;
mod drift;
mod generation_files;
mod observed;
mod plan;
pub(crate) mod ports;
mod removals;
mod restart;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::Context;
use discovery::ServiceId;
use haproxy::runtime::{self, Change, Operation, ServerState, Socket, Word};
use haproxy::supervisor::Control;
use haproxy::{masters, process};

use crate::desired::upstream_bound::ServedUpstreams;
use crate::desired::{DesiredService, DesiredState};
use crate::local_files::certificates::Certificates;
use crate::render::restart_needed::{ConfigFingerprint, RestartReason};
use crate::runtime::plan::Scope;
use crate::store::removal_guard::ServerHealth;
use backends::note_additions;
use drift::KnownDrift;
pub use drift::{DriftAnswers, DriftCheck, DriftLook};
pub use generation_files::GenerationFiles;
use observed::{Observed, served_service};
use restart::StopMarker;
pub use restart::{RestartResult, Restarter};

/// The running HAProxy.
pub struct HaproxyControl {
    socket: Socket,
    restarter: Restarter,
    /// `None` while the observed state is stale.
    observed: Option<Observed>,
    /// True if HAProxy passed TLS through when it was last observed.
    passes_through: bool,
    /// True if HAProxy could add and delete backends when it was last observed.
    adds_backends: bool,
    /// HAProxy's complaint about the last changes. `None` if it made them all.
    refused_change: Option<String>,
    /// The wanted certificates.
    certificates: Arc<Certificates>,
    /// The most files that it can have open after its next start; `None` before it first answered.
    max_open_files: Option<u64>,
    /// The manual changes that confgen found in HAProxy.
    drift: KnownDrift,
    /// The number of times that confgen sent changes to HAProxy, or observed it. A look for manual changes that began before the last
    /// time proves nothing.
    exchanges: u64,
    /// The upstreams that HAProxy served when there were too many for the first time. `None` while all have room.
    served: Option<Arc<ServedUpstreams>>,
}

/// The generation that HAProxy runs. `None` if HAProxy doesn't answer, or runs a file that isn't confgen's.
pub fn running_generation(socket: &Socket) -> Option<String> {
    query_generation(socket).ok().flatten()
}

/// The generation that HAProxy runs. `None` if no HAProxy listens, or if it runs a file that isn't confgen's.
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

/// A service with a section in the running HAProxy. `None` if it is gone.
type Target<'a> = (&'a ServiceId, Option<&'a DesiredService>);

impl HaproxyControl {
    /// A HAProxy that has not been observed yet.
    pub fn new(socket: Socket, control: Control, stop_marker: PathBuf) -> Self {
        let certificates = Arc::default();
        let stop_marker = StopMarker(Arc::new(Mutex::new(stop_marker)));
        Self {
            restarter: Restarter { socket: socket.clone(), control, stop_marker },
            socket,
            observed: None,
            passes_through: false,
            adds_backends: false,
            refused_change: None,
            certificates,
            max_open_files: None,
            drift: KnownDrift::default(),
            exchanges: 0,
            served: None,
        }
    }

    /// Restarts this HAProxy beside changes over the Runtime API.
    pub fn restarter(&self) -> Restarter {
        self.restarter.clone()
    }

    /// Makes the observed state stale. The next change observes HAProxy first. A change may have failed, so
    /// what HAProxy runs is unknown.
    pub fn invalidate(&mut self) {
        self.observed = None;
        self.drift.forget_applied();
    }

    /// Makes the observed state stale too. What differs in the next one from what confgen applied was changed by hand.
    pub fn observe_again(&mut self) {
        if let Some(observed) = self.observed.take() {
            self.drift.keep_applied(observed);
        }
    }

    /// The most files that HAProxy can have open after its next start. Before HAProxy answered, confgen's own limit has to do.
    pub fn max_open_files(&mut self) -> Option<u64> {
        if self.observed.is_none() || self.max_open_files.is_none() {
            // Asked again with each stale state: a restarted HAProxy may have been given another limit.
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

    /// Sets the certificates that the next change applies.
    pub fn set_certificates(&mut self, certificates: &Arc<Certificates>) {
        self.certificates = Arc::clone(certificates);
    }

    /// True if HAProxy passed TLS through when it was last observed.
    pub fn passes_through(&self) -> bool {
        self.passes_through
    }

    /// The observed generation. `None` while the observed state is stale.
    pub fn generation_id(&self) -> Option<&str> {
        self.observed.as_ref().map(|observed| observed.generation_id.as_str())
    }

    /// The reason why HAProxy needs a restart to serve this. `None` if it needs none.
    pub fn restart_reason(&mut self, wanted: &ConfigFingerprint) -> Option<RestartReason> {
        let reason = match (self.refused_change.as_deref(), &mut self.observed) {
            (Some(complaint), _) => format!("HAProxy refuses a change while it runs: {complaint}"),
            (None, None) => "HAProxy doesn't answer, or runs no generation of ours".into(),
            (None, Some(observed)) => return observed.restart_reason(wanted),
        };
        Some(RestartReason { reason, services: BTreeSet::new() })
    }

    /// True if HAProxy serves the desired state as far as it can without a restart.
    pub fn is_synced(&self) -> bool {
        self.observed.is_some() && self.refused_change.is_none()
    }

    /// The services that get the requests for pending routes until the restart.
    pub fn services_reached_until_restart(&self) -> BTreeSet<ServiceId> {
        let Some(observed) = &self.observed else { return BTreeSet::new() };
        let sections = observed.state.sections_until_restart().into_iter();
        sections
            .filter_map(crate::desired::names::parse_section)
            .chain(observed.state.services_until_restart())
            .collect()
    }

    /// The pending services that no request reaches before the restart, because HAProxy has no route to them.
    pub fn find_unrouted(&self, desired: &DesiredState, pending: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let Some(observed) = &self.observed else { return BTreeSet::new() };
        let until_restart = observed.state.sections_until_restart();
        let is_unrouted = |id: &&ServiceId| {
            let Some(wanted) = desired.service(id) else { return false };
            match wanted.routes.is_empty() {
                _ if id.kind == discovery::Kind::Tcp || id.is_default() => false,
                true => !observed.fingerprint.has_expression(id, wanted),
                false => observed.pending.contains(*id) && !until_restart.contains(id.to_string().as_str()),
            }
        };
        pending.iter().filter(is_unrouted).cloned().collect()
    }

    /// True if no HAProxy with a generation of confgen's answers.
    pub fn is_unreachable(&self) -> bool {
        self.observed.is_none() && running_generation(&self.socket).is_none()
    }

    /// HAProxy's complaint about the last changes. `None` if it made them all. Otherwise only a restart makes them.
    pub fn refused_change(&self) -> Option<&str> {
        self.refused_change.as_deref()
    }

    /// True if HAProxy may lack a backend for one of these services and can add it while it runs.
    pub fn may_add_backends(&self, desired: &DesiredState, touched: &BTreeSet<ServiceId>) -> bool {
        let Some(observed) = &self.observed else { return self.adds_backends };
        observed.changes_backends && touched.iter().any(|id| observed.lacks_section(desired, id))
    }

    /// True if HAProxy was observed anew without the addition of the backends that it lacks.
    pub fn is_observed_without_additions(&self) -> bool {
        self.observed.as_ref().is_some_and(|observed| observed.may_lack_backends)
    }

    /// Makes HAProxy serve these services as desired, as far as it can without a restart. Returns the number of changes. `wanted` are
    /// the fingerprints of `desired`. Without them HAProxy gets no new backend.
    ///
    /// While the observed state is stale, all services are brought to the desired state. The same happens once if HAProxy complains,
    /// because an operator may have changed it over the Runtime API. After a second complaint only a restart helps.
    pub fn apply_desired<'a>(
        &mut self,
        desired: &DesiredState,
        wanted: Option<&ConfigFingerprint>,
        touched: impl Iterator<Item = &'a ServiceId>,
        disk: &dyn GenerationFiles,
    ) -> anyhow::Result<usize> {
        self.refused_change = None;
        let touched: Vec<&ServiceId> = touched.collect();
        let mut made = 0;
        loop {
            let is_first_look = self.observed.is_none();
            let (count, complaints) = self.apply_once(desired, wanted, &touched, disk)?;
            made += count;
            if complaints.is_empty() {
                return Ok(made);
            }
            // HAProxy's answer doesn't tell which of the changes it means.
            self.invalidate();
            if is_first_look {
                self.refused_change = Some(complaints.join("; "));
                return Ok(made);
            }
        }
    }

    /// Plans and sends the changes. Returns their number, and HAProxy's complaints.
    fn apply_once(
        &mut self,
        desired: &DesiredState,
        wanted: Option<&ConfigFingerprint>,
        touched: &[&ServiceId],
        disk: &dyn GenerationFiles,
    ) -> anyhow::Result<(usize, Vec<String>)> {
        self.exchanges += 1;
        // A kept route is in no service's applied routes any more. Only a plan of everything removes it.
        if self.observed.as_ref().is_some_and(|observed| observed.state.keeps_until_restart()) {
            self.observe_again();
        }
        let scope = if self.observed.is_some() { Scope::These } else { Scope::All };
        if scope == Scope::All {
            self.restarter.clear_stale_marker();
            self.observed = self.observe(disk).context("observe HAProxy")?;
            self.drift.compare(self.observed.as_mut());
        }
        let Some(observed) = &mut self.observed else { return Ok((0, Vec::new())) };
        self.passes_through = observed.fingerprint.passes_through();
        self.adds_backends = observed.changes_backends;
        let touched: Vec<ServiceId> = match scope {
            Scope::These => touched.iter().map(|id| (*id).clone()).collect(),
            Scope::All => desired.services().map(|(id, _)| id.clone()).chain(observed.fingerprint.services()).collect(),
        };
        observed.may_lack_backends |= wanted.is_none() && scope == Scope::All && observed.changes_backends;
        let new = wanted.map(|wanted| observed.find_new_backends(desired, &touched, wanted)).unwrap_or_default();
        if !new.is_empty() {
            // Before HAProxy has them: a confgen that starts now must know their shapes.
            observed.take_note(disk, &note_additions(&new));
            observed.expect_backends(&new);
        }
        observed.update_pending(desired, &touched);
        let targets: BTreeMap<&ServiceId, Option<&DesiredService>> = touched
            .iter()
            .filter(|id| observed.fingerprint.sections.contains_key(&id.to_string()))
            .map(|id| (id, served_service(desired, id)))
            .filter(|(id, wanted)| wanted.is_none_or(|wanted| observed.fingerprint.has_section_for(id, wanted)))
            .collect();
        let targets: Vec<Target> = targets.into_iter().collect();
        let plan = observed.state.plan_changes(scope, &targets, &observed.maps);
        let count = plan.changes.len() + plan.removals.len();
        // After the changes, in the same exchange: only a weight that is set behind them moves a server back into the present window.
        let sent = self.socket.apply_changes(&[plan.changes, plan.requeues].concat());
        let mut complaints = match sent {
            Ok(complaints) => complaints,
            Err(error) => {
                self.invalidate();
                return Err(error).context("change HAProxy");
            }
        };
        observed.state.mark_applied(scope, &targets);
        // HAProxy deletes a server only in maintenance and without connections. confgen retries the others every 200 ms.
        self.remove_servers(&plan.removals)?;
        let (certificates, refused) = self.swap_certificates()?;
        complaints.extend(refused);
        Ok((count + certificates, complaints))
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue_sections(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        // A stale observed state may have old weights, which this would set again.
        let Some(observed) = &self.observed else { return Ok(true) };
        let turns: Vec<Change> = sections.iter().flat_map(|section| observed.state.plan_requeue(section)).collect();
        self.exchanges += 1;
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
            // HAProxy has no such backend, so it has none of the servers. That is an answer, unlike a failed question.
            Err(runtime::Error::Refused { .. }) => Vec::new(),
            Err(_) => return None,
        };
        Some(state.into_iter().map(|server| (server.server.clone(), server_health(&server))).collect())
    }

    /// True if another HAProxy process listens too, as for some milliseconds of a restart.
    pub fn is_another_listening(&self) -> bool {
        masters::other_process_listens(&self.socket)
    }

    /// The start of the process that answers, up to a second late, because HAProxy counts whole seconds. `None` if it doesn't answer.
    pub fn started_at(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.socket.show_info().ok()?.uptime)
    }
}
