//! Names and numbers of signals. Pure.

use std::{fmt, str::FromStr};

use nix::{libc, sys::signal::Signal};

/// Number of a signal that asks for a stop. A number, since `nix` has no names for real-time signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopOn(pub(crate) i32);

/// Signals that always ask for a stop.
const ALWAYS: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// Signals that can't be handled, or that mean something else here: the end of a child, the terminal, a fault.
const NEVER: [Signal; 12] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGPIPE,
];

/// Numbers of all signals that ask for a stop, without duplicates, [`ALWAYS`] first.
pub(crate) fn list_stop_signals(more: &[StopOn]) -> Vec<i32> {
    let mut all: Vec<i32> = ALWAYS.iter().map(|signal| *signal as i32).collect();
    for StopOn(number) in more {
        if !all.contains(number) {
            all.push(*number);
        }
    }
    all
}

/// Stop signal for an app without `--stop-signal`: the signal that asked for the stop, if only `--stop-on` makes it
/// ask. The image's app expects that one. nginx finishes its requests on QUIT, and drops them on TERM.
pub(crate) fn signal_for_app(asked: Option<i32>) -> Signal {
    let asked = asked.and_then(|number| Signal::try_from(number).ok());
    asked.filter(|signal| !ALWAYS.contains(signal)).unwrap_or(Signal::SIGTERM)
}

/// Parses `TERM`, `SIGTERM` or `15`.
pub(crate) fn parse(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = if upper.starts_with("SIG") { upper.parse() } else { format!("SIG{upper}").parse() };
    let signal = named.ok().or_else(|| Signal::try_from(text.parse::<i32>().ok()?).ok());
    signal.ok_or_else(|| "a signal is written TERM, SIGTERM or 15".to_owned())
}

impl FromStr for StopOn {
    type Err = String;

    /// Parses what [`parse`] does, and real-time signals: `RTMIN+3`, `SIGRTMIN+3` or `37`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(signal) = parse(text) {
            return if NEVER.contains(&signal) {
                Err(format!("{signal} can't ask for a stop"))
            } else {
                Ok(Self(signal as i32))
            };
        }
        let number = parse_real_time(text).or_else(|| text.parse().ok());
        // Other signals without a name in nix belong to the C library's threads.
        let number = number.filter(|number| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number));
        number.map(Self).ok_or_else(|| {
            "a signal is written QUIT, SIGQUIT or 3; a real-time one RTMIN+3, of those that this system has".to_owned()
        })
    }
}

fn parse_real_time(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return if offset.is_empty() {
            Some(libc::SIGRTMIN())
        } else {
            libc::SIGRTMIN().checked_add(parse_offset(offset, '+')?)
        };
    }
    let offset = name.strip_prefix("RTMAX")?;
    if offset.is_empty() { Some(libc::SIGRTMAX()) } else { libc::SIGRTMAX().checked_sub(parse_offset(offset, '-')?) }
}

fn parse_offset(offset: &str, sign: char) -> Option<i32> {
    offset.strip_prefix(sign)?.parse().ok().filter(|number| (0..64).contains(number))
}

/// `SIGQUIT`, `SIGRTMIN+3`.
impl fmt::Display for StopOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => write!(f, "{signal}"),
            Err(_) => write!(f, "SIGRTMIN+{}", self.0 - libc::SIGRTMIN()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_ask_for_a_stop_are_read() {
        for (text, shown) in [
            ("QUIT", "SIGQUIT"),
            ("sigwinch", "SIGWINCH"),
            ("3", "SIGQUIT"),
            (" HUP ", "SIGHUP"),
            ("RTMIN+3", "SIGRTMIN+3"),
            ("SIGRTMIN+3", "SIGRTMIN+3"),
            ("rtmin", "SIGRTMIN+0"),
            ("37", "SIGRTMIN+3"),
        ] {
            assert_eq!(text.parse::<StopOn>().map(|signal| signal.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for text in
            ["", "KILL", "STOP", "CHLD", "SIGSEGV", "RTMIN+99", "RTMIN-1", "0", "-1", "99", "QUIT,HUP", "SIGSIGQUIT"]
        {
            assert!(text.parse::<StopOn>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_app_gets_the_signal_that_only_its_image_stops_on() {
        let to = |asked: Option<Signal>| signal_for_app(asked.map(|signal| signal as i32));
        assert_eq!(to(None), Signal::SIGTERM);
        assert_eq!([to(Some(Signal::SIGTERM)), to(Some(Signal::SIGINT))], [Signal::SIGTERM; 2]);
        assert_eq!(to(Some(Signal::SIGQUIT)), Signal::SIGQUIT);
        assert_eq!(
            signal_for_app(Some(37)),
            Signal::SIGTERM,
            "no app knows the signal that systemd's containers stop on"
        );
        assert_eq!(list_stop_signals(&[StopOn(3), StopOn(15), StopOn(3)]), [15, 2, 3]);
    }
}
