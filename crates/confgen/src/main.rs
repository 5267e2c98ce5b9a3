//! The program confgen. `lib.rs` has its modules.

use std::process::ExitCode;

fn main() -> ExitCode {
    confgen::run()
}
