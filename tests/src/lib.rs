//! The ground that the end-to-end tests stand on: real etcd, HAProxy, supervisord and web apps, and a load generator
//! that counts every request.
//!
//! Every function blocks, and may be called from a plain test as well as from inside an asynchronous one. Everything
//! that a test starts ends with it: on success, on a panic and on Ctrl-C.
//!
//! Architecture invariant: it only talks to processes, sockets and files. It uses none of the project's crates, so a
//! mistake in them can't hide itself here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a lab that can't be set up fails its test, with the place and the cause"
)]

mod app;
mod balancer;
mod bins;
mod certificate;
mod etcd;
mod ground;
mod guard;
mod heavy;
pub mod http;
pub mod load;
mod port;
mod process;
pub mod runtime;
mod scratch;
mod setup;
mod supervisor;
mod syslog;
mod tls;
mod until;

pub use app::{Announce, App};
pub use balancer::Balancer;
pub use bins::bin;
pub use certificate::Certificate;
pub use etcd::{Etcd, PREFIX};
pub use ground::Ground;
pub use heavy::{Heavy, heavy};
pub use port::free_port;
pub use process::Process;
pub use scratch::{Scratch, write};
pub use setup::Setup;
pub use syslog::Syslog;
pub use until::{Answer, until};

pub use nix::sys::signal::Signal;
