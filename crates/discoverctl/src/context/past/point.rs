//! Points in the past, as operators type them: a revision, a time, or how long ago. Pure but for the clock that says what "ago" is.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// Just after the transaction with this revision.
    Revision(i64),
    Time(SystemTime),
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeArg(pub(crate) SystemTime);

impl FromStr for TimeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_time(text, SystemTime::now()).map(Self)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(revision) => Ok(Self::Revision(revision)),
            Err(_) => parse_time(text, SystemTime::now())
                .map(Self::Time)
                .map_err(|why| format!("{why}; a number is a revision")),
        }
    }
}

fn parse_time(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| now.checked_sub(ago));
    // RFC 3339 as answers have it begins with the year 1970.
    let ago = ago.filter(|time| *time >= UNIX_EPOCH);
    ago.ok_or_else(|| "neither a time in UTC, as 2026-11-30T10:13:06Z is, nor how long ago, as 2h is".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_point_is_a_revision_a_time_or_an_age() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |text: &str| parse_time(text, now).map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_millis());
        assert_eq!(at("1970-01-01T00:00:09.5Z"), Ok(9_500));
        assert_eq!(at("1970-01-01 00:00:09"), Ok(9_000));
        assert_eq!(at("7d"), Ok(395_200_000));
        assert_eq!(at("1h 30m"), Ok(994_600_000));
        for bad in ["", "soon", "7", "1970", "99999999years"] {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert_eq!("1200".parse(), Ok(Point::Revision(1200)));
        assert!(matches!("2h".parse(), Ok(Point::Time(_))));
        assert!("-1h".parse::<Point>().is_err());
    }
}
