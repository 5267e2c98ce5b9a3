//! The whole, end to end: real processes, and every request counted.
//!
//! One binary, so that what waits for minutes in all waits together: see `lab::light` and `lab::heavy`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
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
mod as_written;
mod busy_acts;
mod certificates;
mod change_burst;
mod change_hooks;
mod client_headers;
mod console;
mod container;
mod crowd;
mod demo;
mod discoverctl;
mod drift_repair;
mod early;
mod empty_variables;
mod etcdctl_only;
mod fail_static;
mod fair_share;
mod faults;
mod generator;
mod generator_faults;
mod guard;
mod guesses;
mod hardening;
mod hidden_characters;
mod host_cut_off;
mod hostile;
mod hostile_app;
mod ignition;
mod images;
mod key_by_key;
mod lab;
mod layers;
mod limits;
mod log;
mod long_lived;
mod manual_changes;
mod many_keys;
mod many_upstreams;
mod new_services;
mod no_restart_changes;
mod observability;
mod old_processes;
mod once;
mod operator;
mod operator_files;
mod outputs;
mod own_record;
mod packages;
mod passthrough;
mod passthrough_changes;
mod podman;
mod preview;
mod proxy_protocol;
mod quadlet;
mod random_history;
mod reference;
mod rejected_config;
mod replaced_services;
mod replicas;
mod restart_facts;
mod rolling;
mod rolling_reboot;
mod routing;
mod schemas;
mod secure;
mod settings;
mod slow_expressions;
mod state_dir;
mod stats;
mod store;
mod takeover;
mod trace_context;
mod traces;
mod tutorial;
mod units;
mod upgrade;
mod vagrant;
mod zero_loss;
