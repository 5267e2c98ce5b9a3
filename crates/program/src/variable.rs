//! Variables of the environment. An empty one counts as unset.
//!
//! Docker Compose passes `NAME=${UNSET}` as an empty variable, and env files are written with `NAME=` for "not this one".
//! etcdctl treats both alike, and so does every option of ours (see [`crate::options`]).

use std::env;
use std::ffi::{OsStr, OsString};

/// The variable's value; None if it is unset, empty, or has only blanks.
pub fn read(name: impl AsRef<OsStr>) -> Option<OsString> {
    env::var_os(name).filter(|value| !is_empty(value))
}

/// The same as text; None also if it is not UTF-8.
pub fn read_text(name: impl AsRef<OsStr>) -> Option<String> {
    read(name)?.into_string().ok()
}

/// True for a value that counts as unset: no bytes, or only ASCII blanks.
pub(crate) fn is_empty(value: &OsStr) -> bool {
    value.as_encoded_bytes().iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_empty_and_anything_else_is_a_value() {
        for empty in ["", " ", "\t\n "] {
            assert!(is_empty(OsStr::new(empty)), "{empty:?}");
        }
        for value in ["0", "off", " x", "\u{a0}"] {
            assert!(!is_empty(OsStr::new(value)), "{value:?}");
        }
        assert_eq!(read("NO_SUCH_VARIABLE_IS_SET"), None);
    }
}
