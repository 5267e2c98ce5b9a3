//! What was decided of a service's upstreams, beside what it was decided from.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Active, Color, Key, Override, Service, ServiceId, SettingName, Upstream, UpstreamId};

use super::{DesiredService, DesiredState, Server, ServiceState};
use crate::desired::service_input::GATES;
use crate::desired::upstream_tls;

/// One upstream, with all that has a say in it.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamExplanation<'a> {
    /// Its id.
    pub id: &'a UpstreamId,
    /// As HAProxy is to know it; none where the service gets no upstreams, or is served in an older form.
    pub server: Option<&'a Server>,
    /// Its server in the section for previews of its color, if it stands there.
    pub previewed: Option<(&'a Color, &'a Server)>,
    /// Its record, the one that counts; none if no value of it is good.
    pub announced: Option<&'a Upstream>,
    /// What an operator imposes on it.
    pub imposed: Option<&'a Override>,
    /// Its key, and why the key's own value doesn't count.
    pub rejected_record: Option<(&'a str, &'a str)>,
}

/// One service, with all that has a say in whether it is served.
#[derive(Clone, Copy, Debug)]
pub struct ServiceExplanation<'a> {
    /// Its keys.
    pub source: Option<&'a Service>,
    /// As HAProxy is to serve it; none if HAProxy rejects it and never took it in another form, or if it is forbidden.
    pub desired: Option<&'a DesiredService>,
    /// What HAProxy says against it.
    pub rejection: Option<&'a str>,
    /// Why no service may bear its name.
    pub forbidden: Option<&'a str>,
    /// The active colors.
    pub active: Option<&'a Active>,
}

impl DesiredState {
    /// The upstreams of a service, by id: those that are served, and those that have a record and aren't.
    pub fn explain_upstreams<'a>(&'a self, id: &ServiceId) -> Vec<UpstreamExplanation<'a>> {
        let Some(settlement) = self.services.get(id) else { return self.explain_forbidden_upstreams(id) };
        let reading = &settlement.input;
        let wanted = settlement.desired.iter().flat_map(|wanted| &wanted.servers);
        let servers: BTreeMap<&UpstreamId, &Server> = wanted.map(|server| (&server.id, server)).collect();
        let previews = settlement.desired.iter().flat_map(|wanted| &wanted.previews);
        let previewed = previews.flat_map(|it| it.servers.iter().map(|server| (&server.id, (&it.color, server))));
        let previewed: BTreeMap<&UpstreamId, (&Color, &Server)> = previewed.collect();
        let records = settlement.source.upstreams().map(|(id, _)| id);
        let kept = self.retained.get(id);
        let kept_ids = kept.into_iter().flat_map(|kept| kept.keys());
        let ids: BTreeSet<&UpstreamId> = servers.keys().copied().chain(records).chain(kept_ids).collect();
        let explain = |id| UpstreamExplanation {
            id,
            server: servers.get(id).copied(),
            previewed: previewed.get(id).copied(),
            announced: reading.upstreams.get(id).or_else(|| Some(&kept?.get(id)?.record)),
            imposed: reading.overrides.get(id),
            rejected_record: settlement.refused_record(id),
        };
        ids.into_iter().map(explain).collect()
    }

    fn explain_forbidden_upstreams(&self, id: &ServiceId) -> Vec<UpstreamExplanation<'_>> {
        let source = self.forbidden.get(id).map(|it| &it.source);
        let explain = |(id, field)| {
            let field: &discovery::ParsedEntry<Upstream> = field;
            let announced = field.value.as_ref().ok();
            UpstreamExplanation { id, server: None, previewed: None, announced, imposed: None, rejected_record: None }
        };
        source.into_iter().flat_map(|source| source.upstreams()).map(|(id, field)| explain((id, &**field))).collect()
    }

    /// Every service that has a key or is served, whether or not it is both.
    pub fn known_services(&self) -> impl Iterator<Item = &ServiceId> {
        let ids: BTreeSet<&ServiceId> = self.services.keys().chain(self.forbidden.keys()).collect();
        ids.into_iter()
    }

    /// What has a say in whether a service is served.
    pub fn explain_service(&self, id: &ServiceId) -> ServiceExplanation<'_> {
        let settlement = self.services.get(id);
        let forbidden = self.forbidden.get(id);
        let wanted = settlement.and_then(|it| it.desired.as_deref());
        ServiceExplanation {
            source: settlement.map(|it| &*it.source).or(forbidden.map(|it| &*it.source)),
            desired: wanted,
            rejection: settlement.and_then(|it| it.rejection.as_deref()),
            forbidden: forbidden.map(|it| it.reason.as_str()),
            active: wanted.and_then(|it| it.settings.active.as_ref()),
        }
    }

    /// The keys without which the service gets no upstreams, and why they aren't followed; none if it gets its upstreams.
    pub fn closed_gates(&self, id: &ServiceId) -> impl Iterator<Item = (&str, &str)> {
        let closed = self.services.get(id).map(|it| &it.input).filter(|reading| reading.upstreams_withheld);
        let refused = closed.into_iter().flat_map(|reading| reading.refusals.iter().map(move |it| (reading, it)));
        let gates = refused.filter(|(reading, (key, _))| match key.parse() {
            // `sni` may be good in itself, and still not go with the service's other keys.
            Ok(Key::Setting { name: SettingName::Sni, .. }) => true,
            Ok(Key::Setting { name, .. }) => {
                (GATES.contains(&name) || upstream_tls::GATES.contains(&name))
                    && !reading.good_values.contains_key(*key)
            }
            _ => false,
        });
        gates.map(|(_, (key, reason))| (key.as_str(), reason.as_str()))
    }

    /// Why a key of the service doesn't name all that it should; and the services that own what it claims too.
    pub fn explain_lost_name<'a>(&'a self, id: &ServiceId, key: &str) -> Option<(String, Vec<&'a ServiceId>)> {
        let unread = self.services.get(id).and_then(|it| it.input.refusals.get(key));
        let lost = self.claims.refusals_of(key);
        let reasons: Vec<&str> = unread.into_iter().chain(lost.into_iter().flatten()).map(String::as_str).collect();
        let rivals = self.claims.rivals_of(id).filter(|_| lost.is_some()).into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| (reasons.join("; "), rivals))
    }
}

impl ServiceState {
    fn refused_record(&self, id: &UpstreamId) -> Option<(&str, &str)> {
        let key = &self.source.upstream(id)?.entry.key;
        self.input.refusals.get_key_value(key).map(|(key, reason)| (key.as_str(), reason.as_str()))
    }
}
