//! The keys below the prefix, and what each of them is about.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Node, Refusal, ServiceName, SettingName, UpstreamId};

/// HTTP or TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Routed by host and path.
    Http,
    /// Bound to ports of its own.
    Tcp,
}

impl Kind {
    /// The folder of the kind's services.
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

/// A service: its kind and its name. Prints as its section in HAProxy is called: `http-shop`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId {
    /// HTTP or TCP.
    pub kind: Kind,
    /// Its name among those of its kind.
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

    /// Whether it answers for every host that no service names: `http-services/default`.
    pub fn is_default(&self) -> bool {
        self.kind == Kind::Http && self.name.as_str() == "default"
    }
}

/// Which layout a key belongs to; where both have the same thing, the current one beats the ancestor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// `services/…`
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
        /// The service.
        service: ServiceId,
        /// The layout the key is written in.
        layout: Layout,
        /// The setting.
        name: SettingName,
    },
    /// An upstream's record.
    Upstream {
        /// The service.
        service: ServiceId,
        /// The layout the key is written in.
        layout: Layout,
        /// The upstream.
        id: UpstreamId,
    },
    /// What an operator imposes on an upstream.
    Override {
        /// The service.
        service: ServiceId,
        /// The upstream.
        id: UpstreamId,
    },
    /// What a balancer says of itself.
    Balancer(Node),
    /// An operator's word that a wiped store is meant.
    AcceptStore,
}

/// Why a key is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key stands in no folder that means anything. It is ignored, and worth a hint.
    #[error("unknown key")]
    Unknown,
    /// A name in the key breaks the rule of names. It is ignored, and worth a hint.
    #[error("{0}")]
    BadName(#[from] Refusal),
    /// The key was meant for a service, an upstream or an override, and can't be followed. Its writer has to be told.
    #[error("{0}")]
    Malformed(Box<str>),
}

const LEGACY_OVERRIDE: &str = "overrides are read in `http-services/<svc>/overrides/<id>`; this layout has none";
const TOO_DEEP: &str = "nothing stands below an upstream's key: write its address, or its fields as one JSON object, to \
                      `upstreams/<id>` itself";
const NO_ID: &str = "an upstream's key ends in its id: `upstreams/<id>`";
const TRAILING_SLASH: &str = "a key doesn't end in `/`: write the value to the key without it";
/// Said of a key that no folder explains, if it reads like an upstream's.
pub(crate) const WRONG_FOLDER: &str = "it reads like an upstream's, and upstreams are followed in \
                                    `http-services/<svc>/upstreams/<id>` and `tcp-services/<svc>/upstreams/<id>`";

impl KeyError {
    fn malformed_key(words: &str) -> Self {
        Self::Malformed(words.into())
    }

    /// A key below a service's folder that is none of its settings, upstreams and overrides.
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

/// A key's text that a person would take for an upstream's: `http-service/shop/upstreams/a`, `http-services/shop/Upstream/a`.
pub(crate) fn resembles_upstream_key(key: &str) -> bool {
    let mut folders = key.split('/').rev().skip(1);
    folders.any(|folder| folder.eq_ignore_ascii_case("upstreams") || folder.eq_ignore_ascii_case("upstream"))
}

impl Key {
    /// The key of an upstream's record.
    pub fn for_upstream(service: &ServiceId, id: &UpstreamId) -> Self {
        Self::Upstream { service: service.clone(), layout: Layout::Current, id: id.clone() }
    }

    /// The key of a setting.
    pub fn for_setting(service: &ServiceId, name: SettingName) -> Self {
        Self::Setting { service: service.clone(), layout: Layout::Current, name }
    }

    /// The service the key belongs to.
    pub fn service_id(&self) -> Option<&ServiceId> {
        match self {
            Self::Setting { service, .. } | Self::Upstream { service, .. } | Self::Override { service, .. } => {
                Some(service)
            }
            Self::Balancer(_) | Self::AcceptStore => None,
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
            [folder, rest @ ..] => (*folder, rest),
            [] => return Err(KeyError::Unknown),
        };
        let (kind, layout) = match folder {
            "http-services" => (Kind::Http, Layout::Current),
            "tcp-services" => (Kind::Tcp, Layout::Current),
            LEGACY_FOLDER => (Kind::Http, Layout::Legacy),
            _ => return Err(KeyError::Unknown),
        };
        let told = |refusal: Refusal| KeyError::Malformed(refusal.to_string().into());
        let service = |name: &str| Ok::<_, KeyError>(ServiceId { kind, name: name.parse().map_err(told)? });
        match rest {
            [name, "upstreams", id] if !id.is_empty() => {
                Ok(Self::Upstream { service: service(name)?, layout, id: id.parse().map_err(told)? })
            }
            [name, "overrides", id] if layout == Layout::Current && !id.is_empty() => {
                Ok(Self::Override { service: service(name)?, id: id.parse().map_err(told)? })
            }
            [name, setting] => {
                let service = service(name)?;
                let name = match (layout, *setting) {
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
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = |service: &ServiceId, layout: Layout| match layout {
            Layout::Current => format!("{}/{}", service.kind.folder_name(), service.name),
            Layout::Legacy => format!("{LEGACY_FOLDER}/{}", service.name),
        };
        match self {
            Self::Setting { service, layout: Layout::Legacy, name: SettingName::Active } => {
                write!(f, "{}/color", folder(service, Layout::Legacy))
            }
            Self::Setting { service, layout, name } => write!(f, "{}/{name}", folder(service, *layout)),
            Self::Upstream { service, layout, id } => write!(f, "{}/upstreams/{id}", folder(service, *layout)),
            Self::Override { service, id } => write!(f, "{}/overrides/{id}", folder(service, Layout::Current)),
            Self::Balancer(node) => write!(f, "balancers/{node}"),
            Self::AcceptStore => f.write_str("control/accept-store"),
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
            "tcp-services/db/ports",
            "services/shop/url_reg",
            "services/shop/color",
            "balancers/lb1",
            "control/accept-store",
        ] {
            assert_eq!(key.parse::<Key>().unwrap().to_string(), key);
        }
    }

    #[test]
    fn what_was_meant_for_a_service_is_told_apart_from_what_nobody_knows() {
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
        assert!(matches!(odd("balancers/a b"), KeyError::BadName(_)));
        assert!(
            resembles_upstream_key("http-service/a/upstreams/1")
                && resembles_upstream_key("http-services/a/Upstream/1/x")
        );
        assert!(
            !resembles_upstream_key("http-services/a/upstreams") && !resembles_upstream_key("http-services/a/colour")
        );
    }

    #[test]
    fn the_rest_is_odd() {
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
