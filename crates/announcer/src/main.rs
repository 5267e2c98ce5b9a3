//! The program announcer. `lib.rs` has its modules.

use std::process::ExitCode;

fn main() -> ExitCode {
    announcer::run()
}
