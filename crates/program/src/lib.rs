//! What every program of the project does alike, whatever it is started with: it reads its options and variables, and
//! writes its log and its answers.
//!
//! Nothing here panics because an output is full, closed or not read.

mod destination;
pub mod log;
pub mod options;
pub mod output;
pub mod stream;
pub mod text;
pub mod variable;
