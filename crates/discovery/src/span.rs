//! Lengths of time as HAProxy writes them. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Refusal;

/// A length of time of at least a millisecond and at most 24 days (HAProxy's longest timeout, 2^31 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u32);

/// HAProxy's units that make sense here (configuration manual, section 2.5), longest first.
const UNITS: [(&str, u32); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const LONGEST_MILLIS: u32 = 24 * 86_400_000;

impl Span {
    fn from_text(text: &str) -> Option<Self> {
        // A unit is required: HAProxy reads a plain number as milliseconds (configuration manual, section 2.5).
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let millis = number.parse::<u32>().ok()?.checked_mul(*factor)?;
        (1..=LONGEST_MILLIS).contains(&millis).then_some(Self(millis))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0.into())
    }
}

impl FromStr for Span {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        const RULE: &str = "a time is a number and its unit: 500ms, 30s, 5m, 1h; at most 24d";
        Self::from_text(text).ok_or_else(|| Refusal::new_malformed(text, RULE))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS.into_iter().find(|(_, factor)| self.0.is_multiple_of(*factor)).unwrap_or(("ms", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_prints_in_its_largest_unit() {
        for (written, read) in [("30s", "30s"), ("60s", "1m"), ("1500ms", "1500ms"), ("24d", "24d"), ("48h", "2d")] {
            assert_eq!(written.parse::<Span>().unwrap().to_string(), read);
        }
        for bad in ["", "30", "s", "0s", "-1s", "1.5s", "25d", "99999999999s", "30 s", "1w"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
