//! What the balancers' API answers, as far as it is used here (docs/api.md). A name that is missing is none: an older
//! confgen knows less.

use std::collections::BTreeMap;

use discovery::{Claim, Verdict};
use serde::{Deserialize, Serialize};

use super::ApiAnswer;

/// `services`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Services {
    /// Why HAProxy couldn't be asked.
    pub(crate) haproxy_error: Option<String>,
    /// All of them.
    pub(crate) services: Vec<Service>,
}

/// One service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    /// `http-shop`.
    pub(crate) id: String,
    /// The hosts and paths that it holds there.
    pub(crate) routes: Vec<Route>,
    /// The old layout's expression.
    pub(crate) url_reg: Option<String>,
    /// The ports that it holds there.
    pub(crate) ports: Vec<String>,
    /// The settings that count, the defaults included.
    pub(crate) settings: BTreeMap<String, String>,
    /// A change waits for a restart.
    pub(crate) pending: bool,
    /// What HAProxy has against it.
    pub(crate) refused: Option<String>,
    /// Its upstreams, counted.
    pub(crate) upstreams: Census,
    /// Its backend.
    pub(crate) haproxy: Option<Traffic>,
    /// Lines of the operator's files there that name its section.
    pub(crate) named_by: Vec<String>,
}

impl Service {
    /// The hosts with their paths, or the ports, that it holds.
    pub(crate) fn list_claims(&self) -> Vec<String> {
        let routes = self.routes.iter().map(|Route { host, path }| format!("{host}{path}"));
        let regex = self.url_reg.iter().map(|regex| format!("url_reg {regex}"));
        routes.chain(regex).chain(self.ports.iter().cloned()).collect()
    }

    /// The service holds this claim there.
    pub(crate) fn has_claim(&self, claim: &Claim) -> bool {
        match claim {
            Claim::Route(host, path) => {
                let (host, path) = (host.to_string(), path.to_string());
                self.routes.iter().any(|route| route.host == host && route.path == path)
            }
            Claim::Port(port) => {
                self.ports.iter().filter_map(|bind| bind.rsplit(':').next()?.parse().ok()).any(|it: u16| it == *port)
            }
        }
    }
}

/// A host and a path prefix.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Route {
    /// The host.
    pub(crate) host: String,
    /// The prefix.
    pub(crate) path: String,
}

/// Upstreams, counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Census {
    /// In all.
    pub(crate) total: usize,
    /// Wanted to take requests.
    pub(crate) ready: usize,
    /// Getting new requests.
    pub(crate) balanced: usize,
}

/// `services/{id}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceInFull {
    /// Why HAProxy couldn't be asked.
    pub(crate) haproxy_error: Option<String>,
    /// The service.
    pub(crate) service: Service,
    /// The revision that HAProxy follows.
    pub(crate) applied: Option<i64>,
    /// Its upstreams.
    pub(crate) upstreams: Vec<Upstream>,
    /// Its keys that are not followed, and why.
    pub(crate) quarantine: BTreeMap<String, String>,
}

/// `status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    /// HAProxy runs what the store asks for.
    pub(crate) in_sync: bool,
    /// The same in words.
    pub(crate) words: String,
    /// The revision that HAProxy follows.
    pub(crate) applied: Option<i64>,
}

/// `quarantine`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Quarantine {
    /// By key, relative to the prefix: why.
    pub(crate) quarantine: BTreeMap<String, String>,
}

/// `certificates`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificates {
    /// The files that were taken.
    pub(crate) certificates: Vec<Certificate>,
    /// By file: why it is not taken.
    pub(crate) refused: BTreeMap<String, String>,
    /// By file: why it is of no use as a certificate, without being wrong.
    pub(crate) unused: BTreeMap<String, String>,
    /// The hosts that HAProxy ends TLS for. None from a confgen that does not tell.
    pub(crate) hosts: Option<Vec<Host>>,
}

/// A certificate's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificate {
    /// Its path.
    pub(crate) file: String,
    /// The names that it is for.
    pub(crate) names: Vec<String>,
    /// The names that it serves.
    pub(crate) serves: Vec<String>,
    /// It serves clients that ask for no name, or for an unknown one.
    pub(crate) default: bool,
    /// The end of its validity.
    pub(crate) not_after: Option<String>,
    /// `valid`, `not valid yet`, `expired`.
    pub(crate) validity: String,
}

/// A host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Host {
    /// The host, or `*.` and what it is below of.
    pub(crate) host: String,
    /// The service that has it.
    pub(crate) service: String,
    /// The service's `tls`.
    pub(crate) tls: String,
    /// No certificate is for it.
    pub(crate) default: bool,
    /// The certificates that serve it, one for each kind of key.
    pub(crate) certificates: Vec<ServedBy>,
}

/// A certificate that serves a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ServedBy {
    /// Its file.
    pub(crate) file: String,
    /// `ECDSA`, `RSA` or `other`.
    pub(crate) key_type: String,
    /// The end of its validity.
    pub(crate) not_after: Option<String>,
    /// `valid`, `not valid yet`, `expired`.
    pub(crate) validity: String,
    /// Why this one.
    pub(crate) why: String,
}

impl ApiAnswer for Certificates {}
impl ApiAnswer for Services {}
impl ApiAnswer for Upstreams {}
impl ApiAnswer for Status {}
impl ApiAnswer for Quarantine {}

impl ApiAnswer for ServiceInFull {
    /// A service that nobody has told the balancer of yet.
    fn answer_if_unknown() -> Option<Self> {
        Some(Self::default())
    }
}

/// `upstreams`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upstreams {
    /// Why HAProxy couldn't be asked.
    pub(crate) haproxy_error: Option<String>,
    /// The revision that HAProxy follows.
    pub(crate) applied: Option<i64>,
    /// All of them.
    pub(crate) upstreams: Vec<Upstream>,
}

/// One upstream, as one balancer has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upstream {
    /// `http-shop`.
    pub(crate) service: String,
    /// Its id.
    pub(crate) id: String,
    /// Where it listens.
    pub(crate) address: Option<String>,
    /// The weight that is wanted.
    pub(crate) weight: Option<u16>,
    /// The state that is wanted: `ready`, `drain`, `maint`.
    pub(crate) state: Option<String>,
    /// Who has a say in that.
    pub(crate) why: Vec<String>,
    /// Its color.
    pub(crate) color: Option<String>,
    /// Its key has gone, and it is served all the same.
    pub(crate) held: bool,
    /// Since when, RFC 3339; none where that isn't known.
    pub(crate) held_since: Option<String>,
    /// What retains it: `guard`, `reset`.
    pub(crate) held_by: Option<String>,
    /// A change of its service waits for a restart.
    pub(crate) pending: bool,
    /// Open on it, in old processes too; none where nothing is waited for.
    pub(crate) draining: Option<u64>,
    /// Its line in haproxy.cfg.
    pub(crate) line: Option<String>,
    /// It gets new requests, or why it doesn't; none from an older confgen.
    pub(crate) verdict: Option<Verdict>,
    /// Whether it gets new requests; none where HAProxy can't be asked.
    pub(crate) balanced: Option<bool>,
    /// Why not.
    pub(crate) not_balanced: Option<String>,
    /// Its server.
    pub(crate) haproxy: Option<Traffic>,
}

/// What HAProxy counts of a backend or a server, since its process started.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Traffic {
    /// `UP`, `DOWN`, `DRAIN` and more.
    pub(crate) status: String,
    /// Whether its checks find it up, or there are none.
    pub(crate) up: bool,
    /// The weight in use.
    pub(crate) weight: u64,
    /// The last check's outcome.
    pub(crate) check: Option<String>,
    /// The same in words.
    pub(crate) check_words: Option<String>,
    /// Since the status is this one.
    pub(crate) since_seconds: u64,
    /// Sessions now.
    pub(crate) sessions: u64,
    /// Sessions in all.
    pub(crate) sessions_total: u64,
    /// Sessions in the last second.
    pub(crate) rate: u64,
    /// HTTP requests in all; none in TCP mode.
    pub(crate) requests_total: Option<u64>,
    /// Answers by the first digit of their status, 1xx to 5xx; none in TCP mode.
    pub(crate) responses_total: Option<[u64; 5]>,
    /// Connections that couldn't be made.
    pub(crate) connection_errors_total: u64,
    /// Answers that broke.
    pub(crate) response_errors_total: u64,
    /// From the request to the answer's first byte, over the last 1,024 requests.
    pub(crate) response_seconds_average: Option<f64>,
}
