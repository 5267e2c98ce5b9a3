//! Whose word on an upstream's certificate counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use discovery::{Domain, FileName, Host, Service, SettingName, Sni, Tls, Verify};
use haproxy::runtime::Token;

use crate::desired::service_input::ServiceInput;

/// A file of authorities that HAProxy can load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The copy that it reads.
    pub copy: Token,
    /// Of the content: HAProxy reads another one at its start alone.
    pub fingerprint: String,
}

/// The files of `--ca-dir`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities {
    /// What can be named.
    pub usable: BTreeMap<FileName, Authority>,
    /// Files that aren't taken over, and why; the last good copy of one may be usable.
    pub refused: BTreeMap<FileName, String>,
}

/// What an upstream's certificate is checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The system's authorities.
    #[default]
    System,
    /// Nothing: whoever answers is believed.
    Unverified,
    /// The authorities in a file of this name.
    Authority(FileName, Authority),
}

impl Authorities {
    /// Whether the value can be had, or why not.
    pub(super) fn check_verify(&self, verify: &Verify) -> Result<(), String> {
        match verify {
            Verify::CaFile(name) if !self.usable.contains_key(name) => Err(match self.refused.get(name) {
                Some(reason) => format!("{name} in --ca-dir: {reason}"),
                None => format!("no file {name} in --ca-dir"),
            }),
            _ => Ok(()),
        }
    }

    /// Why an older content than the file's serves, if it does.
    pub(super) fn outdated_reason(&self, verify: &Verify) -> Option<String> {
        let Verify::CaFile(name) = verify else { return None };
        let reason = self.refused.get(name).filter(|_| self.usable.contains_key(name))?;
        Some(format!("{name} in --ca-dir: {reason}; its last good content serves"))
    }

    /// What the value stands for; none where it can't be had.
    pub(super) fn resolve_trust(&self, verify: &Verify) -> Option<Trust> {
        match verify {
            Verify::On => Some(Trust::System),
            Verify::Off => Some(Trust::Unverified),
            Verify::CaFile(name) => self.usable.get(name).cloned().map(|it| Trust::Authority(name.clone(), it)),
        }
    }
}

impl Trust {
    /// The authorities, as HAProxy calls them.
    pub fn authorities_token(&self) -> Option<Token> {
        match self {
            Self::System => SYSTEM_AUTHORITIES.parse().ok(),
            Self::Unverified => None,
            Self::Authority(_, authority) => Some(authority.copy.clone()),
        }
    }
}

/// As `verify` says it.
impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::System => "on",
            Self::Unverified => "off",
            Self::Authority(name, _) => name.as_str(),
        })
    }
}

/// The system's own directory of authorities (configuration manual, section 5.2, `ca-file`).
const SYSTEM_AUTHORITIES: &str = "@system-ca";

/// Settings without which it can't be told whom a request is sent to, where TLS is spoken to upstreams.
pub(super) const GATES: [SettingName; 2] = [SettingName::Verify, SettingName::Sni];

impl ServiceInput {
    /// The host that the service goes by: the first that it names, wildcards aside.
    pub(super) fn primary_host(&self) -> Option<&Host> {
        self.domains.iter().find_map(|domain| match domain {
            Domain::Exact(host) => Some(host),
            Domain::Wildcard(_) => None,
        })
    }

    /// Holds the service back where its upstreams' certificates couldn't be told from anybody's. `without` are the
    /// settings that have no good value.
    pub(super) fn check_upstream_tls(&mut self, service: &Service, without: &BTreeSet<SettingName>) {
        if self.settings.tls != Tls::Reencrypt {
            return;
        }
        self.upstreams_withheld |= GATES.iter().any(|gate| without.contains(gate));
        let verified = self.settings.trust != Trust::Unverified;
        if let Some(field) = service.setting(SettingName::Sni)
            && (self.settings.sni == Sni::Off && verified && self.primary_host().is_none())
        {
            let reason = "off: nothing says which name an upstream's certificate has to bear; name it here, name a host \
                          in `domain`, or set `verify` off";
            self.refusals.insert(field.entry.key.clone(), reason.into());
            self.upstreams_withheld = true;
        }
    }
}
