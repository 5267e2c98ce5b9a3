//! The upstreams of each address. A removed upstream isn't retained at an address that has a new record. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Service, ServiceId, UpstreamAddress, UpstreamId};

/// The name of an upstream, which is unique in the store.
pub type UpstreamRef = (ServiceId, UpstreamId);

/// By address, the upstreams with a record of it. An app under two services has a record in each.
pub type AddressOwners = BTreeMap<UpstreamAddress, BTreeSet<UpstreamRef>>;

/// Finds the owners of the addresses for which `is_wanted` is true, among these services. Rejected records own nothing.
pub fn find_owners<'a>(
    services: impl IntoIterator<Item = (&'a ServiceId, &'a Arc<Service>)>,
    is_wanted: impl Fn(&UpstreamAddress) -> bool,
) -> AddressOwners {
    let mut owners = AddressOwners::new();
    for (service, keys) in services {
        for (id, field) in keys.upstreams() {
            if let Some(upstream) = field.value.as_ref().ok().filter(|upstream| is_wanted(&upstream.address)) {
                owners.entry(upstream.address).or_default().insert((service.clone(), id.clone()));
            }
        }
    }
    owners
}

/// True if the address of an upstream without a key belongs to this live record now. `previous_owners` had it when the key was
/// there. They still share it, because an app under two services may announce itself to either first.
pub fn address_was_reassigned(
    gone: &UpstreamRef,
    live: &UpstreamRef,
    previous_owners: Option<&BTreeSet<UpstreamRef>>,
) -> bool {
    live.0 == gone.0 || !previous_owners.is_some_and(|owners| owners.contains(live))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::topology;

    #[test]
    fn an_app_under_two_services_has_not_moved() {
        let before = topology("http-services/a/upstreams/1 10.0.0.1:80\n tcp-services/b/upstreams/1 10.0.0.1:80");
        let address = "10.0.0.1:80".parse().unwrap();
        let bore = find_owners(before.services(), |other| *other == address);
        let [a, b] = bore[&address].iter().cloned().collect::<Vec<_>>().try_into().unwrap();
        assert!(!address_was_reassigned(&a, &b, bore.get(&address)));
        let new = (b.0.clone(), "2".parse().unwrap());
        assert!(address_was_reassigned(&a, &new, bore.get(&address)), "another record");
        assert!(address_was_reassigned(&a, &b, None));
        let twin = (a.0.clone(), "2".parse().unwrap());
        assert!(
            address_was_reassigned(&a, &twin, Some(&[a.clone(), twin.clone()].into())),
            "its own service has that address twice"
        );
        assert!(find_owners(before.services(), |_| false).is_empty());
    }
}
