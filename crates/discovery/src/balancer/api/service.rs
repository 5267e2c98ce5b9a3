//! `/api/v1/services` and `/api/v1/services/{id}`: services, and what they own at one balancer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Traffic, Upstream};
use crate::claim::Claim;

/// The answer to `/api/v1/services`: services without their upstreams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Services {
    /// The error if HAProxy doesn't answer; None if it does. With an error no service has `haproxy`.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, except for pending services; None before the first one.
    pub applied: Option<i64>,
    /// All services, by kind and then by name.
    pub services: Vec<Service>,
}

/// One service at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Service {
    /// The name of its section in haproxy.cfg: `http-shop`.
    pub id: String,
    /// The kind of the service: `http` or `tcp`.
    pub kind: String,
    /// The service's own name: `shop`.
    pub name: String,
    /// The hosts and paths that it owns, one entry for each pair.
    pub routes: Vec<Route>,
    /// The expression of the ancestor's setting `url_reg`; None without one.
    pub url_reg: Option<String>,
    /// The ports that it owns, with their addresses: `*:3306`.
    pub ports: Vec<String>,
    /// The settings that count, as they would be written. Defaults are included.
    pub settings: BTreeMap<String, String>,
    /// A change of the service waits for a restart.
    pub pending: bool,
    /// HAProxy's reason to reject the service; None if it doesn't. HAProxy serves the last form that it accepted, or nothing.
    pub refused: Option<String>,
    /// The number of its upstreams, by state.
    pub upstreams: UpstreamCounts,
    /// The counters of its backend; None if HAProxy doesn't answer or has no such backend.
    pub haproxy: Option<Traffic>,
    /// The colors that can be previewed.
    pub previews: Vec<PreviewColor>,
    /// Lines of the operator's files that name its section: `/etc/haproxy/conf.d/mine.cfg:3`.
    pub named_by: Vec<String>,
}

impl Service {
    /// The claims that the service owns at this balancer, in words: hosts with their paths, its expression, its ports.
    pub fn list_claims(&self) -> Vec<String> {
        let routes = self.routes.iter().map(|Route { host, path }| format!("{host}{path}"));
        let regex = self.url_reg.iter().map(|regex| format!("url_reg {regex}"));
        routes.chain(regex).chain(self.ports.iter().cloned()).collect()
    }

    /// The service owns this claim at this balancer.
    pub fn has_claim(&self, claim: &Claim) -> bool {
        match claim {
            Claim::Route(host, path) => {
                let (host, path) = (host.to_string(), path.to_string());
                self.routes.iter().any(|route| route.host == host && route.path == path)
            }
            // A bind may name an address: `10.0.0.1:3306`, `[fd00::1]:3306`. The port alone is the claim.
            Claim::Port(port) => {
                self.ports.iter().filter_map(|bind| bind.rsplit(':').next()?.parse().ok()).any(|it: u16| it == *port)
            }
        }
    }
}

/// A color that can be previewed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PreviewColor {
    /// The color, as records name it.
    pub color: String,
    /// The name of its section in haproxy.cfg: `http-shop:preview-green`.
    pub section: String,
    /// The hosts and paths that lead to the section.
    pub routes: Vec<Route>,
    /// The number of upstreams in the section. An active color has none there, and its preview answers 503.
    pub upstreams: usize,
    /// The counters of the section; None if HAProxy doesn't answer or has no such section.
    pub haproxy: Option<Traffic>,
}

/// One host with one path prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Route {
    /// The host's name, or `*.` and the domain below which it stands for every host.
    pub host: String,
    /// The path prefix; `/` stands for all paths.
    pub path: String,
}

/// The numbers of a service's upstreams, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UpstreamCounts {
    /// All upstreams of the service, retained ones included.
    pub total: usize,
    /// The upstreams with the wanted state `ready`.
    pub ready: usize,
    /// The upstreams that get new requests from HAProxy.
    pub balanced: usize,
}

/// The answer to `/api/v1/services/{id}`: one service with its upstreams.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ServiceInFull {
    /// The error if HAProxy doesn't answer; None if it does. With an error no upstream has `haproxy`, and `balanced` is None.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, except for pending services; None before the first one.
    pub applied: Option<i64>,
    /// The service, as `/api/v1/services` has it.
    pub service: Service,
    /// All its upstreams, by id.
    pub upstreams: Vec<Upstream>,
    /// The reason by quarantined key of the service. Keys are relative to the prefix.
    pub quarantine: BTreeMap<String, String>,
}
