//! `/api/v1/status`, `/api/v1/quarantine` and `/api/v1/history`: one balancer as a whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `/api/v1/status`: the balancer at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Status {
    /// confgen's release, as `confgen --version` prints it.
    pub version: String,
    /// HAProxy runs what the store asks for. `/ready` answers 200 then.
    pub in_sync: bool,
    /// The state in words: the revision, or the reason why HAProxy isn't in sync.
    pub words: String,
    /// The connection to etcd, and the newest revision from there.
    pub store: StoreStatus,
    /// The running HAProxy; None if none answers.
    pub haproxy: Option<HaproxyStatus>,
    /// HAProxy processes that take no new requests and finish their last ones.
    pub old_haproxys: OldProcesses,
    /// The revision that HAProxy follows, except for pending services; None before the first one.
    pub applied: Option<i64>,
    /// The revision of the published haproxy.cfg; 0 before the first one.
    pub filed: i64,
    /// Services with a change that waits for a restart: `http-shop`.
    pub pending: Vec<String>,
    /// Retained upstreams, which are served although their keys are gone: `http-shop/node-1`.
    pub held: Vec<String>,
    /// The state of the operator's own files.
    pub operator_files: FilesStatus,
    /// The actions that confgen has begun and not finished, the longest first.
    pub under_way: Vec<UnfinishedAct>,
    /// The number of quarantined keys. `/api/v1/quarantine` lists them.
    pub quarantined: usize,
    /// The number of services that HAProxy should serve.
    pub services: usize,
    /// The number of upstreams that HAProxy should serve, in all services.
    pub upstreams: usize,
}

/// An action that has begun and not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UnfinishedAct {
    /// `start`, `look`, `runtime`, `file` or `restart`.
    pub kind: String,
    /// The cause of the action, in words.
    pub reason: String,
    /// The time since it began, in seconds.
    pub seconds: f64,
}

/// The state of the operator's own files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct FilesStatus {
    /// The reason why HAProxy or confgen rejects the files. The files that were accepted last count meanwhile. None if they are good.
    pub refused: Option<String>,
    /// Filled files that HAProxy would reject with their servers, and why.
    pub not_filled: Vec<String>,
    /// Lines that confgen doesn't understand or can't carry out, with file and line number.
    pub remarks: Vec<String>,
}

/// The connection to etcd, as confgen has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoreStatus {
    /// confgen follows the store at this moment.
    pub connected: bool,
    /// The reason why confgen doesn't follow the store; None if it does.
    pub error: Option<String>,
    /// The store's cluster id, in decimal. It is text because many JSON readers round numbers above 2^53.
    pub cluster: String,
    /// The newest store revision that confgen received.
    pub seen: i64,
}

/// The HAProxy that answers on the Runtime API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct HaproxyStatus {
    /// The process id of the worker.
    pub pid: u32,
    /// HAProxy's release, as it reports it: `2.6.12`.
    pub version: String,
    /// The generation id of the file that it runs (`CONFGEN_GEN`); None for a file that has none.
    pub generation: Option<String>,
    /// The start of this process as confgen saw it, RFC 3339; None before confgen has seen one.
    pub started: Option<String>,
}

/// HAProxy processes that a restart has left to finish their requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OldProcesses {
    /// The number of such processes.
    pub processes: usize,
    /// The age of the oldest one in whole seconds; 0 without any.
    pub oldest_seconds: u64,
    /// The open client connections of all of them.
    pub connections: u64,
    /// The memory that their ends free, in bytes. A process that the system hides doesn't count.
    pub memory_bytes: u64,
    /// The number of masters and processes that don't answer. Old processes may be among them.
    pub silent: usize,
    /// Each process, the oldest first.
    pub list: Vec<OldProcess>,
    /// Those that handover has cut off since the boot, because there were too many or they had too much memory.
    pub cut_off: CutOff,
}

/// A HAProxy process that finishes its last requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OldProcess {
    /// The process id of the worker.
    pub pid: u32,
    /// The time since its start in whole seconds.
    pub seconds: u64,
    /// Its open client connections.
    pub connections: u64,
    /// The memory that its end frees, in bytes; None if the system hides it.
    pub memory_bytes: Option<u64>,
}

/// Old HAProxy processes that handover has ended before their last connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct CutOff {
    /// The number of processes.
    pub processes: u64,
    /// The client connections that they had.
    pub connections: u64,
    /// The time of the last one, RFC 3339; None if there was none.
    pub last: Option<String>,
}

/// The answer to `/api/v1/quarantine`: all quarantined keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Quarantine {
    /// The reason by key. Keys are relative to the prefix.
    pub quarantine: BTreeMap<String, String>,
}

/// The answer to `/api/v1/history`: the last actions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct History {
    /// At most 200 actions, newest first.
    pub history: Vec<Act>,
}

/// An action that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Act {
    /// The time at which it began, RFC 3339.
    pub at: String,
    /// The kind of the action: `runtime`, `file` or `restart`.
    pub kind: String,
    /// The cause of the action, in words.
    pub reason: String,
    /// The newest store revision that the action knew.
    pub revision: i64,
    /// The time that it took, in seconds.
    pub seconds: f64,
    /// The action succeeded; else `outcome` is its error.
    pub ok: bool,
    /// The result in words, or the error.
    pub outcome: String,
}
