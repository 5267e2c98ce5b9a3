//! The steps of one service: keys → input, then input + claims + HAProxy's rejections → desired service. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Check, Color, Domain, Service, ServiceId, Topology, UpstreamId};

use super::claims::Claims;
use super::{DesiredService, DesiredState, Forbidden, Preview, ServiceState, servers};
use crate::desired::good_values::LastGood;
use crate::desired::service_input;
use crate::desired::service_input::ServiceInput;
use crate::store::removal_guard::{RetainedUpstream, UpstreamRemoval};

impl DesiredState {
    /// Reads one service's keys. `anew` reads it although its keys are unchanged, because the policy changed. Returns true if the
    /// service's claims changed.
    pub(super) fn read_service(&mut self, topology: &Topology, id: &ServiceId, anew: bool) -> bool {
        let forbidden = self.forbidden_reason(id);
        self.forbidden.remove(id);
        let source = topology.services().get(id);
        if let (Some(reason), Some(source)) = (&forbidden, source) {
            let forbidden = Forbidden { source: Arc::clone(source), reason: reason.clone() };
            self.forbidden.insert(id.clone(), forbidden);
        }
        // The service may be back after it lost all its keys.
        self.removed_services.remove(id);
        let without_keys = Arc::new(Service::new(id.kind));
        let source = match source {
            Some(source) if forbidden.is_none() => source,
            // The service stays until the removal guard has decided about its upstreams.
            None if forbidden.is_none() && (self.services.contains_key(id) || self.retained.contains_key(id)) => {
                self.removed_services.insert(id.clone());
                &without_keys
            }
            _ => return self.services.remove(id),
        };
        let before = self.services.get(id);
        if !anew && before.is_some_and(|before| Arc::ptr_eq(&before.source, source)) {
            return false;
        }
        let good = match before {
            Some(it) => LastGood::Read(&it.source, &it.input.good_values),
            None => self.last_known_good.values_of(id).map_or(LastGood::Nothing, LastGood::Persisted),
        };
        let input = Arc::new(service_input::read_input(id, source, good, &self.policy));
        let is_renamed = before.is_none_or(|before| !before.input.has_same_claims(&input));
        self.removals.extend(before.iter().flat_map(|before| find_removals(id, before, source, &input)));
        let (desired, last_accepted, last_in_file) = before
            .map(|it| (it.desired.clone(), it.last_accepted.clone(), it.last_in_file.clone()))
            .unwrap_or_default();
        // HAProxy rejected exactly these keys. Changed keys get another chance.
        let same = before.filter(|before| before.source == *source);
        let (rejection, servers_rejected) =
            same.map(|it| (it.rejection.clone(), it.servers_rejected)).unwrap_or_default();
        let source = Arc::clone(source);
        let state = ServiceState { source, input, desired, rejection, servers_rejected, last_accepted, last_in_file };
        self.services.insert(id, state);
        is_renamed
    }

    /// The reason why no service can have this name. `None` if it may.
    fn forbidden_reason(&self, id: &ServiceId) -> Option<String> {
        if let Some(by) = self.policy.reserved_sections.get(&id.to_string()) {
            let remedy = "rename the operator's, or the service";
            return Some(format!("the service's own section would be called {id} too, as {by}: {remedy}"));
        }
        // The service `default` answers for every host that no other service names.
        let allowlist = self.policy.domain_allowlist.as_ref().filter(|_| id.is_default())?;
        allowlist.check_catch_all(&id.name).err()
    }

    /// Decides the desired form of one service. Returns true if it changed, or if the service is gone.
    pub(super) fn resolve_service(&mut self, id: &ServiceId) -> bool {
        let Some(state) = self.services.get(id) else { return true };
        let retained = self.retained.get(id);
        let desired = if state.rejection.is_some() {
            build_accepted_form(id, state, &self.claims, retained)
        } else {
            Some(build_service(id, &state.input, &self.claims, retained))
        };
        // An unchanged service stays the same `Arc`, by which drains and plans tell that nothing changed.
        let is_changed = state.desired.as_deref() != desired.as_ref();
        if is_changed {
            self.services.update(id, |state| state.desired = desired.map(Arc::new));
        }
        is_changed
    }
}

fn build_service(
    id: &ServiceId,
    input: &ServiceInput,
    claims: &Claims,
    retained: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
) -> DesiredService {
    let routes = claims.held_routes(id, input, &input.domains);
    let mut settings = input.settings.clone();
    // A browser that has seen HSTS for a host never asks it over HTTP again. The host's service without TLS would be lost to it.
    settings.hsts = settings.hsts.filter(|_| !routes.iter().any(|route| claims.has_plain_service(&route.domain)));
    let previews = input.previews.iter().map(|(color, hosts)| build_preview(id, input, claims, retained, color, hosts));
    DesiredService {
        host: input.primary_host().cloned(),
        routes,
        url_reg: input.url_reg.clone(),
        binds: claims.held_binds(id, input),
        settings,
        servers: servers::build_servers(input, retained),
        previews: previews.collect(),
    }
}

fn build_preview(
    id: &ServiceId,
    input: &ServiceInput,
    claims: &Claims,
    retained: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
    color: &Color,
    hosts: &[Domain],
) -> Preview {
    let servers = servers::build_preview_servers(input, retained, color);
    Preview { color: color.clone(), routes: claims.held_routes(id, input, hosts), servers }
}

/// The form that HAProxy accepted last, with the servers of now unless HAProxy rejects those too. `None` if HAProxy never accepted
/// the service.
fn build_accepted_form(
    id: &ServiceId,
    state: &ServiceState,
    claims: &Claims,
    retained: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
) -> Option<DesiredService> {
    let mut form = DesiredService::clone(state.last_accepted.as_ref()?);
    // The keys of now may claim something else, and another service may have taken what this form claims.
    form.routes.retain(|route| claims.may_serve_route(id, route));
    form.binds.retain(|bind| claims.may_bind(id, *bind));
    for preview in &mut form.previews {
        preview.routes.retain(|route| claims.may_serve_route(id, route));
    }
    if !state.servers_rejected {
        form.servers = servers::build_servers(&state.input, retained);
        for preview in &mut form.previews {
            preview.servers = servers::build_preview_servers(&state.input, retained, &preview.color);
        }
    }
    Some(form)
}

/// The upstreams that lost their records, for the removal guard.
fn find_removals(id: &ServiceId, old: &ServiceState, source: &Service, new: &ServiceInput) -> Vec<UpstreamRemoval> {
    // Without a check HAProxy finds everything up, so such an upstream would be retained for ever.
    // A service without keys has no settings of its own. Its last ones count.
    let settings = if source.is_empty() { &old.input.settings } else { &new.settings };
    if settings.check == Check::Off {
        return Vec::new();
    }
    // A record that is there but isn't followed is no removal.
    let removed = old.source.upstreams().filter(|(upstream, _)| source.upstream(upstream).is_none());
    let removed = removed.filter(|(upstream, _)| !new.upstreams.contains(upstream));
    let removals = removed.filter_map(|(upstream, record)| {
        Some(UpstreamRemoval {
            service: id.clone(),
            id: upstream.clone(),
            upstream: old.input.upstreams.get(upstream)?.clone(),
            lease: record.entry.lease,
            previous_owners: BTreeSet::new(),
        })
    });
    removals.collect()
}
