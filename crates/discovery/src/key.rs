//! The keys below the prefix: each one's service, setting, upstream or balancer, or the reason why it has none.
//!
//! It reads and prints keys only. Values are parsed elsewhere. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{LogName, Node, Refusal, ServiceName, SettingName, SlotNumber, UpstreamId};

/// The kind of a service, HTTP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// HAProxy routes requests by host and path.
    Http,
    /// HAProxy binds ports for the service alone.
    Tcp,
}

impl Kind {
    /// The folder of the kind's services, without a `/`: `http-services`.
    pub fn folder_name(self) -> &'static str {
        match self {
            Self::Http => "http-services",
            Self::Tcp => "tcp-services",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        })
    }
}

/// A service: its kind and its name. It prints as its section in HAProxy is called, `http-shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    /// The kind. Services of both kinds may have one name.
    pub kind: Kind,
    /// The name, unique among the services of its kind.
    pub name: ServiceName,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind, self.name)
    }
}

impl ServiceId {
    /// The folder of the service's keys, with the `/` that ends it.
    pub fn folder_path(&self) -> String {
        format!("{}/{}/", self.kind.folder_name(), self.name)
    }

    /// True for `http-services/default`, which answers for every host that no service names.
    pub fn is_default(&self) -> bool {
        self.kind == Kind::Http && self.name.as_str() == "default"
    }
}

/// The layout that a key is written in. If both layouts have a key, the current one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// `services/…`, as other tools write it (docs/migrate.md). HTTP only.
    Legacy,
    /// `http-services/…` and `tcp-services/…`
    Current,
}

const LEGACY_FOLDER: &str = "services";

/// A key below the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A setting of a service.
    Setting {
        /// The service that the setting belongs to.
        service: ServiceId,
        /// The layout that the key is written in.
        layout: Layout,
        /// The setting's name, in the current layout's spelling.
        name: SettingName,
    },
    /// An upstream's record.
    Upstream {
        /// The service that the upstream belongs to.
        service: ServiceId,
        /// The layout that the key is written in.
        layout: Layout,
        /// The upstream's name within the service.
        id: UpstreamId,
    },
    /// An operator's override of an upstream. The legacy layout has none.
    Override {
        /// The service that the upstream belongs to.
        service: ServiceId,
        /// The upstream's name. Its record may be missing.
        id: UpstreamId,
    },
    /// A slot, which the announcer of one running copy of the service holds, see [`crate::Slot`]. The legacy layout has none.
    Slot {
        /// The service with a limited number of copies.
        service: ServiceId,
        /// The slot's number.
        number: SlotNumber,
    },
    /// The announcer of a copy that waits for a slot, see [`crate::Standby`]. The legacy layout has none.
    Standby {
        /// The service with a limited number of copies.
        service: ServiceId,
        /// The name that the copy's upstream has once it runs.
        id: UpstreamId,
    },
    /// The record of a balancer, which its confgen writes.
    Balancer(Node),
    /// The operator's acceptance of a reset store, see [`crate::Acceptance`].
    AcceptStore,
    /// An entry of the change log, see [`crate::LogEntry`]. Balancers follow no such key.
    Log(LogName),
}

/// The reason why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No folder of the project explains the key. `discoverctl lint` names it.
    #[error("unknown key")]
    Unknown,
    /// The name of a balancer or a copy, or a slot's number, breaks its rule. `discoverctl lint` names the key.
    #[error("{0}")]
    BadName(#[from] Refusal),
    /// The key was meant for a service, an upstream or an override, and has a fault. It is quarantined, so that its writer
    /// hears of it.
    #[error("{0}")]
    Malformed(Box<str>),
}

/// The folder of the change log's entries.
const LOG_FOLDER: &str = "log/";

const LEGACY_OVERRIDE: &str = "overrides are read in `http-services/<svc>/overrides/<id>`; this layout has none";
const TOO_DEEP: &str = "nothing stands below an upstream's key: write its address, or its fields as one JSON object, to \
                        `upstreams/<id>` itself";
const NO_ID: &str = "an upstream's key ends in its id: `upstreams/<id>`";
const TRAILING_SLASH: &str = "a key doesn't end in `/`: write the value to the key without it";
/// The fault of a key in no known folder, if its path or its value is that of an upstream.
pub(crate) const WRONG_FOLDER: &str = "it reads like an upstream's, and upstreams are followed in \
                                       `http-services/<svc>/upstreams/<id>` and `tcp-services/<svc>/upstreams/<id>`";

impl KeyError {
    fn malformed_key(words: &str) -> Self {
        Self::Malformed(words.into())
    }

    /// Classifies a key below a service's folder that is none of its settings, upstreams and overrides. `rest` is the path
    /// behind the folder of services, the service's name first.
    fn classify_service_key(layout: Layout, rest: &[&str]) -> Self {
        match rest {
            [_, "overrides", _] if layout == Layout::Legacy => Self::malformed_key(LEGACY_OVERRIDE),
            [_, "upstreams" | "overrides"] | [_, "upstreams" | "overrides", ""] => Self::malformed_key(NO_ID),
            [_, "upstreams" | "overrides", _, ""] => Self::malformed_key(TRAILING_SLASH),
            [_, "upstreams" | "overrides", ..] => Self::malformed_key(TOO_DEEP),
            [_, setting, ""] if setting.parse::<SettingName>().is_ok() => Self::malformed_key(TRAILING_SLASH),
            _ => Self::Unknown,
        }
    }
}

/// True if a reader would take the key for an upstream's: `http-service/shop/upstreams/a`, `http-services/shop/Upstream/a`.
pub(crate) fn resembles_upstream_key(key: &str) -> bool {
    // The last part is the id, and a setting or service may be called `upstreams`.
    let mut folders = key.split('/').rev().skip(1);
    folders.any(|folder| folder.eq_ignore_ascii_case("upstreams") || folder.eq_ignore_ascii_case("upstream"))
}

/// Parses a name within the folder of a service. A bad one was meant for that service.
fn parse_name<T: FromStr<Err = Refusal>>(name: &str) -> Result<T, KeyError> {
    name.parse().map_err(|refusal: Refusal| KeyError::malformed_key(&refusal.to_string()))
}

impl Key {
    /// The key of an upstream's record, in the current layout.
    pub fn for_upstream(service: &ServiceId, id: &UpstreamId) -> Self {
        Self::Upstream { service: service.clone(), layout: Layout::Current, id: id.clone() }
    }

    /// The key of a setting, in the current layout.
    pub fn for_setting(service: &ServiceId, name: SettingName) -> Self {
        Self::Setting { service: service.clone(), layout: Layout::Current, name }
    }

    /// True for a key below `log/`. It costs less than to parse the key.
    pub fn is_log(key: &str) -> bool {
        key.starts_with(LOG_FOLDER)
    }

    /// True if the key's value must stay out of logs and histories.
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Setting { name, .. } if name.is_secret())
    }

    /// The service that the key belongs to. `None` for the keys of balancers and of the store.
    pub fn service_id(&self) -> Option<&ServiceId> {
        match self {
            Self::Setting { service, .. }
            | Self::Upstream { service, .. }
            | Self::Override { service, .. }
            | Self::Slot { service, .. }
            | Self::Standby { service, .. } => Some(service),
            Self::Balancer(_) | Self::AcceptStore | Self::Log(_) => None,
        }
    }

    /// Parses the path behind the folder of a kind's services, the service's name first.
    fn parse_in_service(kind: Kind, layout: Layout, rest: &[&str]) -> Result<Self, KeyError> {
        match rest {
            [name, "upstreams", id] if !id.is_empty() => {
                let service = ServiceId { kind, name: parse_name(name)? };
                Ok(Self::Upstream { service, layout, id: parse_name(id)? })
            }
            [name, "overrides", id] if layout == Layout::Current && !id.is_empty() => {
                let service = ServiceId { kind, name: parse_name(name)? };
                Ok(Self::Override { service, id: parse_name(id)? })
            }
            // Balancers need no such key, so a malformed one is no quarantined key of the service.
            [name, "slots", number] if layout == Layout::Current && !number.is_empty() => {
                Ok(Self::Slot { service: ServiceId { kind, name: name.parse()? }, number: number.parse()? })
            }
            [name, "standby", id] if layout == Layout::Current && !id.is_empty() => {
                Ok(Self::Standby { service: ServiceId { kind, name: name.parse()? }, id: id.parse()? })
            }
            [name, setting] => {
                let service = ServiceId { kind, name: parse_name(name)? };
                let name = match (layout, *setting) {
                    // The legacy layout's name of `active`. Its own `active` never had a meaning.
                    (Layout::Legacy, "color") => Some(SettingName::Active),
                    (Layout::Legacy, "active") => None,
                    (_, other) => other.parse().ok(),
                };
                name.map(|name| Self::Setting { service, layout, name })
                    .ok_or_else(|| KeyError::classify_service_key(layout, rest))
            }
            _ => Err(KeyError::classify_service_key(layout, rest)),
        }
    }

    fn format_service(service: &ServiceId, layout: Layout) -> String {
        match layout {
            Layout::Current => format!("{}/{}", service.kind.folder_name(), service.name),
            Layout::Legacy => format!("{LEGACY_FOLDER}/{}", service.name),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (folder, rest) = match parts.as_slice() {
            ["balancers", node] => return Ok(Self::Balancer(node.parse()?)),
            ["control", "accept-store"] => return Ok(Self::AcceptStore),
            ["log", name] => return Ok(Self::Log(name.parse()?)),
            [folder, rest @ ..] => (*folder, rest),
            [] => return Err(KeyError::Unknown),
        };
        let (kind, layout) = match folder {
            "http-services" => (Kind::Http, Layout::Current),
            "tcp-services" => (Kind::Tcp, Layout::Current),
            LEGACY_FOLDER => (Kind::Http, Layout::Legacy),
            _ => return Err(KeyError::Unknown),
        };
        Self::parse_in_service(kind, layout, rest)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { service, layout: Layout::Legacy, name: SettingName::Active } => {
                write!(f, "{}/color", Self::format_service(service, Layout::Legacy))
            }
            Self::Setting { service, layout, name } => {
                write!(f, "{}/{name}", Self::format_service(service, *layout))
            }
            Self::Upstream { service, layout, id } => {
                write!(f, "{}/upstreams/{id}", Self::format_service(service, *layout))
            }
            Self::Override { service, id } => {
                write!(f, "{}/overrides/{id}", Self::format_service(service, Layout::Current))
            }
            Self::Slot { service, number } => {
                write!(f, "{}/slots/{number}", Self::format_service(service, Layout::Current))
            }
            Self::Standby { service, id } => {
                write!(f, "{}/standby/{id}", Self::format_service(service, Layout::Current))
            }
            Self::Balancer(node) => write!(f, "balancers/{node}"),
            Self::AcceptStore => f.write_str("control/accept-store"),
            Self::Log(name) => write!(f, "{LOG_FOLDER}{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_and_print() {
        for key in [
            "http-services/shop/domain",
            "http-services/foo.a.com/upstreams/node-1",
            "http-services/shop/overrides/node-1",
            "http-services/shop/slots/1",
            "tcp-services/db/slots/65535",
            "tcp-services/db/standby/node-2",
            "tcp-services/db/ports",
            "services/shop/url_reg",
            "services/shop/color",
            "balancers/lb1",
            "control/accept-store",
            "log/20261130T101306.123Z-1f9c03ab",
        ] {
            assert_eq!(key.parse::<Key>().unwrap().to_string(), key);
        }
    }

    #[test]
    fn a_malformed_key_of_a_service_differs_from_an_unknown_key() {
        let odd = |key: &str| key.parse::<Key>().unwrap_err();
        for (key, told) in [
            ("http-services/web/upstreams/host:web:8000", "`host:web:8000`: a name has no `:`"),
            ("http-services/web/upstreams/a b", "a name is a letter or digit"),
            ("http-services/my shop/domain", "`my shop`: a name is a letter or digit"),
            ("tcp-services//ports", "a letter or digit at least"),
            ("tcp-services/db/overrides/host:db:1", "a name has no `:`"),
            ("http-services/web/upstreams", "ends in its id"),
            ("http-services/web/upstreams/", "ends in its id"),
            ("http-services/web/upstreams/a/", "doesn't end in `/`"),
            ("http-services/web/domain/", "doesn't end in `/`"),
            ("http-services/web/upstreams/a/address", "nothing stands below"),
            ("http-services/web/upstreams/a/b/c", "nothing stands below"),
            ("services/web/upstreams/a:1", "a name has no `:`"),
            ("services/web/overrides/a", "this layout has none"),
        ] {
            let oddity = odd(key);
            assert!(matches!(oddity, KeyError::Malformed(_)) && oddity.to_string().contains(told), "{key}: {oddity}");
        }
        for key in ["http-services/web/colour", "http-services/web/notes/a", "etc/web", "http-services/", "x/"] {
            assert_eq!(odd(key), KeyError::Unknown, "{key}");
        }
        for key in [
            "balancers/a b",
            "log/a b",
            "http-services/web/slots/0",
            "http-services/web/slots/01",
            "http-services/web/slots/+1",
            "http-services/web/slots/65536",
            "http-services/web/standby/host:web:8000",
            "http-services/my shop/slots/1",
        ] {
            assert!(matches!(odd(key), KeyError::BadName(_)), "{key}");
        }
        for key in ["services/web/slots/1", "http-services/web/slots", "http-services/web/standby/", "x/web/slots/1"] {
            assert_eq!(odd(key), KeyError::Unknown, "{key}");
        }
        assert!(
            resembles_upstream_key("http-service/a/upstreams/1")
                && resembles_upstream_key("http-services/a/Upstream/1/x")
        );
        assert!(
            !resembles_upstream_key("http-services/a/upstreams") && !resembles_upstream_key("http-services/a/colour")
        );
    }

    #[test]
    fn other_texts_are_no_keys() {
        for key in ["", "/", "x", "http-services", "http-services/", "http-services/shop", "http-services//domain"] {
            assert!(key.parse::<Key>().is_err(), "{key:?}");
        }
        for key in ["http-services/shop/colour", "http-services/shop/upstreams/", "http-services/shop/upstreams/a/b"] {
            assert!(key.parse::<Key>().is_err(), "{key:?}");
        }
        for key in ["http-services/shop/color", "services/shop/active", "services"] {
            assert!(key.parse::<Key>().is_err(), "{key:?}");
        }
        for key in ["http-services/a b/domain", "http-services/shop/upstreams/a;b", "services/shop/overrides/x"] {
            assert!(key.parse::<Key>().is_err(), "{key:?}");
        }
    }
}
