//! The announcer as a process: real etcd, real apps, real signals.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "the helpers of tests fail as tests do: with the place and the cause"
)]

mod admin;
mod checks;
mod config;
mod container;
mod descendants;
mod drain;
mod faults;
mod full_store;
mod life;
mod one_shot;
mod outputs;
mod own_record;
mod ownership;
mod parent;
mod pid_one;
mod site;
mod stop_on;
mod systemd;
