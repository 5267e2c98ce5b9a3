//! handover with a real supervisord and a real HAProxy.

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may panic: that is how they fail"
)]

mod failure;
mod hang;
mod http;
mod lab;
mod restart;
mod shipped;
mod state;
mod stop;
mod trouble;
