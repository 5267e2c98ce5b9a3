//! Decisions about services and upstreams beside the values that they came from, for `status`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Active, Color, Key, Override, ParsedEntry, Service, ServiceId, SettingName, Upstream, UpstreamId};

use super::{DesiredService, DesiredState, Forbidden, Server, ServiceState};
use crate::desired::service_input::{GATES, ServiceInput};
use crate::desired::upstream_tls;
use crate::store::removal_guard::RetainedUpstream;

/// One upstream, with every value that decided about it.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamExplanation<'a> {
    /// The upstream's id.
    pub id: &'a UpstreamId,
    /// The desired server. `None` if the service gets no upstreams, or is served in an older form.
    pub server: Option<&'a Server>,
    /// The desired server in the preview of the upstream's color. `None` if there is no preview of it.
    pub previewed: Option<(&'a Color, &'a Server)>,
    /// The record that counts. `None` if the upstream never had a good one.
    pub announced: Option<&'a Upstream>,
    /// The operator's override.
    pub imposed: Option<&'a Override>,
    /// The record's key, and the reason why its value doesn't count. `None` if it does.
    pub rejected_record: Option<(&'a str, &'a str)>,
}

/// One service, with every value that decided whether it is served.
#[derive(Clone, Copy, Debug)]
pub struct ServiceExplanation<'a> {
    /// The service's keys. `None` if there are none and none was dropped lately.
    pub source: Option<&'a Service>,
    /// The desired form. `None` if the service is forbidden, or if HAProxy rejects it and never accepted another form.
    pub desired: Option<&'a DesiredService>,
    /// HAProxy's reason against the service.
    pub rejection: Option<&'a str>,
    /// The reason why no service can have this name.
    pub forbidden: Option<&'a str>,
    /// The active colors.
    pub active: Option<&'a Active>,
}

impl DesiredState {
    /// The upstreams of a service by id, served or not. They have a record, or are retained without one.
    pub fn explain_upstreams<'a>(&'a self, id: &ServiceId) -> Vec<UpstreamExplanation<'a>> {
        let Some(state) = self.services.get(id) else { return self.explain_forbidden_upstreams(id) };
        let desired = state.desired.as_deref();
        let servers: BTreeMap<&UpstreamId, &Server> =
            desired.iter().flat_map(|it| &it.servers).map(|server| (&server.id, server)).collect();
        let previewed: BTreeMap<&UpstreamId, (&Color, &Server)> = desired
            .iter()
            .flat_map(|it| &it.previews)
            .flat_map(|preview| preview.servers.iter().map(|server| (&server.id, (&preview.color, server))))
            .collect();
        let records = state.source.upstreams().map(|(id, _)| id);
        let retained = self.retained.get(id);
        let retained_ids = retained.into_iter().flat_map(BTreeMap::keys);
        let ids: BTreeSet<&UpstreamId> = servers.keys().copied().chain(records).chain(retained_ids).collect();
        ids.into_iter()
            .map(|id| UpstreamExplanation {
                id,
                server: servers.get(id).copied(),
                previewed: previewed.get(id).copied(),
                announced: state.find_record(id, retained),
                imposed: state.input.overrides.get(id),
                rejected_record: state.record_refusal(id),
            })
            .collect()
    }

    fn explain_forbidden_upstreams(&self, id: &ServiceId) -> Vec<UpstreamExplanation<'_>> {
        let Some(Forbidden { source, .. }) = self.forbidden.get(id) else { return Vec::new() };
        // A forbidden service is not read, so only its records are known.
        source.upstreams().map(|(id, record)| explain_unserved(id, record)).collect()
    }

    /// Every service that has a key or a retained upstream, forbidden ones included.
    pub fn known_services(&self) -> impl Iterator<Item = &ServiceId> {
        // No service is in both maps, but the ids must come sorted.
        let ids: BTreeSet<&ServiceId> = self.services.keys().chain(self.forbidden.keys()).collect();
        ids.into_iter()
    }

    /// The values that decided whether a service is served.
    pub fn explain_service(&self, id: &ServiceId) -> ServiceExplanation<'_> {
        let state = self.services.get(id);
        let forbidden = self.forbidden.get(id);
        let desired = state.and_then(|it| it.desired.as_deref());
        ServiceExplanation {
            source: state.map(|it| &*it.source).or(forbidden.map(|it| &*it.source)),
            desired,
            rejection: state.and_then(|it| it.rejection.as_deref()),
            forbidden: forbidden.map(|it| it.reason.as_str()),
            active: desired.and_then(|it| it.settings.active.as_ref()),
        }
    }

    /// The keys without a good value that take the service's upstreams away, with the reasons. Empty if the service gets its
    /// upstreams.
    pub fn closed_gates(&self, id: &ServiceId) -> impl Iterator<Item = (&str, &str)> {
        let withheld = self.services.get(id).map(|it| &it.input).filter(|input| input.upstreams_withheld);
        withheld.into_iter().flat_map(|input| {
            let closed = input.refusals.iter().filter(|(key, _)| input.is_closed_gate(key));
            closed.map(|(key, reason)| (key.as_str(), reason.as_str()))
        })
    }

    /// The reasons why the service doesn't own all that this key claims, and the services that do. `None` if it owns all.
    pub fn explain_lost_name<'a>(&'a self, id: &ServiceId, key: &str) -> Option<(String, Vec<&'a ServiceId>)> {
        let refusal = self.services.get(id).and_then(|it| it.input.refusals.get(key));
        let lost = self.claims.refusals_of(key);
        let reasons: Vec<&str> = refusal.into_iter().chain(lost.into_iter().flatten()).map(String::as_str).collect();
        let rivals = self.claims.rivals_of(id).filter(|_| lost.is_some()).into_iter().flatten().collect();
        (!reasons.is_empty()).then(|| (reasons.join("; "), rivals))
    }
}

fn explain_unserved<'a>(id: &'a UpstreamId, record: &'a ParsedEntry<Upstream>) -> UpstreamExplanation<'a> {
    let announced = record.value.as_ref().ok();
    UpstreamExplanation { id, server: None, previewed: None, announced, imposed: None, rejected_record: None }
}

impl ServiceInput {
    fn is_closed_gate(&self, key: &str) -> bool {
        match key.parse() {
            // `sni` may be good in itself, and still not go with the service's other keys.
            Ok(Key::Setting { name: SettingName::Sni, .. }) => true,
            Ok(Key::Setting { name, .. }) => {
                (GATES.contains(&name) || upstream_tls::GATES.contains(&name)) && !self.good_values.has_value(key)
            }
            _ => false,
        }
    }
}

impl ServiceState {
    fn find_record<'a>(
        &'a self,
        id: &UpstreamId,
        retained: Option<&'a BTreeMap<UpstreamId, RetainedUpstream>>,
    ) -> Option<&'a Upstream> {
        self.input.upstreams.get(id).or_else(|| Some(&retained?.get(id)?.record))
    }

    fn record_refusal(&self, id: &UpstreamId) -> Option<(&str, &str)> {
        let key = &self.source.upstream(id)?.entry.key;
        self.input.refusals.get_key_value(key).map(|(key, reason)| (key.as_str(), reason.as_str()))
    }
}
