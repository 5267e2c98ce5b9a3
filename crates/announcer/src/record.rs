//! A record, its value and its state. Pure: no I/O, no clock.

pub(crate) mod claims;
pub(crate) mod difference;
pub(crate) mod draft;
pub(crate) mod ownership;

use discovery::{Entry, HostName, Key, ServiceId, Setting, Upstream, UpstreamAddress, UpstreamId, UpstreamState};
use registry::LeaseId;

use crate::config::upstream::{Announcement, OverwriteRules};

/// An announcement with its address.
#[derive(Clone, Debug)]
pub struct Record {
    announcement: Announcement,
    address: UpstreamAddress,
    overwrite_rules: OverwriteRules,
}

/// Wanted state of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Stored in this state, and stored again after each loss of the lease.
    Present(UpstreamState),
    /// In this state if it is stored. A missing record stays missing.
    IfPresent(UpstreamState),
    /// Not stored, or deleted.
    Absent,
}

/// Knowledge of a record, for the admin port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordStatus {
    /// State in the store, under our lease. `None` if the record is missing or belongs to another owner.
    pub stored_state: Option<UpstreamState>,
    /// Number of times that the record was put into the store.
    pub registrations: u64,
    /// Those of the registrations that repaired a change by another writer.
    pub restorations: u64,
    /// Owner that has the id instead, with its address and lease.
    pub owner: Option<String>,
}

impl Record {
    /// Makes the record of an announcement at this address.
    pub fn new(announcement: Announcement, address: UpstreamAddress, overwrite_rules: OverwriteRules) -> Self {
        Self { announcement, address, overwrite_rules }
    }

    /// The record that an entry has, without settings, and its state. `None` if the entry is none.
    pub fn from_entry(entry: &Entry) -> Option<(Self, UpstreamState)> {
        let Ok(Key::Upstream { service, id, .. }) = entry.key.parse() else { return None };
        let Upstream { address, weight, color, host, state, .. } = Upstream::parse(&entry.value).ok()?;
        let announcement = Announcement { service, id, weight, color, host, settings: Vec::new() };
        let record = Self::new(announcement, address, OverwriteRules::default());
        // A key of the legacy layout names the same upstream, and is another one.
        (record.key() == entry.key).then_some((record, state))
    }

    /// The record with the permission to take the id over from another address (`--takeover`).
    #[must_use]
    pub fn with_takeover(self) -> Self {
        Self { overwrite_rules: OverwriteRules { takeover: true, ..self.overwrite_rules }, ..self }
    }

    /// Key relative to the prefix.
    pub fn key(&self) -> String {
        Key::for_upstream(&self.announcement.service, &self.announcement.id).to_string()
    }

    /// Address at which balancers reach the app.
    pub fn address(&self) -> UpstreamAddress {
        self.address
    }

    /// Name of the host that the record names.
    pub fn host(&self) -> Option<&HostName> {
        self.announcement.host.as_ref()
    }

    /// Service and id, the two parts of the key.
    pub fn service_and_id(&self) -> (&ServiceId, &UpstreamId) {
        (&self.announcement.service, &self.announcement.id)
    }

    /// Settings that the options give to the service.
    pub fn announced_settings(&self) -> impl Iterator<Item = &Setting> {
        self.announcement.settings.iter()
    }

    /// Keys of the settings, relative to the prefix.
    pub fn setting_keys(&self) -> impl Iterator<Item = String> {
        self.keyed_settings().map(|(key, _)| key)
    }

    /// Value in this state. Without a lease it is marked as permanent.
    pub fn encode_value(&self, state: UpstreamState, lease: Option<LeaseId>) -> String {
        let Announcement { weight, color, host, .. } = &self.announcement;
        let permanent = lease.is_none();
        let upstream = Upstream {
            weight: *weight,
            color: color.clone(),
            host: host.clone(),
            state,
            permanent,
            ..Upstream::from_address(self.address)
        };
        let value = upstream.to_string();
        check_invariants(&upstream, &value);
        value
    }

    /// Entry of the record among those that a transaction found.
    pub fn find_entry<'a>(&self, found: &'a [Entry]) -> Option<&'a Entry> {
        let key = self.key();
        found.iter().find(|entry| entry.key == key)
    }

    /// State in which this announcer writes exactly this value. `None` if another writer wrote it.
    pub fn state_from_value(&self, value: &[u8], lease: LeaseId) -> Option<UpstreamState> {
        let states = [UpstreamState::Ready, UpstreamState::Drain, UpstreamState::Down];
        states.into_iter().find(|state| self.encode_value(*state, Some(lease)).as_bytes() == value)
    }

    fn keyed_settings(&self) -> impl Iterator<Item = (String, &Setting)> {
        let service = &self.announcement.service;
        let settings = self.announcement.settings.iter();
        settings.map(move |setting| (Key::for_setting(service, setting.name()).to_string(), setting))
    }
}

/// Asserts that balancers read the value as it was meant.
fn check_invariants(upstream: &Upstream, value: &str) {
    debug_assert!(reads_back(upstream, value), "{value:?} is not read back as {upstream:?}");
}

fn reads_back(upstream: &Upstream, value: &str) -> bool {
    Upstream::parse(value.as_bytes()).is_ok_and(|read| read == *upstream)
}

#[cfg(test)]
pub(crate) mod tests {
    use discovery::{Kind, SettingName, Weight};

    use super::*;

    pub const UPSTREAM: &str = "http-services/shop/upstreams/a";
    pub const DOMAIN: &str = "http-services/shop/domain";

    pub fn record_with(overwrite_rules: OverwriteRules) -> Record {
        Record { overwrite_rules, ..record_of("a", "10.0.0.1:80") }
    }

    pub fn on_host(record: &Record, host: &str) -> Record {
        let announcement = Announcement { host: host.parse().ok(), ..record.announcement.clone() };
        Record { announcement, ..record.clone() }
    }

    pub fn record_of(id: &str, address: &str) -> Record {
        let settings = vec![Setting::parse(Kind::Http, SettingName::Domain, b"a.com b.com").unwrap()];
        let service = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
        let announcement = Announcement {
            service,
            id: id.parse().unwrap(),
            weight: Weight::DEFAULT,
            color: None,
            host: None,
            settings,
        };
        Record::new(announcement, address.parse().unwrap(), OverwriteRules::default())
    }

    pub fn entry(key: &str, value: &str, lease: i64) -> Entry {
        Entry { key: key.to_owned(), value: value.into(), create_revision: 3, mod_revision: 5, lease }
    }

    pub fn our_lease() -> LeaseId {
        LeaseId::from(7)
    }

    #[test]
    fn a_record_says_no_more_than_it_must() {
        let record = record_with(OverwriteRules::default());
        let lease = Some(our_lease());
        assert_eq!(record.encode_value(UpstreamState::Ready, lease), "10.0.0.1:80");
        assert_eq!(record.encode_value(UpstreamState::Drain, lease), r#"{"address":"10.0.0.1:80","state":"drain"}"#);
        assert_eq!(record.encode_value(UpstreamState::Ready, None), r#"{"address":"10.0.0.1:80","permanent":true}"#);
        let host = Some("web1.test".parse().unwrap());
        let record = Record { announcement: Announcement { host, ..record.announcement }, ..record };
        let named = r#"{"address":"10.0.0.1:80","host":"web1.test"}"#;
        assert_eq!(record.encode_value(UpstreamState::Ready, lease), named);
    }

    #[test]
    fn a_value_that_reads_as_something_else_violates_the_invariant() {
        let upstream = Upstream::from_address("10.0.0.1:80".parse().unwrap());
        assert!(reads_back(&upstream, "10.0.0.1:80"));
        for value in ["10.0.0.2:80", r#"{"address":"10.0.0.1:80","state":"down"}"#, "garbage", ""] {
            assert!(!reads_back(&upstream, value), "{value}");
        }
    }
}
