//! The HAProxy side of haproxy-discover: the Runtime API, `haproxy -c`, the version, and supervisord.
//!
//! Architecture invariant: no other crate speaks to HAProxy or supervisord. Every call blocks, and has a deadline.
//! Asynchronous callers use `spawn_blocking`.

pub mod check;
pub mod command;
pub mod config;
pub mod cutoffs;
pub mod failure;
mod left_file;
pub mod masters;
pub mod process;
pub mod runtime;
mod socket_io;
pub mod state_file;
pub mod supervisor;
pub mod version;
