//! The JSON that a balancer's admin port answers below `/api/v1/` (docs/api.md). confgen writes these types and discoverctl
//! reads them.
//!
//! Pure: types only, no request and no clock. A published name stays, in its place: the order of the fields is the order in
//! the JSON. A reader ignores names that it doesn't know, and fills in names that an older balancer doesn't write yet.

mod certificates;
mod changes;
mod problems;
mod service;
mod status;
mod upstream;

use serde::{Deserialize, Serialize};

pub use certificates::{Certificate, Certificates, Host, ServedBy};
pub use changes::{AppliedChange, Changes};
pub use problems::{Problem, Problems};
pub use service::{PreviewColor, Route, Service, ServiceInFull, Services, UpstreamCounts};
pub use status::{
    Act, CutOff, FilesStatus, HaproxyStatus, History, OldProcess, OldProcesses, Quarantine, Status, StoreStatus,
    UnfinishedAct,
};
pub use upstream::{Announced, Imposed, Preview, Traffic, Upstream, Upstreams};

/// The balancer and the store that an answer is about. Every answer has it as `identity`: one URL may lead to different
/// balancers, as 127.0.0.1 does on every host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Identity {
    /// The balancer's name: `--node` of its confgen.
    pub node: String,
    /// The store's cluster id, in decimal. None before confgen has listed the store and finished its first reconcile. Until
    /// then its answers lack what HAProxy may serve.
    pub cluster: Option<String>,
    /// The prefix of all keys: `--prefix` of its confgen.
    pub prefix: String,
    /// A random id of the confgen process, which `balancers/<node>` has too.
    pub instance: String,
}

#[cfg(test)]
mod tests;
