//! The facts that `doctor` judges.

use std::collections::{BTreeMap, BTreeSet};

use discovery::Node;
use registry::MemberStatus;

use crate::balancer_api::{Answers, ClockReading, Problems, Status};
use crate::commands::lint;
use crate::store::Store;

/// The facts of one moment. Without the store only `members` and `clocks` are known.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// discoverctl's own release.
    pub(super) release: String,
    /// The prefix of all keys: `/haproxy-discover`.
    pub(super) prefix: String,
    /// By endpoint, in the order of `--endpoints`. The error is etcd's or the system's reason.
    pub(super) members: Vec<(String, Result<MemberStatus, String>)>,
    /// None if it can't be read.
    pub(super) store: Option<Store>,
    /// Each folder that commands write below, with etcd's reason if this user may not.
    pub(super) rights: Vec<(&'static str, Result<(), Refusal>)>,
    /// The faults that `lint` finds, with certificates that end within [`super::judge::EXPIRES_SOON_DAYS`].
    pub(super) lint: Vec<lint::Finding>,
    /// Each live balancer's state, or the reason why it can't be asked.
    pub(super) status: Answers<Status>,
    /// What each live balancer finds not right, or the reason why it can't be asked.
    pub(super) problems: Answers<Problems>,
    /// The balancers whose other answers are missing, although they said their state.
    pub(super) silent: BTreeMap<Node, String>,
    /// The clocks of other hosts, by name: `lb1`, `etcd at http://10.0.0.1:2379`.
    pub(super) clocks: BTreeMap<String, ClockReading>,
    /// The hosts whose clock was asked for.
    pub(super) asked_clocks: BTreeSet<String>,
}

/// The reason why a write is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// etcd's roles forbid it.
    Roles,
    /// etcd refuses every write, or fails.
    Store(String),
}
