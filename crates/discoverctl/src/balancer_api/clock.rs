//! The clock of another host, as the `Date` of its HTTP answer shows it. Pure.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap};

/// `Date` has whole seconds, rounded down.
const RESOLUTION: Duration = Duration::from_secs(1);

/// One answer's date, between two readings of this host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockReading {
    pub(crate) sent_at: SystemTime,
    pub(crate) date: SystemTime,
    pub(crate) received_at: SystemTime,
}

/// The least difference of that clock to this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClockOffset {
    /// The readings are compatible with equal clocks.
    None,
    Ahead(Duration),
    Behind(Duration),
}

impl ClockReading {
    /// None if the answer has no date, or one that makes no sense.
    pub(super) fn from_headers(headers: &HeaderMap, sent_at: SystemTime, received_at: SystemTime) -> Option<Self> {
        let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
        Some(Self { sent_at, date, received_at })
    }

    pub(crate) fn offset(&self) -> ClockOffset {
        if let Ok(ahead) = self.date.duration_since(self.received_at)
            && !ahead.is_zero()
        {
            return ClockOffset::Ahead(ahead);
        }
        // A date at the end of time has no second after it.
        let latest = self.date.checked_add(RESOLUTION).unwrap_or(self.date);
        match self.sent_at.duration_since(latest) {
            Ok(behind) if !behind.is_zero() => ClockOffset::Behind(behind),
            _ => ClockOffset::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_000 + millis)
    }

    #[test]
    fn only_a_difference_that_is_certain_counts() {
        for (sent, date, received, offset) in [
            (900, 0, 1_100, ClockOffset::None),
            (900, 1_000, 1_100, ClockOffset::None),
            (100, 5_000, 200, ClockOffset::Ahead(Duration::from_millis(4_800))),
            (9_500, 2_000, 9_700, ClockOffset::Behind(Duration::from_millis(6_500))),
            // A slow answer may have been made at any time in between.
            (0, 2_000, 4_000, ClockOffset::None),
        ] {
            let reading = ClockReading { sent_at: at(sent), date: at(date), received_at: at(received) };
            assert_eq!(reading.offset(), offset, "{sent} {date} {received}");
        }
    }

    #[test]
    fn a_date_that_makes_no_sense_is_none() {
        let headers = |date: &str| HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
        let read = |date: &str| ClockReading::from_headers(&headers(date), at(0), at(1));
        assert!(read("Fri, 15 Jan 2027 08:00:00 GMT").is_some());
        assert!(read("soon").is_none() && read("").is_none());
        assert!(ClockReading::from_headers(&HeaderMap::new(), at(0), at(1)).is_none());
    }
}
