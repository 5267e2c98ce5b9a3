//! A seeded simulation of the whole: the stages of confgen and announcer that decide, against a model HAProxy and a model etcd, with
//! faults.
//!
//! A seed gives a list of steps, and nothing else decides: no clock, no thread, no file, no socket. So a failing seed fails again, and
//! fewer of its steps may fail too. `docs/internals/simulation.md` says what runs and what doesn't.

mod announcer;
mod balancer;
mod bugs;
mod clock;
mod etcd;
mod follower;
mod haproxy;
mod invariants;
mod owners;
mod run;
mod seeds;
mod settle;
mod shrink;
mod steps;
mod values;
mod world;

pub use bugs::Bug;
pub use run::{Failure, log_of, run};
pub use seeds::{Found, run_seeds};
pub use shrink::shrink;
pub use steps::{Setup, Step, generate};
