//! One round: settle, view, render, plan, then the file and HAProxy. Everything here blocks; `run` keeps it off the
//! runtime, one round at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use discovery::Topology;
use haproxy::check::{Checker, Verdict};
use haproxy::runtime::{Socket, Word};
use haproxy::supervisor::{Control, State};

use crate::args::Options;
use crate::disk::Disk;
use crate::outside::{Outside, Places};
use crate::plan::{Goal, Plan, Present, Step, plan};
use crate::render::{Rendered, render};
use crate::settle::{Limits, Memory, Settled, settle};
use crate::stats;
use crate::view::{Site, View};

/// A restart checks the file, starts HAProxy and waits for its answer: under a second for thousands of servers. A
/// process that isn't live after this is looked at again by the next try.
const LIVE_WITHIN: Duration = Duration::from_secs(15);
/// How often HAProxy is asked whether it has got there.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// What a round came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// HAProxy runs what is wanted, and nothing had to be done.
    InSync,
    /// The file was put right; HAProxy ran it already.
    Written,
    /// HAProxy was restarted, and runs what is wanted.
    Restarted,
    /// HAProxy refuses the generated file, in its own words. The old one stays.
    Refused(String),
    /// HAProxy refuses the operator's own files, in its own words. Nothing of the store is to blame.
    OperatorRefused(String),
    /// An operator has stopped HAProxy: the file is ready for its start.
    Stopped,
    /// The restart did not take.
    NotLive(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InSync => f.write_str("in sync"),
            Self::Written => f.write_str("haproxy.cfg was put right; HAProxy ran it already"),
            Self::Restarted => f.write_str("HAProxy was restarted and runs what the store asks for"),
            Self::Refused(output) => {
                write!(f, "HAProxy refuses the generated file, the old one stays: {}", output.trim())
            }
            Self::OperatorRefused(output) => {
                write!(f, "HAProxy refuses the operator's own files, mend them first: {}", output.trim())
            }
            Self::Stopped => f.write_str("HAProxy was stopped by an operator; the file is ready for its start"),
            Self::NotLive(reason) => write!(f, "the restart did not take: {reason}"),
        }
    }
}

/// The generation that HAProxy runs; none when it doesn't answer, or runs a file of somebody else.
pub fn running(socket: &Socket) -> Option<String> {
    socket.env(&"CONFGEN_GEN".parse::<Word>().ok()?).ok().flatten()
}

/// What rounds are made with, and what they remember.
pub struct Rounds {
    options: Options,
    site: Site,
    places: Places,
    disk: Disk,
    checker: Checker,
    socket: Socket,
    control: Control,
    memory: Memory,
    outside: Outside,
    quarantined: BTreeMap<String, String>,
    stamp: Option<String>,
}

impl Rounds {
    /// Opens the state directory and looks at what is outside of the store.
    pub fn open(options: Options) -> anyhow::Result<Self> {
        let disk = Disk::open(&options.haproxy_cfg, &options.state_dir)?;
        let places = options.places();
        places.prepare()?;
        let hash = stats::password_hash(options.stats_password_file.as_deref(), &options.state_dir)?;
        let checker = options.checker();
        Ok(Self {
            site: options.site(hash),
            socket: Socket::new(options.runtime_socket.clone()),
            control: options.control()?,
            memory: disk.memory()?,
            outside: places.read(&checker)?,
            quarantined: BTreeMap::new(),
            stamp: None,
            options,
            places,
            disk,
            checker,
        })
    }

    /// Looks anew at the operator's files and the certificates.
    pub fn look_outside(&mut self) -> anyhow::Result<()> {
        let outside = self.places.read(&self.checker)?;
        for (file, reason) in &outside.certificates.refused {
            if self.outside.certificates.refused.get(file) != Some(reason) {
                tracing::warn!("certificate {}: {reason}; not taken over", file.display());
            }
        }
        self.outside = outside;
        Ok(())
    }

    /// The bytes for a topology, and what was decided on the way. Touches nothing.
    pub fn render(&self, topology: &Topology) -> anyhow::Result<(Rendered, Settled)> {
        let settled = settle(topology, &self.memory, &self.limits());
        let view = View::of(&settled, &self.site, &self.outside.operator);
        let rendered = render(&view, &self.options.state_dir, &self.outside.contents).context("render haproxy.cfg")?;
        Ok((rendered, settled))
    }

    /// haproxy.cfg as it stands.
    pub fn on_disk(&self) -> anyhow::Result<Option<String>> {
        Ok(self.disk.cfg()?)
    }

    /// Does whatever is needed for HAProxy to run what the topology asks for.
    pub fn apply(&mut self, topology: &Topology) -> anyhow::Result<Outcome> {
        let (rendered, settled) = self.render(topology)?;
        self.tell_quarantine(settled.quarantined());
        self.stamp = Some(rendered.stamp.clone());
        let running = running(&self.socket);
        let on_disk = self.disk.cfg()?;
        let present = Present { running: running.as_deref(), on_disk: on_disk.as_deref() };
        let Plan { write, step } = plan(&present, Goal { stamp: &rendered.stamp, cfg: &rendered.cfg });
        if write && let Some(refused) = self.write(&rendered)? {
            return Ok(refused);
        }
        let memory = settled.memory();
        if self.memory != memory {
            self.disk.remember(&memory)?;
            self.memory = memory;
        }
        let outcome = match step {
            Step::Nothing if write => Outcome::Written,
            Step::Nothing => Outcome::InSync,
            Step::Restart(reason) => self.restart(&reason, &rendered.stamp)?,
        };
        if matches!(outcome, Outcome::Restarted | Outcome::Written) {
            self.disk.sweep(&[&rendered.stamp])?;
        }
        Ok(outcome)
    }

    /// Has HAProxy check the staged file, and commits it. What it says if it refuses.
    fn write(&self, rendered: &Rendered) -> anyhow::Result<Option<Outcome>> {
        let staged = self.disk.stage(rendered)?;
        let include = self.options.include.clone();
        match self.checker.check(&[include.clone(), staged.path().to_owned()])? {
            Verdict::Valid { warnings } => {
                warnings.iter().for_each(|line| tracing::warn!("haproxy -c: {line}"));
                self.disk.commit(staged)?;
                Ok(None)
            }
            Verdict::Refused { output } if self.operator_is_refused(include)? => {
                Ok(Some(Outcome::OperatorRefused(output)))
            }
            Verdict::Refused { output } => Ok(Some(Outcome::Refused(output))),
        }
    }

    /// Whether the operator's files fail on their own. A directory without any is fine, but HAProxy refuses to check
    /// nothing at all.
    fn operator_is_refused(&self, include: PathBuf) -> anyhow::Result<bool> {
        let empty = fs::read_dir(&include).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            return Ok(false);
        }
        let plain = tempfile::Builder::new().prefix(".plain.").tempfile_in(&self.options.state_dir)?;
        fs::OpenOptions::new().append(true).open(plain.path()).and_then(|mut file| {
            std::io::Write::write_all(
                &mut file,
                b"defaults\n    mode http\n    timeout client 1s\nfrontend confgen-check\n    bind 127.0.0.1:1\n",
            )
        })?;
        let verdict = self.checker.check(&[include, plain.path().to_owned()])?;
        Ok(matches!(verdict, Verdict::Refused { .. }))
    }

    fn restart(&self, reason: &str, stamp: &str) -> anyhow::Result<Outcome> {
        // A stop of ours that a crash cut short is mended; one of an operator's is respected.
        let marker = self.options.state_dir.join("restarting");
        if matches!(self.control.state(), Ok(State::Stopped)) && !marker.exists() {
            return Ok(Outcome::Stopped);
        }
        tracing::info!("restart: {reason}");
        fs::File::create(&marker).with_context(|| format!("create {}", marker.display()))?;
        let restarted = self.control.restart();
        fs::remove_file(&marker).with_context(|| format!("remove {}", marker.display()))?;
        if let Err(error) = restarted {
            return Ok(Outcome::NotLive(error.to_string()));
        }
        let deadline = Instant::now() + LIVE_WITHIN;
        while Instant::now() < deadline {
            if running(&self.socket).as_deref() == Some(stamp) {
                return Ok(Outcome::Restarted);
            }
            std::thread::sleep(ASK_EVERY);
        }
        let state = self.control.state().map_or_else(|error| error.to_string(), |state| format!("{state:?}"));
        Ok(Outcome::NotLive(format!(
            "HAProxy doesn't run generation {stamp} {LIVE_WITHIN:?} after its restart; supervisord: {state}"
        )))
    }

    /// The generation that was last wanted.
    pub fn stamp(&self) -> Option<&str> {
        self.stamp.as_deref()
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

    /// Says once what is refused, and once that it no longer is.
    fn tell_quarantine(&mut self, quarantined: BTreeMap<String, String>) {
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
}
