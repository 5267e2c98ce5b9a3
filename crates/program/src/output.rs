//! The two outputs of this process, and what may be written there by any other way than the log.
//!
//! Nothing else in the programs writes to them: `println!` and `eprintln!` panic when an output is full or closed, and
//! clippy refuses both.

pub use crate::destination::takes_colors;
use std::io::{self};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use crate::stream::{Stream, write_bytes};
use crate::text;

/// How long the end of a process waits for a log that takes nothing at the moment. A log that is read is written in
/// milliseconds.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Standard error: the log of a daemon, what a command says besides its answer.
pub fn stderr() -> &'static Stream {
    static STDERR: OnceLock<Stream> = OnceLock::new();
    STDERR.get_or_init(|| Stream::lossy(io::stderr(), crate::destination::describe_gap))
}

/// Standard output as a stream, for a command that goes on while it is written.
pub fn stdout() -> &'static Stream {
    static STDOUT: OnceLock<Stream> = OnceLock::new();
    STDOUT.get_or_init(|| Stream::whole(io::stdout()))
}

/// Says something on standard error, and a line break behind it. Hidden characters are escaped. Never waits, never fails.
pub fn print_message(words: &str) {
    let words = text::escape_lines(words.trim_end_matches('\n'));
    stderr().queue_line(format!("{words}\n").into_bytes());
}

/// Prints to standard output as it is, and waits until it is written. A reader that has gone, as `head` goes, is no error.
pub fn print_answer(text: &str) -> io::Result<()> {
    match write_bytes(io::stdout().as_fd(), text.as_bytes()).1.map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("standard output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// The last thing that a process does: waits a second at most until the log is written, and returns the code.
pub fn flush_and_return(code: ExitCode) -> ExitCode {
    flush_stderr();
    code
}

/// The same before the process becomes another program.
pub fn flush_stderr() {
    stderr().flush(Some(FLUSH_LIMIT));
}
