//! Who bears which address: an address that another record bears now has moved, and nobody is kept there. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Service, ServiceId, UpstreamAddress, UpstreamId};

/// An upstream, by its service and its id.
pub type UpstreamRef = (ServiceId, UpstreamId);

/// The upstreams that bear an address, by that address.
pub type AddressOwners = BTreeMap<UpstreamAddress, BTreeSet<UpstreamRef>>;

/// The upstreams of these services whose records bear one of these addresses.
pub fn find_owners<'a>(
    services: impl IntoIterator<Item = (&'a ServiceId, &'a Arc<Service>)>,
    of: impl Fn(&UpstreamAddress) -> bool,
) -> AddressOwners {
    let mut bearers = AddressOwners::new();
    for (service, keys) in services {
        for (id, field) in keys.upstreams() {
            if let Some(upstream) = field.value.as_ref().ok().filter(|upstream| of(&upstream.address)) {
                bearers.entry(upstream.address).or_default().insert((service.clone(), id.clone()));
            }
        }
    }
    bearers
}

/// Whether the address of an upstream without a key is now this live record's. `bore` are those that bore it when the
/// key was there: an app under two services has a record in each, and either may come back first.
pub fn address_was_reassigned(gone: &UpstreamRef, live: &UpstreamRef, bore: Option<&BTreeSet<UpstreamRef>>) -> bool {
    live.0 == gone.0 || !bore.is_some_and(|bore| bore.contains(live))
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
