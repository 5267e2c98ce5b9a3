//! The children of this process, and the signals that they get. Nothing here decides about the announcement.
mod environment;
pub(crate) mod reaper;
pub(crate) mod stop_signal;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod tether;
