//! The desired form of a service: an input of `render` and `runtime/plan`. Pure data.

use discovery::{Bind, Color, Domain, Host, PathPrefix, UrlRegex};

use super::{Server, Settings};

/// One service, as HAProxy should serve it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredService {
    /// The host in the service's checks and in its upstreams' certificates: the first that isn't a wildcard.
    pub host: Option<Host>,
    /// The owned routes, each host with each path, sorted.
    pub routes: Vec<Route>,
    /// The old layout's expression, with the create revision of its key. HAProxy tries older expressions first.
    pub url_reg: Option<(i64, UrlRegex)>,
    /// The owned ports, sorted.
    pub binds: Vec<Bind>,
    /// Settings with their last good or default values.
    pub settings: Settings,
    /// The servers, sorted by id. Without any, HAProxy answers 503.
    pub servers: Vec<Server>,
    /// The colors that can be previewed, sorted. Each has a section of its own.
    pub previews: Vec<Preview>,
}

impl DesiredService {
    /// The owned ports. One comes twice if it is bound on two addresses.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.binds.iter().map(|bind| bind.port)
    }
}

/// One color, for clients in the networks of `preview`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// A color of `active` or of an upstream.
    pub color: Color,
    /// The routes that lead to this color, sorted. Without any, clients ask for the color by a header.
    pub routes: Vec<Route>,
    /// The color's servers, sorted by id, active or not. A client that asks for an active color gets it, whatever its share.
    pub servers: Vec<Server>,
}

/// One host and one path prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The host, or a wildcard for all hosts one label below.
    pub domain: Domain,
    /// The prefix. The root stands for all paths.
    pub path: PathPrefix,
}
