//! HAProxy's user, group and chroot, and the group that may use its Runtime API. Parsing looks no account up.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::parse_line_path;

/// The options about HAProxy's own rights.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "HAProxy's rights")]
pub struct Rights {
    /// Run HAProxy as this user once it listens. Use off if HAProxy isn't started as root, or keeps its rights. The operator's
    /// own `user` line beats it
    #[arg(long, env = "CONFGEN_HAPROXY_USER", default_value = "haproxy", value_name = "USER")]
    pub haproxy_user: Account,
    /// Run HAProxy in this group once it listens. The operator's own `group` line beats it
    #[arg(long, env = "CONFGEN_HAPROXY_GROUP", default_value = "haproxy", value_name = "GROUP")]
    pub haproxy_group: Account,
    /// Confine HAProxy to this empty directory once it listens. The directory also holds HAProxy's internal socket for
    /// pass-through. /dev/log isn't in it: give --log an address, or mount a socket there
    #[arg(long, env = "CONFGEN_CHROOT", value_name = "DIR", value_parser = parse_line_path)]
    pub chroot: Option<PathBuf>,
    /// Let this group, besides root, use HAProxy's Runtime API
    #[arg(long, env = "CONFGEN_RUNTIME_SOCKET_GROUP", default_value = "off", value_name = "GROUP")]
    pub runtime_socket_group: Account,
}

/// The name of a user or a group. `off` is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account(Option<String>);

impl Account {
    /// `None` if the option is `off`.
    pub fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// Text that is no name of a user or a group.
#[derive(Debug, thiserror::Error)]
#[error(
    "`off`, or a name of lower-case letters, digits, `_` and `-` that begins with a letter or `_`, at most 32 long"
)]
pub struct NoAccount;

impl FromStr for Account {
    type Err = NoAccount;

    fn from_str(text: &str) -> Result<Self, NoAccount> {
        let first = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
        match text {
            "off" => Ok(Self(None)),
            name if first && rest && name.len() <= 32 => Ok(Self(Some(name.to_owned()))),
            _ => Err(NoAccount),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("off"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_break_no_line() {
        for (text, name) in [("haproxy", Some("haproxy")), ("_ha-proxy2", Some("_ha-proxy2")), ("off", None)] {
            assert_eq!(text.parse::<Account>().unwrap().name(), name);
        }
        for text in ["", "root\n", "a b", "a#", "-a", "0", "Ä", &"a".repeat(33)] {
            assert!(text.parse::<Account>().is_err(), "{text:?}");
        }
    }
}
