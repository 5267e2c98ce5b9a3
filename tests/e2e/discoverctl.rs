//! discoverctl, run as an operator runs it.

mod asked;
mod change;
mod change_log;
mod doctor;
mod host;
mod look;
mod past;
mod scene;
mod switch;
mod verdict;
