//! What was decided of a service's upstreams, beside what it was decided from.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Color, Override, ServiceId, Upstream, UpstreamId};

use super::{Server, Settled};

/// One upstream, with all that has a say in it.
#[derive(Clone, Copy, Debug)]
pub struct Explained<'a> {
    /// Its id.
    pub id: &'a UpstreamId,
    /// As HAProxy is to know it; none where the service gets no upstreams, or is served in an older form.
    pub server: Option<&'a Server>,
    /// Its server in the section for previews of its color, if it stands there.
    pub previewed: Option<(&'a Color, &'a Server)>,
    /// Its record, the one that counts.
    pub announced: Option<&'a Upstream>,
    /// What an operator imposes on it.
    pub imposed: Option<&'a Override>,
    /// It is served although its key has gone.
    pub kept: bool,
}

impl Settled {
    /// The upstreams of a service, by id; those that are served, and those that have a record and aren't.
    pub fn explained<'a>(&'a self, id: &ServiceId) -> Vec<Explained<'a>> {
        let Some(settlement) = self.services.get(id) else { return Vec::new() };
        let reading = &settlement.reading;
        let wanted = settlement.wanted.iter().flat_map(|wanted| &wanted.servers);
        let servers: BTreeMap<&UpstreamId, &Server> = wanted.map(|server| (&server.id, server)).collect();
        let previews = settlement.wanted.iter().flat_map(|wanted| &wanted.previews);
        let previewed = previews.flat_map(|it| it.servers.iter().map(|server| (&server.id, (&it.color, server))));
        let previewed: BTreeMap<&UpstreamId, (&Color, &Server)> = previewed.collect();
        let ids: BTreeSet<&UpstreamId> = servers.keys().copied().chain(reading.upstreams.keys()).collect();
        let kept = self.kept.get(id);
        let explain = |id| Explained {
            id,
            server: servers.get(id).copied(),
            previewed: previewed.get(id).copied(),
            announced: reading.upstreams.get(id).or_else(|| kept?.get(id)),
            imposed: reading.overrides.get(id),
            kept: !reading.upstreams.contains_key(id) && kept.is_some_and(|kept| kept.contains_key(id)),
        };
        ids.into_iter().map(explain).collect()
    }

    /// Every service that is known, whether or not it is served.
    pub fn known(&self) -> impl Iterator<Item = &ServiceId> {
        self.services.keys()
    }
}
