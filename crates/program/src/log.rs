//! The log on stderr. An event is one line, whatever a value contains. A log that can't be written stops nothing.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt, io, panic,
    sync::OnceLock,
};

use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt as _,
    registry::{LookupSpan, Scope},
};

use crate::destination::Destination;
use crate::{
    output,
    text::{OneLine, escape_json},
};

/// Failure to set up the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `tracing-subscriber` can't parse the filter.
    #[error(
        "--log-level {filter:?} is neither a level (error, warn, info, debug, trace) nor a filter like `info,registry=debug`"
    )]
    Filter {
        /// Filter from `--log-level`.
        filter: String,
        /// Error of the parser.
        source: ParseError,
    },
    /// The process has a log already.
    #[error("the log is set up already")]
    Twice,
}

/// Form of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for people. The journal gets priorities, a terminal colors, and everything else times
    #[default]
    Text,
    /// A JSON object in each line, wherever it goes
    Json,
}

impl LogFormat {
    /// Word of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Filter and form of the process's log, for further subscribers.
static SET_UP: OnceLock<(String, LogFormat)> = OnceLock::new();

/// Sets up the log as [`init`] does, in this form.
pub fn init_as(filter: &str, format: LogFormat) -> Result<(), LogError> {
    if format == LogFormat::Text {
        return init(filter);
    }
    let parsed = parse_filter(filter)?;
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(parsed)
        .with_writer(JsonStderr)
        .log_internal_errors(false)
        .try_init()
        .map_err(|_| LogError::Twice)?;
    note_set_up(filter, format);
    Ok(())
}

/// Subscriber that gives each field of an event to the journal by itself, as `<prefix>_<FIELD>`. `None` if stderr isn't the
/// journal, or if the log has another form.
///
/// It blocks while the journal takes nothing. So only a thread that nothing waits for may use it.
pub fn journal_with_fields(prefix: &str) -> Option<Dispatch> {
    let (filter, format) = SET_UP.get()?;
    if *format != LogFormat::Text || Destination::of_stderr() != Destination::Journal {
        return None;
    }
    let layer = tracing_journald::layer().ok()?.with_field_prefix(Some(prefix.to_owned()));
    Some(Dispatch::new(tracing_subscriber::registry().with(layer).with(parse_filter(filter).ok()?)))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

fn note_set_up(filter: &str, format: LogFormat) {
    let _ = SET_UP.set((filter.to_owned(), format));
    panic::set_hook(Box::new(log_panic));
}

/// Sets up the process's log: events that pass `filter` (`info`, or `info,registry=debug`) go to stderr.
///
/// For the journal, each line starts with its priority (sd-daemon(3)) and has no time stamp, since the journal has a
/// better one. Other destinations get a time stamp in UTC, and terminals get colors instead.
///
/// From here on a panic is an event of the log too. The standard library's own message would block on a full pipe.
pub fn init(filter: &str) -> Result<(), LogError> {
    let parsed = parse_filter(filter)?;
    let place = Destination::of_stderr();
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(Stderr)
        // The library would print the complaint to stderr, and panic if that fails too.
        .log_internal_errors(false)
        .with_ansi(place == Destination::Terminal)
        .event_format(Line { place })
        .try_init()
        .map_err(|_| LogError::Twice)?;
    note_set_up(filter, LogFormat::Text);
    Ok(())
}

/// Number of lines that this process has dropped since its start because stderr took none.
pub fn dropped_lines() -> u64 {
    output::stderr().dropped_lines()
}

fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(backtrace, "{panic}");
    // The panic may end the process before the writing thread runs.
    output::flush_stderr();
}

/// Writer that queues each event in one piece.
struct Stderr;

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        output::stderr().queue_line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writer of JSON, in which hidden characters are escaped.
struct JsonStderr;

impl MakeWriter<'_> for JsonStderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl io::Write for JsonStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        output::stderr().queue_line(escape_json(&text).into_owned().into_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Form of a line: `TIME LEVEL target: message field=value`.
struct Line {
    place: Destination,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        match self.place {
            Destination::Journal => write!(out, "<{}>", syslog_priority(level))?,
            Destination::Terminal => write!(out, "{}{level:>5}\x1b[0m ", level_color(level))?,
            Destination::Elsewhere => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {level:>5} ")?;
            }
        }
        // Only fields and messages are escaped: targets and names of spans are constants of the program.
        write!(out, "{}: ", event.metadata().target())?;
        for span in ctx.event_scope().into_iter().flat_map(Scope::from_root) {
            write!(out, "{}", span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(out, "{{{}}}", OneLine(&fields.fields))?;
            }
            out.write_str(": ")?;
        }
        let mut fields = String::new();
        ctx.format_fields(Writer::new(&mut fields), event)?;
        writeln!(out, "{}", OneLine(&fields))
    }
}

/// Priority of syslog (sd-daemon(3)).
fn syslog_priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn level_color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::ValueEnum as _;

    use super::*;
    use crate::destination::is_journal;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Kept {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    fn logged(place: Destination, act: impl FnOnce()) -> String {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(kept.clone())
            .with_ansi(place == Destination::Terminal)
            .event_format(Line { place })
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_a_value_holds() {
        let hostile = "a\nERROR forged\r\x1b[2J\u{9b}\u{2028}\u{202e}\u{200b}ü";
        let text = logged(Destination::Journal, || {
            let span = tracing::info_span!("apply", key = %hostile);
            let _entered = span.enter();
            tracing::warn!(value = %hostile, quoted = ?hostile, "refused {hostile}");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(text.ends_with('\n'));
        assert!(text.trim_end().chars().all(|char| !crate::text::is_hidden(char)), "{text:?}");
        assert!(text.starts_with("<4>program::log::tests: apply{key=a\\nERROR forged"), "{text:?}");
        assert!(text.contains('ü'));
    }

    #[test]
    fn the_journal_gets_priorities_others_get_times() {
        let line = |place| logged(place, || tracing::error!("it burns"));
        assert_eq!(line(Destination::Journal), "<3>program::log::tests: it burns\n");
        assert_eq!(line(Destination::Terminal), "\x1b[31mERROR\x1b[0m program::log::tests: it burns\n");
        let elsewhere = line(Destination::Elsewhere);
        let (time, rest) = elsewhere.split_once(' ').unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert_eq!(rest, "ERROR program::log::tests: it burns\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal(Some("8:1234"), Some((8, 1234))));
        assert!(!is_journal(Some("8:1234"), Some((8, 99))));
        assert!(!is_journal(Some("nonsense"), Some((8, 1234))));
        assert!(!is_journal(None, None));
        assert!(!is_journal(None, Some((8, 1234))));
    }

    #[test]
    fn the_word_of_a_form_is_that_of_the_option() {
        for format in LogFormat::value_variants() {
            assert_eq!(format.to_possible_value().unwrap().get_name(), format.name());
        }
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = init("info,registry=loud").unwrap_err().to_string();
        assert!(error.contains("info,registry=loud") && error.contains("--log-level"), "{error}");
    }
}
