//! One service: read from its keys, then decided with what others claim and HAProxy refuses.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::{Check, Color, Domain, ParsedEntry, Service, ServiceId, Topology, Upstream, UpstreamId};

use super::{DesiredService, DesiredState, Forbidden, Preview, ServiceState, servers};
use crate::desired::service_input;
use crate::desired::service_input::ServiceInput;
use crate::store::removal_guard::UpstreamRemoval;

impl DesiredState {
    /// Reads one service. True if it claims something else than before.
    pub(super) fn read_service(&mut self, topology: &Topology, id: &ServiceId, anew: bool) -> bool {
        let forbidden = self.forbidden_reason(id);
        self.forbidden.remove(id);
        let service = topology.services().get(id);
        if let (Some(reason), Some(source)) = (&forbidden, service) {
            let forbidden = Forbidden { source: Arc::clone(source), reason: reason.clone() };
            self.forbidden.insert(id.clone(), forbidden);
        }
        self.removed_services.remove(id);
        let gone = Arc::new(Service::new(id.kind));
        let service = match service {
            Some(service) if forbidden.is_none() => service,
            // Until it is known whether its upstreams are to be kept.
            None if forbidden.is_none() && (self.services.contains_key(id) || self.retained.contains_key(id)) => {
                self.removed_services.insert(id.clone());
                &gone
            }
            _ => return self.services.remove(id).is_some(),
        };
        let old = self.services.get(id);
        if !anew && old.is_some_and(|old| Arc::ptr_eq(&old.source, service)) {
            return false;
        }
        let good = old.map(|old| &old.input.good_values).or_else(|| self.last_known_good.values_of(id));
        let reading = Arc::new(service_input::read_input(id, service, good, &self.policy));
        let renamed = old.is_none_or(|old| !old.input.has_same_claims(&reading));
        self.removals.extend(old.iter().flat_map(|old| find_removals(id, old, service, &reading)));
        let (wanted, taken) = old.map(|old| (old.desired.clone(), old.last_accepted.clone())).unwrap_or_default();
        // What HAProxy has against it, it has against this very form of it.
        let same = old.filter(|old| old.source == *service);
        let (refused, frozen) = same.map(|old| (old.rejection.clone(), old.servers_rejected)).unwrap_or_default();
        let settlement = ServiceState {
            source: Arc::clone(service),
            input: reading,
            desired: wanted,
            rejection: refused,
            servers_rejected: frozen,
            last_accepted: taken,
        };
        self.services.insert(id.clone(), settlement);
        renamed
    }

    /// Why there may be no service of this name.
    fn forbidden_reason(&self, id: &ServiceId) -> Option<String> {
        if let Some(by) = self.policy.reserved_sections.get(&id.to_string()) {
            let remedy = "rename the operator's, or the service";
            return Some(format!("the service's own section would be called {id} too, as {by}: {remedy}"));
        }
        let allowed = self.policy.domain_allowlist.as_ref().filter(|_| id.is_default())?;
        allowed.check_catch_all(&id.name).err()
    }

    /// Decides what is wanted of one service. True if that is another thing than before.
    pub(super) fn resolve_service(&mut self, id: &ServiceId) -> bool {
        let Some(settlement) = self.services.get_mut(id) else { return true };
        let reading = &settlement.input;
        let kept = self.retained.get(id);
        let servers = || servers::build_servers(reading, kept);
        let preview = |color: &Color, routes| Preview {
            color: color.clone(),
            routes,
            servers: servers::build_preview_servers(reading, kept, color),
        };
        if settlement.rejection.is_some() {
            let mut form = settlement.last_accepted.clone();
            if let Some(form) = form.as_mut().filter(|_| !settlement.servers_rejected) {
                let previews = form.previews.iter().map(|it| preview(&it.color, it.routes.clone())).collect();
                let follows = DesiredService { servers: servers(), previews, ..DesiredService::clone(form) };
                if **form != follows {
                    *form = Arc::new(follows);
                }
            }
            let another = settlement.desired != form;
            if another {
                settlement.desired = form;
            }
            return another;
        }
        let claimed = |domains: &[Domain]| self.claims.held_routes(id, reading, domains);
        let routes = claimed(&reading.domains);
        let mut settings = reading.settings.clone();
        // A browser that has seen HSTS for a host never asks it over HTTP again.
        settings.hsts =
            settings.hsts.filter(|_| !routes.iter().any(|route| self.claims.has_plain_service(&route.domain)));
        let wanted = DesiredService {
            host: reading.primary_host().cloned(),
            routes,
            url_reg: reading.url_reg.clone(),
            binds: self.claims.held_binds(id, reading),
            settings,
            servers: servers(),
            previews: reading.previews.iter().map(|(color, hosts)| preview(color, claimed(hosts))).collect(),
        };
        let another = settlement.desired.as_deref() != Some(&wanted);
        if another {
            settlement.desired = Some(Arc::new(wanted));
        }
        another
    }
}

/// The upstreams that a service had and has no more.
fn find_removals(id: &ServiceId, old: &ServiceState, source: &Service, new: &ServiceInput) -> Vec<UpstreamRemoval> {
    // A check that is off finds everything up: such an upstream is never kept.
    let settings = if source.is_empty() { &old.input.settings } else { &new.settings };
    if settings.check == Check::Off {
        return Vec::new();
    }
    let departure = |(gone, field): (&UpstreamId, &Arc<ParsedEntry<Upstream>>)| {
        // A record that is there and isn't followed has not gone.
        if source.upstream(gone).is_some() {
            return None;
        }
        let upstream = old.input.upstreams.get(gone).filter(|_| !new.upstreams.contains_key(gone))?;
        let (upstream, lease) = (upstream.clone(), field.entry.lease);
        Some(UpstreamRemoval {
            service: id.clone(),
            id: gone.clone(),
            upstream,
            lease,
            previous_owners: BTreeSet::new(),
        })
    };
    old.source.upstreams().filter_map(departure).collect()
}
