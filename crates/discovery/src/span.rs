//! Lengths of time as HAProxy writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Refusal;

/// A length of time of at least a millisecond and at most 24 days (HAProxy's longest timeout, 2^31 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u32);

/// HAProxy's units that make sense here (configuration manual, section 2.5), longest first.
const UNITS: [(&str, u32); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0.into())
    }
}

impl FromStr for Span {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refused =
            || Refusal::new_malformed(text, "a time is a number and its unit: 500ms, 30s, 5m, 1h; at most 24d");
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
        let (number, unit) = text.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
        let millis = number.parse::<u32>().ok().and_then(|n| n.checked_mul(*factor)).ok_or_else(refused)?;
        if (1..=24 * 86_400_000).contains(&millis) { Ok(Self(millis)) } else { Err(refused()) }
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
    fn spans() {
        for (written, read) in [("30s", "30s"), ("60s", "1m"), ("1500ms", "1500ms"), ("24d", "24d"), ("48h", "2d")] {
            assert_eq!(written.parse::<Span>().unwrap().to_string(), read);
        }
        for bad in ["", "30", "s", "0s", "-1s", "1.5s", "25d", "99999999999s", "30 s", "1w"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
