//! The progress line on standard error. A terminal redraws one line. A file or pipe gets a line at first and when it
//! changes.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use program::output;
use program::text::escape_line;

/// The time before the first line. A shorter wait needs no explanation.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(2);
/// The shortest time between two lines in a file or a pipe.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A line on standard error. On a terminal it disappears when this is dropped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Option<(Instant, String)>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, started: Instant::now(), last_line: None }
    }

    /// Sets the line, which says what the command waits for.
    pub(crate) fn set_message(&mut self, words: String) {
        if let Some(bar) = &self.bar {
            // Names from the store may be in it, and the terminal must not obey their control characters.
            return bar.set_message(escape_line(&words).into_owned());
        }
        let is_news = self.last_line.as_ref().is_none_or(|(at, said)| *said != words && at.elapsed() >= LINE_INTERVAL);
        if self.started.elapsed() >= FIRST_LINE_AFTER && is_news {
            output::print_message(&words);
            self.last_line = Some((Instant::now(), words));
        }
    }

    /// The time since this was made.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
