//! What the daemons share: the log, the two-step shutdown, the word to systemd, the admin port.

pub mod admin;
pub mod shutdown;
pub mod systemd;

pub use program::log;
