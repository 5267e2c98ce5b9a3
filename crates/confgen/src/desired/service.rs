//! What comes of it: a service as HAProxy is to serve it.

use discovery::{Bind, Color, Domain, Host, PathPrefix, UrlRegex};

use super::{Server, Settings};

/// One service as HAProxy is to serve it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredService {
    /// The host that it goes by, in its checks and in its upstreams' certificates.
    pub host: Option<Host>,
    /// The hosts and paths it holds, each with each, sorted.
    pub routes: Vec<Route>,
    /// The old layout's expression, with the revision that ranks it among its like: older ones first.
    pub url_reg: Option<(i64, UrlRegex)>,
    /// The ports it holds, sorted.
    pub binds: Vec<Bind>,
    /// Its settings.
    pub settings: Settings,
    /// Its servers by id. Empty means 503.
    pub servers: Vec<Server>,
    /// The colors that can be previewed, each in a section of its own, sorted.
    pub previews: Vec<Preview>,
}

/// One color for those who may preview it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Its name.
    pub color: Color,
    /// Hosts and paths that lead to this color alone, sorted; it has none where it is only asked for by header.
    pub routes: Vec<Route>,
    /// Its upstreams by id, while it is active too: who asks for it gets it, whatever its share.
    pub servers: Vec<Server>,
}

/// One host and one path prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The host, or all hosts one label below one.
    pub domain: Domain,
    /// The prefix; the root is all paths.
    pub path: PathPrefix,
}
