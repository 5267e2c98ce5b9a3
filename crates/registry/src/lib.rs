//! The etcd side of haproxy-discover: connect, snapshot and watch, transactions, leases.
//!
//! Keys in this API are relative to the prefix (`http-services/shop/domain`). [`Config`] has the prefix. The crate speaks
//! to etcd 3.4 and later.
//!
//! Nothing else in the workspace names `etcd_client`, and no type of it shows in this API.
//!
//! ```no_run
//! # async fn example(args: registry::Args) -> Result<(), Box<dyn std::error::Error>> {
//! use registry::{Client, Event, FollowOptions};
//! use tokio_util::sync::CancellationToken;
//!
//! let client = Client::new(args.resolve()?);
//! let mut events = client.follow_folder(FollowOptions::default(), CancellationToken::new());
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
//! `revisions` decides what a watch's message means, `stream::routes` which watch it is for, `classification` what an error
//! means, and `backoff` how long to wait. They are pure. `client`, `follow` and `lease` carry the decisions out.

mod args;
mod backoff;
mod changes;
mod classification;
mod client;
mod connect;
mod endpoint;
mod entry;
mod error;
mod follow;
mod lease;
mod members;
mod revisions;
mod snapshot;
mod stream;
mod txn;
mod watch;

pub use args::{Args, Config, ConfigError, SECRET_VARIABLES, Secret, User};
pub use backoff::{Backoff, Delays};
pub use changes::Changes;
pub use client::Client;
pub use endpoint::Endpoint;
pub use entry::{KeepEntry, LeaseId};
pub use error::{Error, Operation};
pub use follow::{Event, FollowOptions};
pub use lease::LeaseStats;
pub use members::MemberStatus;
pub use txn::{Committed, Condition, Txn, Write};
