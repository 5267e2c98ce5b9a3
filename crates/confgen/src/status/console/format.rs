//! Numbers and times as people read them. Pure.

use std::time::{Duration, SystemTime};

/// A figure with three digits: `0`, `0.25`, `12.3`, `480`, `1,234`, `2.5M`. `–` without a value.
pub fn format_figure(value: Option<f32>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return "–".to_owned() };
    match value {
        0.0 => "0".to_owned(),
        ..0.995 => format!("{value:.2}"),
        ..99.95 => trim_zero(format!("{value:.1}")),
        ..999_999.5 => format_count(value.round() as u64),
        _ => format!("{:.1}M", value / 1e6),
    }
}

fn trim_zero(text: String) -> String {
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// A whole number, its thousands apart: `12,345`.
pub fn format_count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency in ms: `24 ms`, `1.5 s`. `–` without a value.
pub fn format_latency(ms: Option<f32>) -> String {
    match ms.filter(|ms| ms.is_finite()) {
        None => "–".to_owned(),
        Some(ms) if ms < 1_000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.1} s", ms / 1_000.0),
    }
}

/// A span in its two greatest units: `12 s`, `3 min`, `2 h 5 min`, `9 d 4 h`.
pub fn format_span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, 0) => format!("{hours} h"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, 0, _) => format!("{days} d"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A time in UTC that people read, `2026-11-30 10:13:06`, and the same for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub words: String,
    pub stamp: String,
}

impl Moment {
    pub fn of(time: SystemTime) -> Self {
        // humantime can't write years after 9999, and HAProxy's figures may be any.
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        Self::parse(&humantime::format_rfc3339_seconds(time.min(latest)).to_string())
    }

    /// A time as the API has it. Any other text stays as it is.
    pub fn parse(stamp: &str) -> Self {
        let seconds = stamp.get(..19).filter(|_| stamp.ends_with('Z') && stamp.len() >= 20);
        let words = seconds.map_or_else(|| stamp.to_owned(), |seconds| seconds.replace('T', " "));
        Self { words, stamp: stamp.to_owned() }
    }

    /// The time so many seconds before `now`. `None` if the clock doesn't reach back that far.
    pub fn before(now: SystemTime, seconds: u64) -> Option<Self> {
        let at = now.checked_sub(Duration::from_secs(seconds)).filter(|at| *at >= SystemTime::UNIX_EPOCH)?;
        Some(Self::of(at))
    }
}

/// The time that an action took.
pub fn format_taken(seconds: f64) -> String {
    match seconds * 1_000.0 {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ => format!("{seconds:.1} s"),
    }
}

/// A size in MiB, with one digit behind the point.
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
pub fn format_mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The beginning of a text. It ends in `…` if the text is longer.
pub fn cut_text(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The sign of a style, so that a color isn't the only difference.
pub fn sign_of(style: &str) -> &'static str {
    match style {
        "serving" => "●",
        "standby" => "○",
        "outage" => "■",
        "failing" | "degraded" => "▲",
        "blocked" | "risk" => "◆",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_times_are_short() {
        let figures =
            [0.0, 0.25, 0.999, 3.0, 12.34, 480.2, 1_234.0, 999_999.0, 2.5e6].map(|it| format_figure(Some(it)));
        assert_eq!(figures, ["0", "0.25", "1", "3", "12.3", "480", "1,234", "999,999", "2.5M"]);
        assert_eq!(format_figure(None), "–");
        assert_eq!([7, 999, 1_000, 1_234_567].map(format_count), ["7", "999", "1,000", "1,234,567"]);
        assert_eq!([Some(0.0), Some(24.4), Some(1_500.0), None].map(format_latency), ["0 ms", "24 ms", "1.5 s", "–"]);
        let spans = [0, 59, 60, 3_600, 7_500, 86_400, 90_000, 800_000].map(format_span);
        assert_eq!(spans, ["0 s", "59 s", "1 min", "1 h", "2 h 5 min", "1 d", "1 d 1 h", "9 d 6 h"]);
        assert_eq!([0.0004, 0.02, 1.26].map(format_taken), ["0.4 ms", "20 ms", "1.3 s"]);
        assert_eq!((cut_text("äöü", 2), cut_text("äöü", 3)), ("äö…".to_owned(), "äöü".to_owned()));
        assert_eq!(Moment::parse("2026-11-30T10:13:06.123Z").words, "2026-11-30 10:13:06");
        assert_eq!(Moment::parse("soon").words, "soon");
        assert_eq!(Moment::before(SystemTime::UNIX_EPOCH, 1), None);
    }
}
