//! The etcd side of haproxy-discover: connect, snapshot and watch, transactions, leases.
//!
//! Keys in this API are relative to the prefix (`http-services/shop/domain`); the prefix lives in [`Config`].
//! It speaks to etcd 3.4 and later.
//!
//! Architecture invariant: nothing else in the workspace names `etcd_client`, and no type of it shows in this API.
//!
//! ```no_run
//! # async fn example(args: registry::Args) -> Result<(), Box<dyn std::error::Error>> {
//! use registry::{Client, Event, Follow};
//! use tokio_util::sync::CancellationToken;
//!
//! let client = Client::new(args.resolve()?);
//! let mut events = client.follow(Follow::default(), CancellationToken::new());
//! while let Some(event) = events.recv().await {
//!     match event {
//!         Event::Snapshot(all) => println!("{} keys at revision {}", all.entries.len(), all.revision),
//!         Event::Changes { revision, changes } => println!("{} changes up to {revision}", changes.len()),
//!         Event::Disconnected { error, since } => println!("{error}; away for {:?}", since.elapsed()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What to make of a message (`revisions`), an error (`classification`) or a failed attempt (`retry`) is decided by pure code;
//! `client`, `follow` and `lease` only carry it out.

mod args;
mod changes;
mod classification;
mod client;
mod connect;
mod endpoint;
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

// From options to a connection.

// What is asked of etcd.

// What goes on for ever.

// What is decided without I/O.

pub use args::{Args, Config, ConfigError, SECRET_VARIABLES, Secret, User};
pub use changes::Changes;
pub use client::Client;
pub use endpoint::Endpoint;
pub use entry::LeaseId;
pub use error::{Error, Operation};
pub use follow::{Event, FollowOptions};
pub use lease::LeaseStats;
pub use txn::{Committed, Condition, Txn};
