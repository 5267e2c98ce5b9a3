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
    pub fn folder(self) -> &'static str {
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
    pub fn folder(&self) -> String {
        format!("{}/{}/", self.kind.folder(), self.name)
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
    Ancestor,
    /// `http-services/…` and `tcp-services/…`
    Current,
}

const ANCESTOR: &str = "services";

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

/// Why a key is none of ours. It is ignored, and worth a hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    /// The key stands in no folder that means anything.
    #[error("unknown key")]
    Unknown,
    /// A name in the key breaks the rule of names.
    #[error("{0}")]
    Name(#[from] Refusal),
}

impl Key {
    /// The key of an upstream's record.
    pub fn upstream(service: &ServiceId, id: &UpstreamId) -> Self {
        Self::Upstream { service: service.clone(), layout: Layout::Current, id: id.clone() }
    }

    /// The key of a setting.
    pub fn setting(service: &ServiceId, name: SettingName) -> Self {
        Self::Setting { service: service.clone(), layout: Layout::Current, name }
    }

    /// The service the key belongs to.
    pub fn service(&self) -> Option<&ServiceId> {
        match self {
            Self::Setting { service, .. } | Self::Upstream { service, .. } | Self::Override { service, .. } => {
                Some(service)
            }
            Self::Balancer(_) | Self::AcceptStore => None,
        }
    }
}

impl FromStr for Key {
    type Err = Oddity;

    fn from_str(text: &str) -> Result<Self, Oddity> {
        let parts: Vec<&str> = text.split('/').collect();
        let (folder, rest) = match parts.as_slice() {
            ["balancers", node] => return Ok(Self::Balancer(node.parse()?)),
            ["control", "accept-store"] => return Ok(Self::AcceptStore),
            [folder, rest @ ..] => (*folder, rest),
            [] => return Err(Oddity::Unknown),
        };
        let (kind, layout) = match folder {
            "http-services" => (Kind::Http, Layout::Current),
            "tcp-services" => (Kind::Tcp, Layout::Current),
            ANCESTOR => (Kind::Http, Layout::Ancestor),
            _ => return Err(Oddity::Unknown),
        };
        let service = |name: &str| Ok::<_, Oddity>(ServiceId { kind, name: name.parse()? });
        match rest {
            [name, "upstreams", id] => Ok(Self::Upstream { service: service(name)?, layout, id: id.parse()? }),
            [name, "overrides", id] if layout == Layout::Current => {
                Ok(Self::Override { service: service(name)?, id: id.parse()? })
            }
            [name, setting] => {
                let service = service(name)?;
                let name = match (layout, *setting) {
                    (Layout::Ancestor, "color") => Some(SettingName::Active),
                    (Layout::Ancestor, "active") => None,
                    (_, other) => other.parse().ok(),
                };
                name.map(|name| Self::Setting { service, layout, name }).ok_or(Oddity::Unknown)
            }
            _ => Err(Oddity::Unknown),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = |service: &ServiceId, layout: Layout| match layout {
            Layout::Current => format!("{}/{}", service.kind.folder(), service.name),
            Layout::Ancestor => format!("{ANCESTOR}/{}", service.name),
        };
        match self {
            Self::Setting { service, layout: Layout::Ancestor, name: SettingName::Active } => {
                write!(f, "{}/color", folder(service, Layout::Ancestor))
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
