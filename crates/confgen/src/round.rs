//! Rounds: what the store says is settled, HAProxy follows at once as far as it can, the file follows it, and a restart
//! does the rest. Everything here blocks; `run` keeps it off the runtime, one round at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use discovery::{ServiceId, Topology, UpstreamId};
use haproxy::check::Checker;
use haproxy::runtime::Socket;

use crate::args::Options;
use crate::disk::{self, Disk};
use crate::filing::{Filed, Filing};
use crate::guard::{Departure, Guard, Policy};
use crate::outside::{Outside, Places};
use crate::ports::unbindable;
use crate::proxy::{Proxy, Restart};
use crate::settle::{Changed, Limits, Memory, Settled, Wanted};
use crate::stats;
use crate::structure::Structure;
use crate::view::{self, Site, View, has_section};

/// What rounds are made with, and what they know.
pub struct Rounds {
    options: Options,
    site: Site,
    places: Places,
    disk: Disk,
    checker: Checker,
    proxy: Proxy,
    outside: Arc<Outside>,
    settled: Settled,
    /// What the file is to be like, but for what HAProxy takes while it runs.
    structure: Structure,
    quarantined: BTreeMap<String, String>,
    /// The last file that HAProxy found fine, by its generation, until it runs it.
    committed: Option<(String, Settled)>,
    guard: Guard,
    /// Whether a lease lives; etcd is asked.
    lives: Lives,
    guarded_at: Instant,
}

/// Asks etcd whether a lease lives. What can't be asked doesn't.
pub type Lives = Box<dyn Fn(i64) -> bool + Send>;

/// How often HAProxy is asked whether what is kept is still up.
const GUARD_EVERY: Duration = Duration::from_secs(1);
/// A server that was put back may be missing from HAProxy's answer for as long as that takes.
const PUT_BACK: Duration = Duration::from_secs(2);

/// What a quick round leaves to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// The file on disk is no longer what is wanted.
    pub file: bool,
    /// HAProxy has to be restarted, for this reason.
    pub restart: Option<String>,
    /// It doesn't answer at all.
    pub silent: bool,
    /// Servers wait for their last connection, or are kept.
    pub sweep: bool,
}

/// How a whole round went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// HAProxy runs what is wanted, and needed no restart for it.
    InSync,
    /// HAProxy was restarted, and runs what is wanted.
    Restarted,
    /// The file could not be put right.
    Refused(Filed),
    /// An operator has stopped HAProxy: the file is ready for its start.
    Stopped,
    /// The restart did not take.
    NotLive(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InSync => f.write_str("HAProxy runs what the store asks for"),
            Self::Restarted => f.write_str("HAProxy was restarted and runs what the store asks for"),
            Self::Refused(filed) => filed.fmt(f),
            Self::Stopped => f.write_str("HAProxy was stopped by an operator; the file is ready for its start"),
            Self::NotLive(reason) => write!(f, "the restart did not take: {reason}"),
        }
    }
}

impl Rounds {
    /// Opens the state directory and looks at what is outside of the store.
    pub fn open(options: Options, lives: Lives) -> anyhow::Result<Self> {
        let disk = Disk::open(&options.haproxy_cfg, &options.state_dir)?;
        let places = options.places();
        places.prepare()?;
        disk::make_state_file(&options.server_state_file);
        let hash = stats::password_hash(options.stats_password_file.as_deref(), &options.state_dir)?;
        let outside = places.read(&options.checker())?;
        let memory = disk.memory()?;
        Self::of(options, lives, disk, hash, outside, memory)
    }

    /// Looks at the same, and touches nothing: enough to tell what the file would be.
    pub fn glimpse(options: Options) -> anyhow::Result<Self> {
        let disk = Disk::at(&options.haproxy_cfg, &options.state_dir);
        let (hash, outside) = (stats::last_hash(&options.state_dir), options.places().glimpse());
        let memory = disk.glimpse_memory();
        Self::of(options, Box::new(|_| false), disk, hash, outside, memory)
    }

    fn of(
        options: Options,
        lives: Lives,
        disk: Disk,
        stats_hash: String,
        outside: Outside,
        memory: Memory,
    ) -> anyhow::Result<Self> {
        let marker = options.state_dir.join("restarting");
        Ok(Self {
            site: options.site(stats_hash),
            proxy: Proxy::new(Socket::new(options.runtime_socket.clone()), options.control()?, marker),
            settled: Settled::remembering(memory),
            outside: Arc::new(outside),
            structure: Structure::default(),
            quarantined: BTreeMap::new(),
            committed: None,
            guard: Guard::new(Policy { share: options.guard, window: options.guard_window, hold: options.guard_hold }),
            lives,
            guarded_at: Instant::now(),
            places: options.places(),
            checker: options.checker(),
            options,
            disk,
        })
    }

    /// Looks anew at the operator's files and the certificates. The next round has to be of everything.
    pub fn look_outside(&mut self) -> anyhow::Result<()> {
        let outside = self.places.read(&self.checker)?;
        for (file, reason) in &outside.certificates.refused {
            if self.outside.certificates.refused.get(file) != Some(reason) {
                tracing::warn!("certificate {}: {reason}; not taken over", file.display());
            }
        }
        if *self.outside != outside {
            self.settled.forgive();
        }
        self.outside = Arc::new(outside);
        Ok(())
    }

    /// HAProxy may have been restarted, or changed by somebody's hand.
    pub fn doubt(&mut self) {
        self.proxy.doubt();
    }

    /// Decides what is wanted.
    pub fn settle(&mut self, topology: &Topology, changed: &Changed) -> anyhow::Result<Vec<ServiceId>> {
        if *changed == Changed::All {
            self.settled.limit(self.limits());
        }
        let shared = view::shared(&self.settled);
        let touched: Vec<_> = self.settled.update(topology, changed).into_iter().collect();
        if *changed == Changed::All || shared != view::shared(&self.settled) {
            let view = View::of(&self.settled, &self.site, &self.outside.operator);
            self.structure = Structure::of(&view, &self.outside.contents).context("render haproxy.cfg")?;
            return Ok(touched);
        }
        for id in &touched {
            let wanted = self.settled.service(id).filter(|wanted| has_section(id, wanted));
            let section = wanted.map(|wanted| Structure::section(id, wanted, &self.site)).transpose();
            self.structure.set(id, section.context("render haproxy.cfg")?);
        }
        Ok(touched)
    }

    /// HAProxy follows what it can without a restart; says what is left. `goodbyes` are upstreams that said they would go.
    pub fn quick(
        &mut self,
        topology: &Topology,
        changed: &Changed,
        goodbyes: &BTreeSet<(ServiceId, UpstreamId)>,
    ) -> anyhow::Result<Left> {
        let mut touched: BTreeSet<ServiceId> = self.settle(topology, changed)?.into_iter().collect();
        touched.extend(self.guard_losses(goodbyes));
        let doubted = self.proxy.stamp().is_none();
        let made = self.proxy.follow(&self.settled, touched.iter(), &self.disk)?;
        if made > 0 {
            tracing::debug!("{made} changes over the Runtime API");
        }
        if let Some((stamp, file)) = self.committed.take_if(|(stamp, _)| self.proxy.stamp() == Some(stamp)) {
            tracing::trace!("HAProxy runs the file of generation {stamp}");
            self.settled.taken(&file);
        }
        let restart = self.proxy.lacks(&self.structure);
        if restart.is_none() {
            if doubted {
                touched.extend(self.settled.services().map(|(id, _)| id.clone()));
            }
            self.settled.runs(touched.iter());
        }
        Ok(Left {
            file: doubted || *changed == Changed::All || !touched.is_empty(),
            restart,
            silent: self.proxy.is_silent(),
            sweep: self.proxy.sweep()? || !self.guard.holding().is_empty(),
        })
    }

    /// Removes servers that were waiting for their last connection, and lets go what was kept and is no longer up. Says
    /// what is left, as a quick round does.
    pub fn sweep(&mut self) -> anyhow::Result<Left> {
        let mut left = Left::default();
        if self.guarded_at.elapsed() >= GUARD_EVERY {
            let released = self.guard_release(&BTreeSet::new());
            self.proxy.follow(&self.settled, released.iter(), &self.disk)?;
            left.file = !released.is_empty();
        }
        left.sweep = self.proxy.sweep()? || !self.guard.holding().is_empty();
        left.restart = self.proxy.lacks(&self.structure);
        Ok(left)
    }

    /// Keeps what vanished in a crowd. Says for which services the outcome is another one.
    fn guard_losses(&mut self, goodbyes: &BTreeSet<(ServiceId, UpstreamId)>) -> BTreeSet<ServiceId> {
        let unasked = |it: &Departure| it.is_loss() && !goodbyes.contains(&(it.service.clone(), it.id.clone()));
        let departures: Vec<Departure> = self.settled.take_departures().into_iter().filter(unasked).collect();
        let mut concerned = BTreeSet::new();
        if !departures.is_empty() {
            let services: BTreeSet<ServiceId> =
                departures.iter().map(|it| &it.service).chain(self.guard.losers()).cloned().collect();
            let health = self.health(&services);
            let is_up = |it: &Departure| health.get(&it.service).and_then(|of| of.get(it.id.as_str())) == Some(&true);
            let present = self.settled.present(&services);
            let crowd = self.guard.lost(Instant::now(), departures.into_iter().filter(is_up).collect(), &present);
            concerned = self.keep(crowd);
        }
        if !self.guard.holding().is_empty() {
            concerned.extend(self.guard_release(goodbyes));
        }
        concerned
    }

    /// Keeps a crowd, but for those whose lease lives: somebody deleted their keys.
    fn keep(&mut self, mut crowd: Vec<Departure>) -> BTreeSet<ServiceId> {
        let leases: BTreeSet<i64> = crowd.iter().map(|it| it.lease).collect();
        let alive: BTreeSet<i64> = leases.into_iter().filter(|lease| (self.lives)(*lease)).collect();
        crowd.retain(|it| !alive.contains(&it.lease));
        let services: BTreeSet<ServiceId> = crowd.iter().map(|it| it.service.clone()).collect();
        for service in &services {
            let count = crowd.iter().filter(|it| it.service == *service).count();
            tracing::warn!("{service}: {count} upstreams vanished at once and are up; kept until their checks fail");
        }
        self.guard.hold(Instant::now(), crowd);
        services.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    fn guard_release(&mut self, goodbyes: &BTreeSet<(ServiceId, UpstreamId)>) -> BTreeSet<ServiceId> {
        self.guarded_at = Instant::now();
        let health = self.health(&self.guard.holding().into_iter().collect());
        let settled = &self.settled;
        let released = self.guard.release(self.guarded_at, |service, id, upstream, kept| {
            let up = health.get(service).and_then(|of| of.get(id.as_str())).copied();
            let gone = goodbyes.contains(&(service.clone(), id.clone()));
            !gone && !settled.is_back(service, id, upstream) && up.unwrap_or(kept < PUT_BACK)
        });
        for service in &released {
            tracing::info!("{service}: upstreams that were kept are back, or let go");
        }
        released.into_iter().filter(|service| self.settled.keep(service, self.guard.held(service))).collect()
    }

    fn health(&self, services: &BTreeSet<ServiceId>) -> BTreeMap<ServiceId, BTreeMap<String, bool>> {
        services.iter().map(|service| (service.clone(), self.proxy.health(service))).collect()
    }

    /// Takes in how writing a file went.
    pub fn filed(&mut self, filing: &Filing, filed: &Filed) {
        match filed {
            // Until HAProxy runs it, the file may still keep it from starting.
            Filed::Same | Filed::Written => self.committed = Some((filing.structure.stamp(), filing.settled.clone())),
            Filed::Culprits(culprits) => {
                self.settled.refuse(culprits, &filing.settled);
                // Which of them are left out is seen by a look at everything.
                self.proxy.doubt();
            }
            Filed::Refused(_) | Filed::OperatorRefused(_) => {}
        }
    }

    /// What has to be written, apart from everything that goes on meanwhile.
    pub fn filing(&self) -> Filing {
        Filing {
            site: self.site.clone(),
            outside: Arc::clone(&self.outside),
            settled: self.settled.clone(),
            structure: self.structure.clone(),
            options: self.options.clone(),
            disk: self.disk.clone(),
            checker: self.checker.clone(),
        }
    }

    /// Says once what is refused, and once that it no longer is.
    pub fn tell_quarantine(&mut self) {
        let quarantined = self.settled.quarantined();
        for (key, reason) in &quarantined {
            if self.quarantined.get(key) != Some(reason) {
                tracing::warn!("quarantine: {key}: {reason}");
            }
        }
        for key in self.quarantined.keys().filter(|key| !quarantined.contains_key(*key)) {
            tracing::info!("quarantine: {key}: followed again, or gone");
        }
        self.quarantined = quarantined;
    }

    /// Writes the file, restarts HAProxy into it, and puts right what the file could not say.
    pub fn restart(&mut self, reason: &str) -> anyhow::Result<Outcome> {
        let filing = self.filing();
        let filed = filing.write()?;
        self.filed(&filing, &filed);
        if !matches!(filed, Filed::Same | Filed::Written) {
            return Ok(Outcome::Refused(filed));
        }
        // Whoever else has started it meanwhile may have done what is needed.
        self.proxy.follow(&self.settled, std::iter::empty(), &self.disk)?;
        if self.proxy.lacks(&self.structure).is_none() {
            self.settled.taken(&filing.settled);
            return Ok(Outcome::InSync);
        }
        tracing::info!("restart: {reason}");
        let stamp = self.structure.stamp();
        match self.proxy.restart(&stamp)? {
            Restart::Taken => {}
            Restart::Stopped => return Ok(Outcome::Stopped),
            Restart::NotLive(reason) => {
                let culprits = self.unbindable();
                if culprits.is_empty() {
                    return Ok(Outcome::NotLive(reason));
                }
                let filed = Filed::Culprits(culprits);
                self.filed(&filing, &filed);
                return Ok(Outcome::Refused(filed));
            }
        }
        self.settled.taken(&filing.settled);
        self.disk.sweep(&[&stamp])?;
        self.proxy.follow(&self.settled, std::iter::empty(), &self.disk)?;
        Ok(match self.proxy.refused() {
            None => Outcome::Restarted,
            Some(words) => Outcome::NotLive(format!("HAProxy refuses a change: {words}")),
        })
    }

    /// The services that bind what can't be bound: HAProxy will not start with them.
    fn unbindable(&self) -> BTreeMap<ServiceId, String> {
        let reasons = |wanted: &Wanted| wanted.binds.iter().find_map(|bind| unbindable(*bind));
        self.settled.services().filter_map(|(id, wanted)| Some((id.clone(), reasons(wanted)?))).collect()
    }

    /// One whole round, from nothing: HAProxy, file, restart if need be.
    pub fn once(&mut self, topology: &Topology) -> anyhow::Result<Outcome> {
        let left = self.quick(topology, &Changed::All, &BTreeSet::new())?;
        self.tell_quarantine();
        let outcome = self.complete(left)?;
        if let Outcome::Refused(Filed::Culprits(_)) = outcome {
            // Once more, without them.
            let left = self.quick(topology, &Changed::All, &BTreeSet::new())?;
            self.tell_quarantine();
            return self.complete(left);
        }
        Ok(outcome)
    }

    /// Does what a quick round has left.
    fn complete(&mut self, left: Left) -> anyhow::Result<Outcome> {
        if let Some(reason) = left.restart {
            return self.restart(&reason);
        }
        let filing = self.filing();
        let filed = filing.write()?;
        self.filed(&filing, &filed);
        Ok(match filed {
            Filed::Same | Filed::Written => Outcome::InSync,
            refused => Outcome::Refused(refused),
        })
    }

    fn limits(&self) -> Limits {
        let operator = &self.outside.operator;
        let mut reserved_ports = operator.ports.clone();
        reserved_ports.extend(self.options.bound_ports());
        Limits {
            reserved_ports,
            reserved_sections: operator.sections.clone(),
            profiles: operator.profiles.clone(),
            upstream_networks: self.options.upstream_networks.clone(),
            tcp_ports: Some(self.options.tcp_ports.clone()),
        }
    }
}
