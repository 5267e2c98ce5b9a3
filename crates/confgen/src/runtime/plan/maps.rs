//! Plans the changes of the maps that lead from hosts and paths to sections. Pure: no I/O, no clock.

use std::collections::BTreeMap;

use haproxy::runtime::{Change, Token};

use crate::desired::Route;
use crate::render::view::path_key;

/// The maps' entries, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Maps<V> {
    /// Host or wildcard → itself.
    pub hosts: BTreeMap<String, V>,
    /// Host or wildcard + path prefix → section.
    pub paths: BTreeMap<String, V>,
    /// Host or wildcard whose TLS is passed through → section.
    pub passthrough: BTreeMap<String, V>,
    /// Section → the host that its HTTP checks ask for.
    pub checks: BTreeMap<String, V>,
}

/// The maps' contents as HAProxy lists them. A key may be there twice, because `add map` doesn't look for an old one.
#[derive(Clone, Debug, Default)]
pub struct ListedMaps {
    /// Host or wildcard → itself.
    pub hosts: Vec<(String, String)>,
    /// Host or wildcard + path prefix → section.
    pub paths: Vec<(String, String)>,
    /// Host or wildcard whose TLS is passed through → section.
    pub passthrough: Vec<(String, String)>,
    /// Section → the host that its HTTP checks ask for.
    pub checks: Vec<(String, String)>,
}

impl ListedMaps {
    /// The number of all entries.
    pub fn count(&self) -> usize {
        let Self { hosts, paths, passthrough, checks } = self;
        [hosts, paths, passthrough, checks].map(Vec::len).iter().sum()
    }
}

/// Wanted entries for some of the maps' keys. `None` removes a key.
pub(super) type Entries = Maps<Option<String>>;

/// The running maps' paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPaths {
    /// Host or wildcard → itself.
    pub hosts: Token,
    /// Host or wildcard + path prefix → section.
    pub paths: Token,
    /// Host or wildcard whose TLS is passed through → section. `None` if the running HAProxy passes none through.
    pub passthrough: Option<Token>,
    /// Section → the host that its HTTP checks ask for. `None` if the running HAProxy has no shape with such checks.
    pub checks: Option<Token>,
    /// Expression → section. `None` if the running HAProxy has no expression. Only a restart changes it.
    pub urls: Option<Token>,
}

impl MapPaths {
    /// Finds the maps of a generation among all that HAProxy has. An operator's map may be called `hosts.map` too.
    pub fn find_generation(paths: &[Token], generation_id: &str) -> Option<Self> {
        let map = |name: &str| {
            // HAProxy names a map by the path that it was loaded from, and the state directory may have moved since.
            let end = format!("/{generation_id}/{name}.map");
            paths.iter().find(|path| path.to_string().ends_with(&end)).cloned()
        };
        Some(Self {
            hosts: map("hosts")?,
            paths: map("paths")?,
            passthrough: map("passthrough"),
            checks: map("checks"),
            urls: map("urls"),
        })
    }
}

/// A service's routes, as host and path key, with the section that each leads to.
pub(super) type Routes = BTreeMap<(String, String), String>;

/// A route as host and path key.
pub(super) fn route_key(route: &Route) -> (String, String) {
    (route.domain.to_string(), path_key(route))
}

/// The host of a path key.
pub(super) fn host_of(path_key: &str) -> &str {
    path_key.split('/').next().unwrap_or_default()
}

pub(super) fn plan_map(
    live: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, Option<String>>,
    map: &Token,
) -> Vec<Change> {
    let step = |(key, value): (&String, &Option<String>)| {
        let token: Token = key.parse().ok()?;
        match (live.get(key), value) {
            (Some(live), Some(value)) if live == value => None,
            // `add map` would make a second entry for the key.
            (Some(_), Some(value)) => Some(Change::SetInMap(map.clone(), token, value.parse().ok()?)),
            (None, Some(value)) => Some(Change::AddToMap(map.clone(), token, value.parse().ok()?)),
            (Some(_), None) => Some(Change::RemoveFromMap(map.clone(), token)),
            (None, None) => None,
        }
    };
    wanted.iter().filter_map(step).collect()
}

pub(super) fn apply_entries(live: &mut BTreeMap<String, String>, wanted: BTreeMap<String, Option<String>>) {
    for (key, value) in wanted {
        match value {
            Some(value) => live.insert(key, value),
            None => live.remove(&key),
        };
    }
}
