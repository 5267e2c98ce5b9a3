//! Containers of a host: the services that their labels describe, the addresses at which balancers reach them, and a
//! client of the engine's API (Docker Engine, Podman).
//!
//! `labels`, `dialect` and `address` are pure. The starter of a container writes its labels, so no label can panic,
//! and a wrong one costs only its own service. Only `engine` and `host_addresses` do I/O.

mod address;
mod container;
mod dialect;
mod draft;
mod engine;
mod fault;
mod host_addresses;
mod labels;
mod service;

pub use address::{AddressRefusal, Reach, find_address};
pub use container::{Container, HealthStatus, OwnLife, RunState};
pub use dialect::Dialect;
pub use engine::{Engine, EngineAddress, EngineError, Event, EventKind, Events, Listed};
pub use fault::LabelFault;
pub use host_addresses::HostAddresses;
pub use labels::{LabelRules, Reading};
pub use service::{CopyLimit, LabelCheck, LabelledService};
