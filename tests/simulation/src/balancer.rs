//! A balancer: the model HAProxy, the state directory in memory, and confgen. The order of confgen's calls is that of its reconciler and
//! event loop, and the calls themselves are production's.

mod disk;
mod event_loop;
mod publish;
mod reconciler;
mod record;
mod removals;

use std::collections::BTreeSet;
use std::rc::Rc;

use confgen::decisions::{LastKnownGood, Site};

use crate::bugs::Bug;
use crate::clock::Clock;
use crate::etcd::Etcd;
use crate::follower::Follower;
use crate::haproxy::{Haproxy, SharedHaproxy};

pub use disk::Disk;
pub use event_loop::Confgen;
pub use reconciler::Reconciler;

/// The facts of a step that confgen's work needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The time.
    pub clock: Clock,
    /// The bug that is switched on.
    pub bug: Option<Bug>,
    /// Chooses among what may happen.
    pub roll: u32,
    /// The leases that live, or `None` if the balancer can't ask.
    pub alive: Option<&'a dyn Fn(i64) -> bool>,
}

impl Context<'_> {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The leases among these that live.
    fn living(&self, leases: BTreeSet<i64>) -> BTreeSet<i64> {
        leases.into_iter().filter(|lease| self.alive.is_some_and(|alive| alive(*lease))).collect()
    }
}

/// A balancer host.
pub struct Balancer {
    /// The name in `balancers/`.
    pub node: String,
    /// Its number among etcd's clients.
    pub client: usize,
    /// The running HAProxy and its old processes.
    pub haproxy: SharedHaproxy,
    /// The files that survive confgen.
    pub disk: Disk,
    /// `None` while confgen doesn't run.
    pub confgen: Option<Confgen>,
    site: Rc<Site>,
    /// The number of starts of confgen.
    starts: u64,
}

impl Balancer {
    /// A balancer on which nothing runs yet.
    pub fn new(number: usize, adds_backends: bool, site: Rc<Site>) -> Self {
        let haproxy = SharedHaproxy::new(Haproxy::new(adds_backends));
        Self {
            node: format!("lb{number}"),
            client: number,
            haproxy,
            disk: Disk::default(),
            confgen: None,
            site,
            starts: 0,
        }
    }

    /// Starts confgen. `clock` is now.
    pub fn start_confgen(&mut self, clock: Clock, bug: Option<Bug>) {
        self.starts += 1;
        if bug == Some(Bug::ForgetLastKnownGood)
            && let Some((good, _)) = &mut self.disk.lock().state
        {
            *good = LastKnownGood::default();
        }
        let follower = Follower::new(self.client);
        let instance = format!("{}-{}", self.node, self.starts);
        self.confgen = Some(Confgen::start(&self.haproxy, &self.disk, &self.site, follower, instance, clock));
    }

    /// Lets confgen do what is due.
    pub fn run_confgen(&mut self, etcd: &mut Etcd, context: Context<'_>) -> Vec<String> {
        match &mut self.confgen {
            Some(confgen) => confgen.run_due_work(etcd, self.client, &self.node, context),
            None => Vec::new(),
        }
    }
}
