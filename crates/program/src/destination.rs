//! The destination of the log, and the beginning of its lines. It writes nothing.

use std::io::{self, IsTerminal};

use nix::sys::stat::fstat;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::variable;

/// Kind of the file behind stderr.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Destination {
    Journal,
    /// A terminal that shows colors.
    Terminal,
    Elsewhere,
}

impl Destination {
    pub(crate) fn of_stderr() -> Self {
        let stream = variable::read_text("JOURNAL_STREAM");
        let stderr = fstat(io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if is_journal(stream.as_deref(), stderr) {
            Self::Journal
        } else if takes_colors(&io::stderr()) {
            Self::Terminal
        } else {
            Self::Elsewhere
        }
    }
}

/// Line that replaces lines which couldn't be written.
pub(crate) fn describe_gap(count: u64) -> String {
    let lines = if count == 1 { "line was" } else { "lines were" };
    let words = format!("program::log: {count} {lines} dropped, since stderr took none");
    let mut line = String::new();
    match Destination::of_stderr() {
        // 4 is a warning (sd-daemon(3)).
        Destination::Journal => line.push_str("<4>"),
        Destination::Terminal => line.push_str("\x1b[33m WARN\x1b[0m "),
        Destination::Elsewhere => {
            let _ = SystemTime.format_time(&mut Writer::new(&mut line));
            line.push_str("  WARN ");
        }
    }
    line + &words + "\n"
}

/// True if stderr is the journal's socket that systemd named in `JOURNAL_STREAM`, `device:inode` (systemd.exec(5)). A
/// child may inherit the variable and write to another file.
pub(crate) fn is_journal(stream: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let named = stream.and_then(|stream| stream.split_once(':'));
    let named = named.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    named.is_some() && named == stderr
}

/// True if colors may be used: on a terminal, unless `NO_COLOR` is set (no-color.org) or `TERM` is `dumb`.
pub fn takes_colors(output: &impl IsTerminal) -> bool {
    output.is_terminal()
        && variable::read("NO_COLOR").is_none()
        && variable::read("TERM").is_none_or(|term| term != "dumb")
}
