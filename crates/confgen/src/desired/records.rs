//! The keys behind what was decided: what is remembered of them, and which upstreams bear an address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Check, Entry, Service, ServiceId, Upstream, UpstreamAddress, UpstreamId};

use super::DesiredState;
use super::service_input::{self, ServiceInput};
use crate::store::address_owners::{AddressOwners, find_owners};

impl DesiredState {
    /// The keys of all services, but for those that are forbidden here.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flat_map(|it| it.source.entries())
    }

    /// The key that an upstream's record stands in.
    pub fn record_key(&self, service: &ServiceId, id: &UpstreamId) -> Option<&str> {
        Some(&self.services.get(service)?.source.upstream(id)?.entry.key)
    }

    /// Whether an upstream has a record that HAProxy follows or has no room for: a good one, or one that was.
    pub fn has_upstream(&self, service: &ServiceId, id: &UpstreamId) -> bool {
        let has = |reading: &ServiceInput| reading.upstreams.contains_key(id) || reading.without_room.contains(id);
        self.services.get(service).is_some_and(|it| has(&it.input))
    }

    /// The number of servers that HAProxy needs for the records and retained upstreams of this service. A previewed color has each
    /// of its upstreams twice, so `preview` doubles the number.
    pub fn count_servers(&self, id: &ServiceId, service: &Service) -> usize {
        let retained = self.retained.get(id).map_or(0, BTreeMap::len);
        (service.upstream_count() + retained).saturating_mul(service_input::count_sections(service))
    }

    /// Whether the service's checks can tell a dead upstream; not those of a service that is gone.
    pub fn has_checks(&self, service: &ServiceId) -> bool {
        self.services.get(service).is_some_and(|it| it.input.settings.check != Check::Off)
    }

    /// Who bears these upstreams' addresses.
    pub fn find_address_owners<'a>(&self, upstreams: impl Iterator<Item = &'a Upstream>) -> AddressOwners {
        let some: BTreeSet<UpstreamAddress> = upstreams.map(|upstream| upstream.address).collect();
        find_owners(self.services.iter().map(|(id, it)| (id, &it.source)), |address| some.contains(address))
    }

    /// The services as they were read last, of those that are about to be.
    pub(super) fn current_sources<'a>(
        &self,
        ids: impl Iterator<Item = &'a ServiceId>,
    ) -> BTreeMap<ServiceId, Option<Arc<Service>>> {
        ids.map(|id| (id.clone(), self.services.get(id).map(|it| Arc::clone(&it.source)))).collect()
    }

    /// Notes who bore the addresses of those lost since there were so many departures, and the services that were read
    /// since were as given.
    pub(super) fn record_previous_owners(&mut self, since: usize, before: &BTreeMap<ServiceId, Option<Arc<Service>>>) {
        let lost: BTreeSet<UpstreamAddress> =
            self.removals.iter().skip(since).filter(|it| it.is_unexpected()).map(|it| it.upstream.address).collect();
        if lost.is_empty() {
            return;
        }
        let untouched = self.services.iter().filter(|(id, _)| !before.contains_key(*id));
        let untouched = untouched.map(|(id, it)| (id, &it.source));
        let read = before.iter().filter_map(|(id, source)| Some((id, source.as_ref()?)));
        let bore = find_owners(untouched.chain(read), |address| lost.contains(address));
        for departure in self.removals.iter_mut().skip(since) {
            departure.previous_owners = bore.get(&departure.upstream.address).cloned().unwrap_or_default();
        }
    }
}
