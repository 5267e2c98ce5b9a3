//! The keys behind the decisions: entries to persist, records of upstreams, owners of addresses. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Check, Entry, Service, ServiceId, Upstream, UpstreamAddress, UpstreamId};

use super::service_input;
use super::{DesiredState, ServiceState};
use crate::store::address_owners::{AddressOwners, find_owners};

impl DesiredState {
    /// The entries of all services, except the forbidden ones.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.services.values().flat_map(|it| it.source.entries())
    }

    /// The key of an upstream's record. `None` without a record.
    pub fn record_key(&self, service: &ServiceId, id: &UpstreamId) -> Option<&str> {
        Some(&self.services.get(service)?.source.upstream(id)?.entry.key)
    }

    /// True if the upstream has a record, and that record or an earlier one was good. HAProxy may have no room for it.
    pub fn has_upstream(&self, service: &ServiceId, id: &UpstreamId) -> bool {
        self.services.get(service).is_some_and(|it| it.has_record(id))
    }

    /// The number of servers that HAProxy needs for the records and retained upstreams of this service. A previewed color has each
    /// of its upstreams twice, so `preview` doubles the number.
    pub fn count_servers(&self, id: &ServiceId, service: &Service) -> usize {
        let retained = self.retained.get(id).map_or(0, BTreeMap::len);
        (service.upstream_count() + retained).saturating_mul(service_input::count_sections(service))
    }

    /// True if the service's checks can tell a dead upstream. False if the service is gone.
    pub fn has_checks(&self, service: &ServiceId) -> bool {
        self.services.get(service).is_some_and(|it| it.input.settings.check != Check::Off)
    }

    /// The present owners of these upstreams' addresses.
    pub fn find_address_owners<'a>(&self, upstreams: impl Iterator<Item = &'a Upstream>) -> AddressOwners {
        let addresses: BTreeSet<UpstreamAddress> = upstreams.map(|upstream| upstream.address).collect();
        find_owners(self.services.iter().map(|(id, it)| (id, &it.source)), |address| addresses.contains(address))
    }

    /// The keys of these services as they were read last. `None` for a new service.
    pub(super) fn current_sources<'a>(
        &self,
        ids: impl Iterator<Item = &'a ServiceId>,
    ) -> BTreeMap<ServiceId, Option<Arc<Service>>> {
        ids.map(|id| (id.clone(), self.services.get(id).map(|it| Arc::clone(&it.source)))).collect()
    }

    /// Notes the previous owners of the addresses in the newest removals. `since` is the number of older removals. `before` are the
    /// services that were read, as they were: all others are unchanged.
    pub(super) fn record_previous_owners(&mut self, since: usize, before: &BTreeMap<ServiceId, Option<Arc<Service>>>) {
        let lost: BTreeSet<UpstreamAddress> =
            self.removals.iter().skip(since).filter(|it| it.is_unexpected()).map(|it| it.upstream.address).collect();
        // Graceful removals are the rule, and finding owners walks through all records.
        if lost.is_empty() {
            return;
        }
        let unread = self.services.iter().filter(|(id, _)| !before.contains_key(*id));
        let unread = unread.map(|(id, it)| (id, &it.source));
        let read = before.iter().filter_map(|(id, source)| Some((id, source.as_ref()?)));
        let owners = find_owners(unread.chain(read), |address| lost.contains(address));
        for removal in self.removals.iter_mut().skip(since) {
            removal.previous_owners = owners.get(&removal.upstream.address).cloned().unwrap_or_default();
        }
    }
}

impl ServiceState {
    fn has_record(&self, id: &UpstreamId) -> bool {
        self.input.upstreams.contains(id) || self.input.without_room.contains(id)
    }
}
