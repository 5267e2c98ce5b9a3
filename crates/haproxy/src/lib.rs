//! The HAProxy side of haproxy-discover: the Runtime API, `haproxy -c`, the version, supervisord.
//!
//! Architecture invariant: nothing else in the project speaks to HAProxy or supervisord. Everything
//! here blocks, and every call is bounded by a deadline; asynchronous callers use `spawn_blocking`.

pub mod check;
pub mod command;
pub mod config;
pub mod failure;
pub mod masters;
pub mod process;
pub mod runtime;
mod socket_io;
pub mod state_file;
pub mod supervisor;
pub mod version;
