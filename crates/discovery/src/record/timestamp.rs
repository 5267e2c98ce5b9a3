//! A point in time as a record has it: UTC, in RFC 3339, in whole seconds. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Refusal;

/// A point in time between the years 1970 and 9999, in whole seconds: `2026-11-30T10:13:06Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

/// The last second of the year 9999, beyond which RFC 3339 has no form.
const LAST: u64 = 253_402_300_799;

impl Timestamp {
    /// The time by a clock. Times out of range become the nearest one that is in range.
    pub fn from_time(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self(seconds.min(LAST))
    }

    /// The time as a clock gives it.
    pub fn to_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

impl FromStr for Timestamp {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let time = humantime::parse_rfc3339(text);
        time.map(Self::from_time).map_err(|_| Refusal::new_unexpected(text, "a time in UTC: 2026-11-30T10:13:06Z"))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.to_time()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_and_prints() {
        for (written, printed) in [
            ("2026-11-30T10:13:06Z", "2026-11-30T10:13:06Z"),
            ("2026-11-30T10:13:06.987Z", "2026-11-30T10:13:06Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(written.parse::<Timestamp>().unwrap().to_string(), printed);
        }
        for bad in ["", "now", "2026-11-30", "2026-11-30T10:13:06", "2026-11-30T10:13:06+02:00", "1969-01-01T00:00:00Z"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
        assert!("ä".repeat(12).parse::<Timestamp>().is_err());
    }

    #[test]
    fn a_clock_out_of_range_gives_the_nearest_time() {
        let ages = Duration::from_secs(1 << 40);
        assert_eq!(Timestamp::from_time(UNIX_EPOCH + ages).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(Timestamp::from_time(UNIX_EPOCH - Duration::from_secs(9)).to_string(), "1970-01-01T00:00:00Z");
    }
}
