//! What a wiped store lacks, and is served all the same. Pure.
//!
//! Nobody can tell a store that was lost from one that was emptied on purpose. So every service key of the last topology
//! stands until that very key is written again, or an operator says that the new store is meant.

use std::collections::BTreeSet;
use std::time::SystemTime;

use discovery::{Acceptance, Entry, Key, Layout, RetainedAfterReset, ServiceId, Topology, UpstreamAddress, UpstreamId};
use serde::{Deserialize, Serialize};

use super::StoreRevision;
use crate::store::address_owners::{AddressOwners, UpstreamRef, address_was_reassigned, find_owners};

/// The keys that are held. Their entries are part of the topology, as those of the store are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetainedKeys {
    keys: BTreeSet<String>,
    /// Of the addresses that are held: whose they were in the last topology.
    bore: AddressOwners,
    /// The store that was found wiped, and as of when.
    noticed: StoreRevision,
    /// When it was, by this host's clock; None if an older confgen noticed it.
    since: Option<SystemTime>,
}

impl RetainedKeys {
    /// Holds what the last topology has and the listing of a wiped store lacks. What was held already is part of the
    /// last topology.
    pub fn from_reset(last: &Topology, listed: &BTreeSet<&str>, noticed: StoreRevision, at: SystemTime) -> Self {
        let lacks = last.entries().map(|entry| &entry.key).filter(|key| !listed.contains(key.as_str()));
        let keys: BTreeSet<String> = lacks.cloned().collect();
        let held_ones: BTreeSet<UpstreamAddress> = upstream_addresses(last, &keys).collect();
        Self {
            bore: find_owners(last.services(), |address| held_ones.contains(address)),
            keys,
            noticed,
            since: Some(at),
        }
    }

    /// Since when keys are held.
    pub fn retained_since(&self) -> Option<SystemTime> {
        self.since
    }

    /// How much of which store is held.
    pub fn summarize_loss(&self) -> RetainedAfterReset {
        if self.is_empty() {
            RetainedAfterReset::default()
        } else {
            RetainedAfterReset { revision: self.noticed.revision, keys: self.len() }
        }
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.keys.iter()
    }

    /// Whether this key is.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains(key)
    }

    /// How many services have held keys.
    pub fn count_services(&self) -> usize {
        let parsed = self.keys.iter().filter_map(|key| key.parse::<Key>().ok());
        parsed.filter_map(|key| key.service_id().cloned()).collect::<BTreeSet<ServiceId>>().len()
    }

    /// The upstreams that are served from a held key; `key` says which key an upstream's record stands in.
    pub fn served_upstreams<'a>(
        &self,
        key: impl Fn(&ServiceId, &UpstreamId) -> Option<&'a str>,
    ) -> BTreeSet<UpstreamRef> {
        let upstream = |held: &String| match held.parse::<Key>() {
            Ok(Key::Upstream { service, id, .. }) => (key(&service, &id)? == held).then_some((service, id)),
            _ => None,
        };
        self.keys.iter().filter_map(upstream).collect()
    }

    /// Keeps of the held keys those that `stays` is true of.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.keys.retain(|key| stays(key));
        if self.keys.is_empty() {
            self.bore.clear();
        }
    }

    /// Lets one key go. True if it was held.
    pub fn remove_key(&mut self, key: &str) -> bool {
        self.keys.remove(key)
    }

    /// The held upstreams' keys at an address that a live record bears.
    pub fn reassigned_keys(&self, live: &UpstreamRef, address: UpstreamAddress) -> Vec<String> {
        let bore = self.bore.get(&address);
        let gone = bore.into_iter().flatten().filter(|gone| *gone != live && address_was_reassigned(gone, live, bore));
        let keys = gone.flat_map(|(service, id)| {
            [Layout::Current, Layout::Legacy]
                .map(|layout| Key::Upstream { service: service.clone(), layout, id: id.clone() }.to_string())
        });
        keys.filter(|key| self.keys.contains(key)).collect()
    }

    /// Whether an operator's word lets everything go; else why not.
    pub fn check_acceptance(&self, word: &Entry) -> Result<(), String> {
        let acceptance = Acceptance::parse(&word.value).map_err(|refusal| refusal.to_string())?;
        if acceptance.cluster != self.noticed.cluster {
            return Err(format!("it is about cluster {}, this one is {}", acceptance.cluster, self.noticed.cluster));
        }
        let noticed = self.noticed.revision;
        if word.mod_revision <= noticed {
            return Err("it was written before the store was found wiped".into());
        }
        // One that a backup or a script wrote again is about a store of before, whatever its key's own revision is.
        match acceptance.revision {
            0 => Err(format!("it doesn't say which revision it is about; {noticed} or later is")),
            about if about < noticed => {
                Err(format!("it is about revision {about}, and the store was found wiped at {noticed}"))
            }
            about if about > word.mod_revision => {
                Err(format!("it is about revision {about}, and was written at {}", word.mod_revision))
            }
            _ => Ok(()),
        }
    }
}

/// The addresses of the upstreams among these keys.
fn upstream_addresses<'a>(
    topology: &'a Topology,
    keys: &'a BTreeSet<String>,
) -> impl Iterator<Item = UpstreamAddress> + 'a {
    let upstreams = topology.services().values().flat_map(|service| service.upstreams());
    let held = upstreams.filter(|(_, field)| keys.contains(&field.entry.key));
    held.filter_map(|(_, field)| Some(field.value.as_ref().ok()?.address))
}
