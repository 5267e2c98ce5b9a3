//! What the daemons share: the log, the two-step shutdown, the word to systemd.

pub mod log;
pub mod shutdown;
pub mod systemd;
