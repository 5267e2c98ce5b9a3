//! Shared parts of all programs: options and variables, log and output.
//!
//! Nothing here panics or blocks the program because an output is full, closed or not read.

mod destination;
pub mod log;
pub mod options;
pub mod output;
pub mod stream;
pub mod text;
pub mod variable;
