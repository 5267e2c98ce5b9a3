//! The admin port: a small HTTP server that shows a daemon's status and changes nothing.
//!
//! It is bounded in connections and in time. It reads only values that the daemon publishes, so a failure or a slow
//! client never delays the daemon.

mod access;
mod args;
mod escape;
mod exposition;
mod process;
mod reloaded_file;
mod routes;
mod serve;
mod tls;

pub use access::{AccessRules, Token};
pub use args::{AdminArgs, ArgsError, Config, Daemon, Listen};
pub use process::register_log;
pub use routes::{Probes, Pulse, build_routes, respond_metrics};
pub use serve::{Error, Server};
