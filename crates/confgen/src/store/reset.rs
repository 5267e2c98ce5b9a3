//! The keys that a reset store lacks and that are served all the same. Pure: no I/O, no clock.
//!
//! A store that was lost looks like one that was emptied on purpose. So each service key of the last topology is retained until the
//! same key is written again, another record has its address, or an operator accepts the new store. No timer ends it.

use std::collections::BTreeSet;
use std::time::SystemTime;

use discovery::{Acceptance, Entry, Key, Layout, RetainedAfterReset, ServiceId, Topology, UpstreamAddress, UpstreamId};
use serde::{Deserialize, Serialize};

use super::StoreRevision;
use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned, find_owners};

/// The names of the retained keys. Their entries stand in the replica's topology, beside those of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetainedKeys {
    keys: BTreeSet<String>,
    /// The owners, before the reset, of the addresses of retained upstreams. state.json calls them `bore`.
    #[serde(rename = "bore")]
    previous_owners: AddressOwners,
    /// The reset store, as of the listing that showed the reset.
    noticed: StoreRevision,
    /// The time of that listing, by this host's clock. `None` if an older confgen wrote it.
    since: Option<SystemTime>,
}

impl RetainedKeys {
    /// The keys of the last topology that the listing of a reset store lacks. They include what was retained before, because the
    /// last topology has it.
    pub fn from_reset(last: &Topology, listed: &BTreeSet<&str>, noticed: StoreRevision, at: SystemTime) -> Self {
        let missing = last.entries().map(|entry| &entry.key).filter(|key| !listed.contains(key.as_str()));
        let keys: BTreeSet<String> = missing.cloned().collect();
        let addresses: BTreeSet<UpstreamAddress> = upstream_addresses(last, &keys).collect();
        Self {
            previous_owners: find_owners(last.services(), |address| addresses.contains(address)),
            keys,
            noticed,
            since: Some(at),
        }
    }

    /// The time when the reset was noticed. `None` if an older confgen noticed it.
    pub fn retained_since(&self) -> Option<SystemTime> {
        self.since
    }

    /// The number of retained keys and the revision of the reset, for the balancer record. All zero if nothing is retained.
    pub fn summarize_loss(&self) -> RetainedAfterReset {
        if self.is_empty() {
            RetainedAfterReset::default()
        } else {
            RetainedAfterReset { revision: self.noticed.revision, keys: self.len() }
        }
    }

    /// True if the store was never reset, or each key was released.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The number of retained keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The retained keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.iter()
    }

    /// True if this key is retained.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// Counts the services that have retained keys.
    pub fn count_services(&self) -> usize {
        let parsed = self.keys.iter().filter_map(|key| key.parse::<Key>().ok());
        parsed.filter_map(|key| key.service_id().cloned()).collect::<BTreeSet<ServiceId>>().len()
    }

    /// The upstreams with a retained key as their record. `record_key` tells the key of an upstream's record: an upstream with keys in
    /// both layouts may be served from the other one.
    pub fn served_upstreams<'a>(
        &self,
        record_key: impl Fn(&ServiceId, &UpstreamId) -> Option<&'a str>,
    ) -> BTreeSet<UpstreamRef> {
        let parsed = self.keys.iter().filter_map(|key| match key.parse::<Key>() {
            Ok(Key::Upstream { service, id, .. }) => Some((key, service, id)),
            _ => None,
        });
        parsed
            .filter(|(key, service, id)| record_key(service, id) == Some(key))
            .map(|(_, service, id)| (service, id))
            .collect()
    }

    /// Releases the keys for which `stays` is false.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.keys.retain(|key| stays(key));
        // The owners may be thousands, and state.json would keep them for nothing.
        if self.keys.is_empty() {
            self.previous_owners.clear();
        }
    }

    /// Releases one key. Returns true if it was retained.
    pub fn remove_key(&mut self, key: &str) -> bool {
        self.keys.remove(key)
    }

    /// The retained keys of upstreams at an address that a live record has now.
    pub fn reassigned_keys(&self, live: &UpstreamRef, address: UpstreamAddress) -> Vec<String> {
        let owners = self.previous_owners.get(&address);
        let gone =
            owners.into_iter().flatten().filter(|gone| *gone != live && address_was_reassigned(gone, live, owners));
        // The upstream may have had its record in either layout, or in both.
        let keys = gone.flat_map(|(service, id)| {
            [Layout::Current, Layout::Legacy]
                .map(|layout| Key::Upstream { service: service.clone(), layout, id: id.clone() }.to_string())
        });
        keys.filter(|key| self.keys.contains(key)).collect()
    }

    /// Checks that an acceptance is about this reset. The error is the reason why it isn't.
    pub fn check_acceptance(&self, entry: &Entry) -> Result<(), String> {
        let acceptance = Acceptance::parse(&entry.value).map_err(|refusal| refusal.to_string())?;
        if acceptance.cluster != self.noticed.cluster {
            return Err(format!("it is about cluster {}, this one is {}", acceptance.cluster, self.noticed.cluster));
        }
        let noticed = self.noticed.revision;
        if entry.mod_revision <= noticed {
            return Err("it was written before the store was found wiped".into());
        }
        // A backup or a script may write an old acceptance again. The key's own revision is new then, the one in its value is not.
        match acceptance.revision {
            0 => Err(format!("it doesn't say which revision it is about; {noticed} or later is")),
            about if about < noticed => {
                Err(format!("it is about revision {about}, and the store was found wiped at {noticed}"))
            }
            about if about > entry.mod_revision => {
                Err(format!("it is about revision {about}, and was written at {}", entry.mod_revision))
            }
            _ => Ok(()),
        }
    }
}

/// The addresses in the records among these keys.
fn upstream_addresses<'a>(
    topology: &'a Topology,
    keys: &'a BTreeSet<String>,
) -> impl Iterator<Item = UpstreamAddress> + 'a {
    let records = topology.services().values().flat_map(|service| service.upstreams());
    let retained = records.filter(|(_, record)| keys.contains(&record.entry.key));
    retained.filter_map(|(_, record)| Some(record.value.as_ref().ok()?.address))
}
