//! discoverctl, run as an operator runs it.

mod asked;
mod change;
mod host;
mod look;
mod past;
mod scene;
mod switch;
mod verdict;
