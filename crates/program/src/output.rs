//! Standard output and standard error of this process.
//!
//! Nothing else in the programs writes to them. `println!` and `eprintln!` panic if an output is full or closed, so
//! clippy refuses both.

pub use crate::destination::takes_colors;
use std::io::{self};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use crate::stream::{Stream, write_bytes};
use crate::text;

/// Limit of the wait for the log at the end of a process. A log with a reader is written in milliseconds.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Standard error: a daemon's log, and a command's messages beside its answer.
pub fn stderr() -> &'static Stream {
    static STDERR: OnceLock<Stream> = OnceLock::new();
    STDERR.get_or_init(|| Stream::lossy(io::stderr(), crate::destination::describe_gap))
}

/// Standard output as a stream, for a command that goes on while it is written.
pub fn stdout() -> &'static Stream {
    static STDOUT: OnceLock<Stream> = OnceLock::new();
    STDOUT.get_or_init(|| Stream::whole(io::stdout()))
}

/// Writes a message and a line break to standard error. Hidden characters are escaped. Never waits, never fails.
pub fn print_message(words: &str) {
    let words = text::escape_lines(words.trim_end_matches('\n'));
    stderr().queue_line(format!("{words}\n").into_bytes());
}

/// Writes to standard output without escaping, and waits until it is written.
///
/// # Errors
/// Standard output can't be written. A reader that has gone, such as `head`, is no error.
pub fn print_answer(text: &str) -> io::Result<()> {
    // Directly, not by the stream: a command prints its one answer and ends.
    match write_bytes(io::stdout().as_fd(), text.as_bytes()).1.map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("standard output can't be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// Waits at most a second until the log is written, and returns the code. To be called last.
pub fn flush_and_return(code: ExitCode) -> ExitCode {
    flush_stderr();
    code
}

/// Waits at most a second until the log is written. For a process that becomes another program.
pub fn flush_stderr() {
    stderr().flush(Some(FLUSH_LIMIT));
}
