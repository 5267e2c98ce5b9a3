//! The etcd side of haproxy-discover: connect, snapshot and watch, transactions, leases.
//!
//! Keys in this API are relative to the prefix (`http-services/shop/domain`); the prefix lives in [`Config`].
//! It speaks to etcd 3.4 and later.
//!
//! Architecture invariant: nothing else in the workspace names `etcd_client`, and no type of it shows in this API.
//! What to make of a message (`revisions`), an error (`error`) or a failed attempt (`retry`) is decided by pure code;
//! `client`, `follow` and `lease` only carry it out.

mod args;
mod client;
mod connect;
mod entry;
mod error;
mod follow;
mod lease;
mod resync;
mod retry;
mod revisions;
mod snapshot;
mod txn;
mod watch;

pub use args::{Args, Config, ConfigError, Endpoint, User};
pub use client::Client;
pub use error::{Act, Error};
pub use follow::{Event, Follow};
pub use lease::LeaseId;
pub use txn::{Committed, Condition, Txn};
