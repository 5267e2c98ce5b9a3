//! The whole, end to end: real processes, and every request counted.
//!
//! One binary, so that what waits for minutes in all waits together: see `lab::light` and `lab::heavy`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, with the place and the cause"
)]

mod acknowledgement;
mod admin;
mod ansible;
mod burst;
mod by_hand;
mod certificates;
mod container;
mod discoverctl;
mod fail_static;
mod fair_share;
mod faults;
mod generator;
mod generator_faults;
mod guard;
mod hardening;
mod host_cut_off;
mod hostile;
mod ignition;
mod images;
mod lab;
mod limits;
mod log;
mod long_lived;
mod mend;
mod operator;
mod packages;
mod passthrough;
mod passthrough_changes;
mod preview;
mod reference;
mod refused;
mod replay;
mod restart_facts;
mod rolling;
mod routing;
mod secure;
mod settings;
mod state_dir;
mod stats;
mod steady;
mod store;
mod tutorial;
mod units;
mod upgrade;
mod vagrant;
mod zero_loss;
