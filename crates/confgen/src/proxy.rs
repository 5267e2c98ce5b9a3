//! HAProxy as confgen drives it: what it runs is looked at, changed over the Runtime API, and else restarted. Blocks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use discovery::ServiceId;
use haproxy::runtime::{Operation, Removal, ServerName, Socket, Token, Word};
use haproxy::supervisor::{Control, State};

use crate::disk::Disk;
use crate::live::{Live, MapPaths, Scope};
use crate::settle::{Settled, Wanted};
use crate::structure::Structure;

/// A restart checks the file, starts HAProxy and waits for its answer: under a second for thousands of servers. A
/// process that isn't live after this is looked at again by the next try.
const LIVE_WITHIN: Duration = Duration::from_secs(15);
/// How often HAProxy is asked whether it has got there.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// What is known of the running HAProxy.
struct Known {
    stamp: String,
    /// What its file lets it be changed to without a restart.
    structure: Structure,
    maps: MapPaths,
    live: Live,
}

/// The running HAProxy.
pub struct Proxy {
    socket: Socket,
    control: Control,
    /// Lies in the state directory while a stop of ours has not been followed by its start.
    marker: PathBuf,
    /// None until it has been looked at, and after anything that leaves it in doubt.
    known: Option<Known>,
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
    socket.env(&"CONFGEN_GEN".parse::<Word>().ok()?).ok().flatten()
}

/// The service, unless the section that it needs isn't there to be filled.
type Target<'a> = (&'a ServiceId, Option<&'a Wanted>);

impl Proxy {
    /// A proxy that has not been looked at yet.
    pub fn new(socket: Socket, control: Control, marker: PathBuf) -> Self {
        Self { socket, control, marker, known: None }
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
        match &self.known {
            None => Some("HAProxy doesn't answer, or runs no generation of ours".into()),
            Some(known) => known.structure.lacks(wanted),
        }
    }

    /// Makes HAProxy serve what is wanted of these services, as far as it can without a restart, and says how many
    /// changes that took. One that was in doubt is looked at, and put right as a whole.
    pub fn follow<'a>(
        &mut self,
        settled: &Settled,
        touched: impl Iterator<Item = &'a ServiceId>,
        disk: &Disk,
    ) -> anyhow::Result<usize> {
        let scope = if self.known.is_some() { Scope::These } else { Scope::All };
        if scope == Scope::All {
            self.known = self.look(disk);
        }
        let Some(known) = &mut self.known else { return Ok(0) };
        let gone: Vec<ServiceId>;
        let targets: Vec<Target> = if scope == Scope::These {
            touched.map(|id| (id, settled.service(id).map(|wanted| &**wanted))).collect()
        } else {
            gone = known.structure.services().filter(|id| settled.service(id).is_none()).collect();
            let all = settled.services().map(|(id, wanted)| (id, Some(&**wanted)));
            all.chain(gone.iter().map(|id| (id, None))).collect()
        };
        let targets: Vec<Target> =
            targets.into_iter().filter(|(id, _)| known.structure.sections.contains_key(&id.to_string())).collect();
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
        if !complaints.is_empty() {
            // What it is about can't be told: the next round looks at everything.
            self.doubt();
            anyhow::bail!("HAProxy refuses a change: {}", complaints.join("; "));
        }
        Ok(made)
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
                Ok(Removal::Done) => {
                    if let Some(known) = &mut self.known {
                        known.live.removed(name);
                    }
                }
                Ok(Removal::StillUsed) => {}
                Ok(Removal::Refused(words)) => tracing::warn!("{name} stays in maintenance: {words}"),
                Err(error) => {
                    self.doubt();
                    return Err(error).with_context(|| format!("remove {name}"));
                }
            }
        }
        Ok(())
    }

    /// What HAProxy runs, in its own words; none when it doesn't answer or runs no file of ours.
    fn look(&self, disk: &Disk) -> Option<Known> {
        let stamp = running(&self.socket)?;
        let structure = disk.structure(&stamp)?;
        let paths = self.socket.maps().ok()?;
        let map = |name: &str| paths.iter().find(|path| path.to_string().rsplit('/').next() == Some(name)).cloned();
        let maps = MapPaths { hosts: map("hosts.map")?, paths: map("paths.map")? };
        let content = |map: &Token| self.socket.map(map).ok();
        let live = Live::observed(&self.socket.servers_state().ok()?, content(&maps.hosts)?, content(&maps.paths)?);
        Some(Known { stamp, structure, maps, live })
    }

    /// Has HAProxy restarted into the generation that lies on disk, and waits until it runs it.
    pub fn restart(&mut self, stamp: &str) -> anyhow::Result<Restart> {
        self.doubt();
        // A stop of ours that a crash cut short is mended; one of an operator's is respected.
        if matches!(self.control.state(), Ok(State::Stopped)) && !self.marker.exists() {
            return Ok(Restart::Stopped);
        }
        fs::File::create(&self.marker).with_context(|| format!("create {}", self.marker.display()))?;
        let restarted = self.control.restart();
        fs::remove_file(&self.marker).with_context(|| format!("remove {}", self.marker.display()))?;
        if let Err(error) = restarted {
            return Ok(Restart::NotLive(error.to_string()));
        }
        let deadline = Instant::now() + LIVE_WITHIN;
        while Instant::now() < deadline {
            if running(&self.socket).as_deref() == Some(stamp) {
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
