//! The value of `control/accept-store`, with which an operator accepts a reset store as it is.
//!
//! It says only what the value holds. confgen decides which retained keys it releases. Pure: no I/O, no clock.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Refusal;
use crate::balancer::{as_text, text_or_number};
use crate::refusal::escape_text;

/// The longest value that is read, in bytes. `discoverctl accept-store` writes some 70.
const LONGEST: usize = 1024;

/// The value of `control/accept-store`: `{"cluster":"14841639068965178418","revision":12}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The cluster id of the accepted store. It is printed as text, because many JSON readers lose precision above 2^53.
    /// Text and numbers are read.
    #[serde(serialize_with = "as_text", deserialize_with = "text_or_number")]
    pub cluster: u64,
    /// The store's revision when the operator looked at it, for human readers. confgen compares the key's own revision.
    #[serde(default)]
    pub revision: i64,
}

impl Acceptance {
    /// Reads a value. Unknown fields are ignored, so that a newer discoverctl may add some.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        if value.len() > LONGEST {
            return Err(Refusal::TooLong { length: value.len(), limit: LONGEST });
        }
        serde_json::from_slice(value).map_err(|error| Refusal::Json(escape_text(&error.to_string(), 200).into()))
    }
}

/// Prints the JSON value that [`Acceptance::parse`] reads.
impl fmt::Display for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_reads_and_prints() {
        let text = r#"{"cluster":"14841639068965178418","revision":12}"#;
        let acceptance = Acceptance { cluster: 14_841_639_068_965_178_418, revision: 12 };
        assert_eq!(acceptance.to_string(), text);
        assert_eq!(Acceptance::parse(text.as_bytes()), Ok(acceptance));
        let number = br#"{"cluster": 14841639068965178418, "by": "eve"}"#;
        assert_eq!(Acceptance::parse(number), Ok(Acceptance { revision: 0, ..acceptance }));
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in ["", "{}", "7", "yes", r#"{"cluster":-1}"#, r#"{"cluster":"a"}"#, r#"{"cluster":1e30}"#] {
            assert!(Acceptance::parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
        assert!(matches!(Acceptance::parse(&vec![b' '; LONGEST + 1]), Err(Refusal::TooLong { .. })));
    }
}
