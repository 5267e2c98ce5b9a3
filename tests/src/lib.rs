//! The ground that the end-to-end tests stand on: real etcd, HAProxy, supervisord and web apps, and a load generator
//! that counts every request.
//!
//! Every function blocks, and may be called from a plain test as well as from inside an asynchronous one. Everything
//! that a test starts ends with it: on success, on a panic and on Ctrl-C.
//!
//! Architecture invariant: it only talks to processes, sockets and files. Of the project's crates it uses none but `trace`,
//! which judges what was recorded, so a mistake in them can't hide itself here.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a lab that can't be set up fails its test, with the place and the cause"
)]

mod answers;
mod app;
mod balancer;
mod balancer_paths;
mod bins;
mod browser;
mod certificate;
mod cleanup;
mod cluster;
mod compare_state;
mod container;
pub mod demo;
mod described;
mod doc_blocks;
mod early;
mod echo_upstreams;
mod etcd;
mod fixture;
mod host;
mod hosts;
pub mod http;
mod images;
mod load_lock;
mod machine;
mod outlet;
mod podman;
mod port;
mod proc;
mod process;
mod recorder;
mod records;
pub mod runtime;
mod scratch;
mod setup;
mod supervisor;
mod syslog;
mod tls;
mod tls_front;
mod until;
mod web_socket;

pub mod load;

pub use app::{Announce, App};
pub use balancer::Balancer;
pub use balancer_paths::Place;
pub use bins::bin;
pub use browser::{Browser, Claim, Look, Node, Tab};
pub use certificate::{Authority, Certificate};
pub use cluster::Cluster;
pub use compare_state::{Duty, Mirror};
pub use container::{Container, Image, Network, container_name, docker};
pub use described::check_value;
pub use doc_blocks::{Page, Step, is_shown};
pub use early::{Early, Pause};
pub use echo_upstreams::{Speaker, Speakers};
pub use etcd::{Etcd, PREFIX};
pub use fixture::{Builder, Ground};
pub use host::Host;
pub use hosts::{Hosts, ask_admin, servers_up};
pub use images::{Images, SOURCE};
pub use load_lock::{Turn, heavy, heavy_on, light, long, medium};
pub use machine::Machine;
pub use outlet::Outlet;
pub use podman::Podman;
pub use port::{free_address, free_port, port_or_free};
pub use proc::{children, cpu_seconds, open_files, own_memory, resident};
pub use process::Process;
pub use recorder::report_stop;
pub use records::Record;
pub use scratch::{Scratch, write};
pub use setup::Setup;
pub use syslog::Syslog;
pub use tls_front::Front;
pub use until::{Answer, PATIENCE, until};
pub use web_socket::WebSocket;

pub use nix::sys::signal::Signal;
pub use nix::unistd::Pid;
