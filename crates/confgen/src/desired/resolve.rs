//! One service: read from its keys, then decided with what others claim and HAProxy refuses.

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::{Check, Color, Domain, Field, Service, ServiceId, Topology, Upstream, UpstreamId};

use super::{DesiredService, DesiredState, Forbidden, Preview, ServiceState, servers};
use crate::desired::service_input;
use crate::desired::service_input::ServiceInput;
use crate::store::removal_guard::UpstreamRemoval;

impl DesiredState {
    /// Reads one service. True if it claims something else than before.
    pub(super) fn read(&mut self, topology: &Topology, id: &ServiceId, anew: bool) -> bool {
        let forbidden = self.forbidden(id);
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
            None if forbidden.is_none() && (self.services.contains_key(id) || self.kept.contains_key(id)) => {
                self.removed_services.insert(id.clone());
                &gone
            }
            _ => return self.services.remove(id).is_some(),
        };
        let old = self.services.get(id);
        if !anew && old.is_some_and(|old| Arc::ptr_eq(&old.source, service)) {
            return false;
        }
        let good = old.map(|old| &old.reading.good).or_else(|| self.remembered.good(id));
        let reading = Arc::new(service_input::read(id, service, good, &self.limits));
        let renamed = old.is_none_or(|old| !old.reading.claims_like(&reading));
        self.departures.extend(old.iter().flat_map(|old| departures(id, old, service, &reading)));
        let (wanted, taken) = old.map(|old| (old.wanted.clone(), old.taken.clone())).unwrap_or_default();
        // What HAProxy has against it, it has against this very form of it.
        let same = old.filter(|old| old.source == *service);
        let (refused, frozen) = same.map(|old| (old.refused.clone(), old.frozen)).unwrap_or_default();
        let settlement = ServiceState { source: Arc::clone(service), reading, wanted, refused, frozen, taken };
        self.services.insert(id.clone(), settlement);
        renamed
    }

    /// Why there may be no service of this name.
    fn forbidden(&self, id: &ServiceId) -> Option<String> {
        if let Some(by) = self.limits.reserved_sections.get(&id.to_string()) {
            let remedy = "rename the operator's, or the service";
            return Some(format!("the service's own section would be called {id} too, as {by}: {remedy}"));
        }
        let allowed = self.limits.allowed.as_ref().filter(|_| id.is_default())?;
        allowed.check_any(&id.name).err()
    }

    /// Decides what is wanted of one service. True if that is another thing than before.
    pub(super) fn decide(&mut self, id: &ServiceId) -> bool {
        let Some(settlement) = self.services.get_mut(id) else { return true };
        let reading = &settlement.reading;
        let kept = self.kept.get(id);
        let servers = || servers::servers(reading, kept);
        let preview = |color: &Color, routes| Preview {
            color: color.clone(),
            routes,
            servers: servers::previewed(reading, kept, color),
        };
        if settlement.refused.is_some() {
            let mut form = settlement.taken.clone();
            if let Some(form) = form.as_mut().filter(|_| !settlement.frozen) {
                let previews = form.previews.iter().map(|it| preview(&it.color, it.routes.clone())).collect();
                let follows = DesiredService { servers: servers(), previews, ..DesiredService::clone(form) };
                if **form != follows {
                    *form = Arc::new(follows);
                }
            }
            let another = settlement.wanted != form;
            if another {
                settlement.wanted = form;
            }
            return another;
        }
        let claimed = |domains: &[Domain]| self.claims.routes(id, reading, domains);
        let routes = claimed(&reading.domains);
        let mut settings = reading.settings.clone();
        // A browser that has seen HSTS for a host never asks it over HTTP again.
        settings.hsts = settings.hsts.filter(|_| !routes.iter().any(|route| self.claims.is_plain(&route.domain)));
        let wanted = DesiredService {
            host: reading.host().cloned(),
            routes,
            url_reg: reading.url_reg.clone(),
            binds: self.claims.binds(id, reading),
            settings,
            servers: servers(),
            previews: reading.previews.iter().map(|(color, hosts)| preview(color, claimed(hosts))).collect(),
        };
        let another = settlement.wanted.as_deref() != Some(&wanted);
        if another {
            settlement.wanted = Some(Arc::new(wanted));
        }
        another
    }
}

/// The upstreams that a service had and has no more.
fn departures(id: &ServiceId, old: &ServiceState, source: &Service, new: &ServiceInput) -> Vec<UpstreamRemoval> {
    // A check that is off finds everything up: such an upstream is never kept.
    let settings = if source.is_empty() { &old.reading.settings } else { &new.settings };
    if settings.check == Check::Off {
        return Vec::new();
    }
    let departure = |(gone, field): (&UpstreamId, &Arc<Field<Upstream>>)| {
        // A record that is there and isn't followed has not gone.
        if source.upstream(gone).is_some() {
            return None;
        }
        let upstream = old.reading.upstreams.get(gone).filter(|_| !new.upstreams.contains_key(gone))?;
        let (upstream, lease) = (upstream.clone(), field.entry.lease);
        Some(UpstreamRemoval { service: id.clone(), id: gone.clone(), upstream, lease, bore: BTreeSet::new() })
    };
    old.source.upstreams().filter_map(departure).collect()
}
