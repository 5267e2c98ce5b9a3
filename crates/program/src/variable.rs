//! Variables of the environment. An empty one counts as unset. It sets none.
//!
//! Docker Compose passes `NAME=${UNSET}` as an empty variable, and env files have `NAME=` for "not this one". etcdctl
//! treats both alike, and so does every option (see [`crate::options`]).

use std::env;
use std::ffi::{OsStr, OsString};

/// Variables by which systemd talks to a service. A child that inherits them could speak for the service.
const SYSTEMD_VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Variables that no child process of a program may inherit: systemd's, those of the store's options that hold a secret or
/// lead to one, and the program's own of that kind.
pub fn withheld_variables(
    store: &'static [&'static str],
    own: &'static [&'static str],
) -> impl Iterator<Item = &'static str> {
    SYSTEMD_VARIABLES.iter().chain(store).chain(own).copied()
}

/// Value of a variable. `None` if it is unset, empty or blank.
pub fn read(name: impl AsRef<OsStr>) -> Option<OsString> {
    env::var_os(name).filter(|value| !is_empty(value))
}

/// Value as text. `None` also if it is not UTF-8.
pub fn read_text(name: impl AsRef<OsStr>) -> Option<String> {
    read(name)?.into_string().ok()
}

/// True if a variable is set to a value that counts as unset.
pub(crate) fn is_set_and_empty(name: &OsStr) -> bool {
    env::var_os(name).is_some_and(|value| is_empty(&value))
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
