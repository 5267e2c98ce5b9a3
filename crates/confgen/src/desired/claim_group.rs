//! The services whose claims depend on each other, because they share a host or a port. All other services keep their claims when one
//! of these changes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Domain, ServiceId};

use super::service_states::ServiceStates;
use crate::desired::service_input::ServiceInput;

/// Changed services, and those that share a host or a port with them, directly or through others.
#[derive(Debug, Default)]
pub(super) struct ClaimGroup<'a> {
    pub(super) members: BTreeMap<&'a ServiceId, &'a ServiceInput>,
    /// What the changed services claimed before.
    earlier: BTreeMap<&'a ServiceId, &'a ServiceInput>,
    domains: BTreeSet<&'a Domain>,
    ports: BTreeSet<u16>,
}

impl<'a> ClaimGroup<'a> {
    /// Finds the group of the changed services. `earlier` are their inputs of before.
    pub(super) fn find(
        services: &'a ServiceStates,
        changed: impl Iterator<Item = &'a ServiceId>,
        earlier: impl Iterator<Item = (&'a ServiceId, &'a ServiceInput)>,
    ) -> Self {
        let mut group = Self { earlier: earlier.collect(), ..Self::default() };
        for input in group.earlier.values().copied().collect::<Vec<_>>() {
            group.add_claims(input);
        }
        changed.filter_map(|id| services.get_key_value(id)).for_each(|(id, it)| group.add_member(id, &it.input));
        loop {
            let rest = services.iter().filter(|(id, _)| !group.members.contains_key(id));
            let found: Vec<_> = rest.filter(|(_, it)| group.touches(&it.input)).collect();
            if found.is_empty() {
                return group;
            }
            found.into_iter().for_each(|(id, it)| group.add_member(id, &it.input));
        }
    }

    /// The inputs of the members, and what they claimed before.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &'a ServiceInput> {
        self.earlier.values().chain(self.members.values()).copied()
    }

    /// True if the service is in the group, or was changed and is gone.
    pub(super) fn contains(&self, id: &ServiceId) -> bool {
        self.members.contains_key(id) || self.earlier.contains_key(id)
    }

    /// The hosts that the group claims, or claimed before.
    pub(super) fn domains(&self) -> &BTreeSet<&'a Domain> {
        &self.domains
    }

    fn add_member(&mut self, id: &'a ServiceId, input: &'a ServiceInput) {
        self.members.insert(id, input);
        self.add_claims(input);
    }

    fn add_claims(&mut self, input: &'a ServiceInput) {
        self.domains.extend(input.claimed_domains().map(|(_, domain)| domain));
        self.ports.extend(input.ports.iter().map(|bind| bind.port));
    }

    fn touches(&self, input: &ServiceInput) -> bool {
        input.claimed_domains().any(|(_, domain)| self.domains.contains(domain))
            || input.ports.iter().any(|bind| self.ports.contains(&bind.port))
    }
}
