//! The authorities that upstreams' certificates are checked against. Pure: `local_files` reads the files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use discovery::{Domain, FileName, Host, Service, SettingName, Sni, Tls, Verify};
use haproxy::runtime::Token;

use crate::desired::service_input::ServiceInput;

/// A CA file that HAProxy accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The path of the copy that HAProxy reads.
    pub copy: Token,
    /// The fingerprint of the content. HAProxy reads a changed file only at its start.
    pub fingerprint: String,
}

/// The CA files of `--ca-dir`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities {
    /// The files that `verify` can name.
    pub usable: BTreeMap<FileName, Authority>,
    /// The files with rejected content, each with the reason. The last good copy of such a file may be usable.
    pub refused: BTreeMap<FileName, String>,
}

/// The authorities that an upstream's certificate is checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The system's own directory.
    #[default]
    System,
    /// None. Every certificate is accepted.
    Unverified,
    /// The CA file of this name.
    Authority(FileName, Authority),
}

impl Authorities {
    /// The error is the reason why the value can't be applied.
    pub(super) fn check_verify(&self, verify: &Verify) -> Result<(), String> {
        match verify {
            Verify::CaFile(name) if !self.usable.contains_key(name) => Err(match self.refused.get(name) {
                Some(reason) => format!("{name} in --ca-dir: {reason}"),
                None => format!("no file {name} in --ca-dir"),
            }),
            _ => Ok(()),
        }
    }

    /// The reason why the last good copy serves instead of the file's content. `None` if the content serves.
    pub(super) fn outdated_reason(&self, verify: &Verify) -> Option<String> {
        let Verify::CaFile(name) = verify else { return None };
        // Without a last good copy, `check_verify` rejects the value.
        let reason = self.refused.get(name).filter(|_| self.usable.contains_key(name))?;
        Some(format!("{name} in --ca-dir: {reason}; its last good content serves"))
    }

    /// `None` if no usable file has this name.
    pub(super) fn resolve_trust(&self, verify: &Verify) -> Option<Trust> {
        match verify {
            Verify::On => Some(Trust::System),
            Verify::Off => Some(Trust::Unverified),
            Verify::CaFile(name) => self.usable.get(name).cloned().map(|it| Trust::Authority(name.clone(), it)),
        }
    }
}

impl Trust {
    /// The value of HAProxy's `ca-file`. `None` if no certificate is checked.
    pub fn authorities_token(&self) -> Option<Token> {
        match self {
            // HAProxy never rejects this word, whatever the system has (2.6, 3.0, 3.2). Without the system's authorities, an
            // upstream fails in the handshake.
            Self::System => SYSTEM_AUTHORITIES.parse().ok(),
            Self::Unverified => None,
            Self::Authority(_, authority) => Some(authority.copy.clone()),
        }
    }
}

/// The value of the setting `verify`.
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

/// Settings that decide which upstreams are trusted over TLS. Without a good value, a request might reach a stranger.
pub(super) const GATES: [SettingName; 2] = [SettingName::Verify, SettingName::Sni];

impl ServiceInput {
    /// The first host that the service names and that is no wildcard. It goes into checks and certificates.
    pub(super) fn primary_host(&self) -> Option<&Host> {
        self.domains.iter().find_map(|domain| match domain {
            Domain::Exact(host) => Some(host),
            Domain::Wildcard(_) => None,
        })
    }

    /// Withholds the service's upstreams if their certificates can't be told from others'. `without` are the settings that have no
    /// good value.
    pub(super) fn check_upstream_tls(&mut self, service: &Service, without: &BTreeSet<SettingName>) {
        if self.settings.tls != Tls::Reencrypt {
            return;
        }
        self.upstreams_withheld |= GATES.iter().any(|gate| without.contains(gate));
        let verified = self.settings.trust != Trust::Unverified;
        if let Some(field) = service.setting(SettingName::Sni)
            && (self.settings.sni == Sni::Off && verified && self.primary_host().is_none())
        {
            // HAProxy looks for a name in the certificate only if it has one. Otherwise any certificate of the authority will do.
            let reason = "off: nothing says which name an upstream's certificate has to bear; name it here, name a host \
                          in `domain`, or set `verify` off";
            self.refusals.insert(field.entry.key.clone(), reason.into());
            self.upstreams_withheld = true;
        }
    }
}
