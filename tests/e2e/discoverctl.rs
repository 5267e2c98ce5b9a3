//! discoverctl, run as an operator runs it.

mod asked;
mod change;
mod look;
mod past;
mod scene;
mod switch;
mod verdict;
