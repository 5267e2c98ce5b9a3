//! Shared parts of the daemons: the log, the two-step shutdown, systemd's notifications, the admin port. Nothing here
//! knows what a daemon does.

pub mod admin;
pub mod shutdown;
pub mod systemd;

pub use program::log;
