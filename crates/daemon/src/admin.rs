//! The admin port: a small HTTP server that shows how a daemon is, and changes nothing.
//!
//! It is bounded in connections and in time, and has no way back into the daemon: what it shows is read from a value that
//! the daemon leaves behind. It may fail; what the daemon is for goes on.

mod access;
mod args;
mod process;
mod reloaded_file;
mod routes;
mod serve;
mod tls;

pub use access::{AccessRules, Token};
pub use args::{AdminArgs, ArgsError, Config, Daemon, Listen};
pub use process::register_log;
pub use routes::{Probes, Pulse, build_routes};
pub use serve::{Error, Server};
