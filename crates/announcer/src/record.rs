//! What is written into the store, and whether it may be: pure.

pub(crate) mod claims;

use std::{collections::BTreeSet, fmt};

use discovery::{Entry, Key, ServiceId, Setting, Upstream, UpstreamAddress, UpstreamId, UpstreamState};
use registry::{Condition, LeaseId, Txn};

use crate::config::upstream::{Announcement, OverwriteRules};

/// An announcement whose address is known.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    announcement: Announcement,
    address: UpstreamAddress,
    overwrite_rules: OverwriteRules,
}

/// A transaction on several records. It fails if the store is no longer as it was seen, and then reads it anew.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) txn: Txn,
    /// The settings that stay as they are, though they say otherwise.
    pub(crate) differences: Vec<Difference>,
    /// The settings that are in it, records of one service share them; and those that are left alone.
    handled_settings: BTreeSet<String>,
}

/// A setting that says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Its key, relative to the prefix.
    pub(crate) key: String,
    /// What the store has, shortened; None where the key isn't there.
    pub(crate) stored: Option<String>,
    /// What we were given.
    pub(crate) given: String,
}

/// The announcer's past with a key, which decides what may be done to an entry that another hand has put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnershipHistory {
    /// The record has stood under the present lease.
    pub(crate) has_held: bool,
    /// The lease of another announcer that took the record over from this one. The record is not taken back from it, or
    /// two announcers with one id would take turns for ever.
    pub(crate) yielded_to: Option<LeaseId>,
}

/// Who has the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The record's address, or its value where it is no record.
    pub(crate) address: String,
    /// The lease it hangs on; None is one that never ends by itself.
    pub(crate) lease: Option<LeaseId>,
}

impl Draft {
    /// A transaction that leaves these settings alone, by their keys.
    pub(crate) fn without_settings(handled_settings: BTreeSet<String>) -> Self {
        Self { handled_settings, ..Self::default() }
    }
}

impl Record {
    /// The announcement at this address.
    pub(crate) fn new(announcement: Announcement, address: UpstreamAddress, overwrite_rules: OverwriteRules) -> Self {
        Self { announcement, address, overwrite_rules }
    }

    /// The record's key, relative to the prefix.
    pub(crate) fn key(&self) -> String {
        Key::for_upstream(&self.announcement.service, &self.announcement.id).to_string()
    }

    /// Where it says that the app listens.
    pub(crate) fn address(&self) -> UpstreamAddress {
        self.address
    }

    /// Whose upstream it is, and its name.
    pub(crate) fn service_and_id(&self) -> (&ServiceId, &UpstreamId) {
        (&self.announcement.service, &self.announcement.id)
    }

    /// The settings that it was given.
    pub(crate) fn announced_settings(&self) -> impl Iterator<Item = &Setting> {
        self.announcement.settings.iter()
    }

    /// The keys of the settings, relative to the prefix.
    pub(crate) fn setting_keys(&self) -> impl Iterator<Item = String> {
        self.keyed_settings().map(|(key, _)| key)
    }

    /// The record's value. One without a lease says that it is meant to stand for ever.
    pub(crate) fn encode_value(&self, state: UpstreamState, lease: Option<LeaseId>) -> String {
        let Announcement { weight, color, .. } = &self.announcement;
        let permanent = lease.is_none();
        Upstream { weight: *weight, color: color.clone(), state, permanent, ..Upstream::from_address(self.address) }
            .to_string()
    }

    /// Adds the registration. `found` is what the last attempt read; nothing at first, which is right for a new service
    /// and one round trip too much for the others. An error if the id belongs to another owner.
    pub(crate) fn add_registration(
        &self,
        draft: &mut Draft,
        state: UpstreamState,
        lease: Option<LeaseId>,
        with_settings: bool,
        tenure: OwnershipHistory,
        found: &[Entry],
    ) -> Result<(), Owner> {
        let find = |key: &str| found.iter().find(|entry| entry.key == key);
        let key = self.key();
        let stands = find(&key);
        if let Some(owner) = stands.and_then(|entry| self.find_other_owner(entry, lease, tenure)) {
            return Err(owner);
        }
        let mut txn = std::mem::take(&mut draft.txn)
            .only_if(unchanged_condition(&key, stands))
            .put(&key, self.encode_value(state, lease), lease)
            .or_get(&key);
        for (key, setting) in self.keyed_settings().filter(|_| with_settings) {
            if !draft.handled_settings.insert(key.clone()) {
                continue;
            }
            let stands = find(&key);
            txn = txn.or_get(&key);
            match stands.map(|entry| compare_setting(entry, setting)) {
                Some(None) => {}
                Some(Some(difference)) if !self.overwrite_rules.update => draft.differences.push(difference),
                None | Some(Some(_)) => {
                    txn = txn.only_if(unchanged_condition(&key, stands)).put(key, setting.to_string(), None)
                }
            }
        }
        draft.txn = txn;
        Ok(())
    }

    /// Adds a new state of a record that is ours.
    pub(crate) fn add_change(&self, draft: &mut Draft, state: UpstreamState, lease: LeaseId) {
        let (key, value) = (self.key(), self.encode_value(state, Some(lease)));
        let txn = std::mem::take(&mut draft.txn);
        draft.txn = txn.only_if(Condition::LeaseIs(key.clone(), lease)).put(&key, value, Some(lease)).or_get(key);
    }

    /// Adds the end of a record that is ours.
    pub(crate) fn add_deletion(&self, draft: &mut Draft, lease: LeaseId) {
        let key = self.key();
        let txn = std::mem::take(&mut draft.txn);
        draft.txn = txn.only_if(Condition::LeaseIs(key.clone(), lease)).delete(&key).or_get(key);
    }

    /// Adds a new state, or the end, of a record that a person has written over without a lease: otherwise it would stay
    /// in the store for ever, and lead to an app that is gone. Nothing is added, and false returned, where the entry has
    /// another address or is meant to be permanent.
    pub(crate) fn add_reclaim(
        &self,
        draft: &mut Draft,
        state: Option<UpstreamState>,
        lease: LeaseId,
        entry: &Entry,
    ) -> bool {
        if entry.lease != 0 || is_permanent(entry) || parse_address(entry) != Some(self.address) {
            return false;
        }
        let key = self.key();
        let txn = std::mem::take(&mut draft.txn).only_if(unchanged_condition(&key, Some(entry)));
        let txn = match state {
            Some(state) => txn.put(&key, self.encode_value(state, Some(lease)), Some(lease)),
            None => txn.delete(&key),
        };
        draft.txn = txn.or_get(key);
        true
    }

    /// The record's entry among what was found.
    pub(crate) fn find_entry<'a>(&self, found: &'a [Entry]) -> Option<&'a Entry> {
        let key = self.key();
        found.iter().find(|entry| entry.key == key)
    }

    /// The state in which this announcer itself would have written this value; None if it would not have.
    pub(crate) fn state_from_value(&self, value: &[u8], lease: LeaseId) -> Option<UpstreamState> {
        let states = [UpstreamState::Ready, UpstreamState::Drain, UpstreamState::Down];
        states.into_iter().find(|state| self.encode_value(*state, Some(lease)).as_bytes() == value)
    }

    /// The settings that say otherwise than ours, going by all that was found of them.
    pub(crate) fn list_differences(&self, found: &[Entry]) -> Vec<Difference> {
        let difference = |(key, setting): (String, &Setting)| match found.iter().find(|entry| entry.key == key) {
            Some(entry) => compare_setting(entry, setting),
            None => Some(Difference { key, stored: None, given: setting.to_string() }),
        };
        self.keyed_settings().filter_map(difference).collect()
    }

    /// Deletes the record where it bears our address; None where it doesn't.
    pub(crate) fn deregistration_txn(&self, entry: &Entry) -> Option<Txn> {
        let ours = parse_address(entry) == Some(self.address);
        ours.then(|| {
            let key = self.key();
            Txn::new().only_if(Condition::ModRevisionIs(key.clone(), entry.mod_revision)).delete(&key).or_get(key)
        })
    }

    fn keyed_settings(&self) -> impl Iterator<Item = (String, &Setting)> {
        let service = &self.announcement.service;
        self.announcement
            .settings
            .iter()
            .map(move |setting| (Key::for_setting(service, setting.name()).to_string(), setting))
    }

    /// None where the id is free for this announcer.
    ///
    /// To one that comes, the same address is itself as it was before. From one that has stood, another announcer takes
    /// the record over, and a person can't: what is written by hand has no lease, and is meant to last only where it
    /// says so.
    pub(crate) fn find_other_owner(
        &self,
        entry: &Entry,
        lease: Option<LeaseId>,
        tenure: OwnershipHistory,
    ) -> Option<Owner> {
        let stands_under = (entry.lease != 0).then(|| LeaseId::from(entry.lease));
        let is_same = parse_address(entry) == Some(self.address);
        let is_free = match stands_under {
            Some(_) if stands_under == lease => true,
            Some(_) if tenure.has_held || stands_under == tenure.yielded_to => false,
            None if tenure.has_held => is_same || !is_permanent(entry),
            Some(_) | None => is_same || self.overwrite_rules.takeover,
        };
        (!is_free).then(|| Owner {
            address: parse_address(entry).map_or_else(|| truncate_value(&entry.value), |address| address.to_string()),
            lease: stands_under,
        })
    }
}

fn is_permanent(entry: &Entry) -> bool {
    Upstream::parse(&entry.value).is_ok_and(|upstream| upstream.permanent)
}

fn parse_address(entry: &Entry) -> Option<UpstreamAddress> {
    Upstream::parse(&entry.value).ok().map(|upstream| upstream.address)
}

fn unchanged_condition(key: &str, stands: Option<&Entry>) -> Condition {
    match stands {
        None => Condition::Absent(key.to_owned()),
        Some(entry) => Condition::ModRevisionIs(key.to_owned(), entry.mod_revision),
    }
}

/// Values that mean the same are no difference, however they are written.
fn compare_setting(entry: &Entry, setting: &Setting) -> Option<Difference> {
    let kind = match entry.key.parse() {
        Ok(Key::Setting { service, .. }) => Some(service.kind),
        _ => None,
    };
    let stands = kind.and_then(|kind| Setting::parse(kind, setting.name(), &entry.value).ok());
    (stands.as_ref() != Some(setting)).then(|| Difference {
        key: entry.key.clone(),
        stored: Some(truncate_value(&entry.value)),
        given: setting.to_string(),
    })
}

/// A value for a message: anybody may have written it, at any length.
pub(crate) fn truncate_value(value: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(value);
    let mut start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lease {
            Some(lease) => write!(f, "{} under lease {lease}", self.address),
            None => write!(f, "{}, which is permanent", self.address),
        }
    }
}

/// What is wanted of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// It stands, in this state; it is put there, and again after the lease was lost.
    Present(UpstreamState),
    /// Where it stands it says this; it isn't put there for that.
    IfPresent(UpstreamState),
    /// It doesn't stand.
    Absent,
}

/// A record, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordStatus {
    /// What it says in the store, under our lease; None where it isn't there, or is somebody else's.
    pub(crate) stored_state: Option<UpstreamState>,
    /// How often it was put there.
    pub(crate) registrations: u64,
    /// The share of them that came after another hand had deleted it or written over it.
    pub(crate) restorations: u64,
    /// The owner that has the id instead, with its address and lease.
    pub(crate) owner: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests {
    use discovery::{Kind, ServiceId, SettingName, Weight};

    use super::*;

    const UPSTREAM: &str = "http-services/shop/upstreams/a";
    const DOMAIN: &str = "http-services/shop/domain";

    fn record(policy: OverwriteRules) -> Record {
        Record { overwrite_rules: policy, ..record_of("a", "10.0.0.1:80") }
    }

    pub(crate) fn record_of(id: &str, address: &str) -> Record {
        let settings = vec![Setting::parse(Kind::Http, SettingName::Domain, b"a.com b.com").unwrap()];
        let service = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
        let announcement =
            Announcement { service, id: id.parse().unwrap(), weight: Weight::DEFAULT, color: None, settings };
        Record::new(announcement, address.parse().unwrap(), OverwriteRules::default())
    }

    pub(crate) fn entry(key: &str, value: &str, lease: i64) -> Entry {
        Entry { key: key.to_owned(), value: value.into(), create_revision: 3, mod_revision: 5, lease }
    }

    fn ours() -> Option<LeaseId> {
        Some(LeaseId::from(7))
    }

    fn plan(record: &Record, found: &[Entry]) -> Result<(Txn, Vec<Difference>), Owner> {
        let mut draft = Draft::default();
        record.add_registration(&mut draft, UpstreamState::Ready, ours(), true, OwnershipHistory::default(), found)?;
        Ok((draft.txn, draft.differences))
    }

    fn written(txn: Txn) -> Result<(Txn, Vec<Difference>), Owner> {
        Ok((txn, Vec::new()))
    }

    #[test]
    fn a_new_service_is_one_round_trip() {
        let txn = Txn::new()
            .only_if(Condition::Absent(UPSTREAM.into()))
            .put(UPSTREAM, "10.0.0.1:80", ours())
            .or_get(UPSTREAM)
            .or_get(DOMAIN)
            .only_if(Condition::Absent(DOMAIN.into()))
            .put(DOMAIN, "a.com b.com", None);
        assert_eq!(plan(&record(OverwriteRules::default()), &[]), written(txn));
    }

    #[test]
    fn settings_that_mean_the_same_are_left_alone() {
        let found = [entry(UPSTREAM, "10.0.0.1:80", 3), entry(DOMAIN, "A.com,  b.com\n", 0)];
        let txn = Txn::new()
            .only_if(Condition::ModRevisionIs(UPSTREAM.into(), 5))
            .put(UPSTREAM, "10.0.0.1:80", ours())
            .or_get(UPSTREAM)
            .or_get(DOMAIN);
        for update in [false, true] {
            let planned = plan(&record(OverwriteRules { update, takeover: false }), &found);
            assert_eq!(planned, written(txn.clone()));
        }
    }

    #[test]
    fn settings_that_say_otherwise_are_overwritten_only_if_asked_for() {
        let found = [entry(DOMAIN, "c.com", 0)];
        let (txn, differing) = plan(&record(OverwriteRules::default()), &found).unwrap();
        let stands = Some("c.com".to_owned());
        assert_eq!(differing, [Difference { key: DOMAIN.into(), stored: stands, given: "a.com b.com".into() }]);
        assert!(!format!("{txn:?}").contains("a.com"));
        let (txn, differing) = plan(&record(OverwriteRules { update: true, takeover: false }), &found).unwrap();
        assert!(differing.is_empty());
        assert_eq!(
            txn,
            Txn::new()
                .only_if(Condition::Absent(UPSTREAM.into()))
                .put(UPSTREAM, "10.0.0.1:80", ours())
                .or_get(UPSTREAM)
                .or_get(DOMAIN)
                .only_if(Condition::ModRevisionIs(DOMAIN.into(), 5))
                .put(DOMAIN, "a.com b.com", None)
        );
    }

    #[test]
    fn an_id_is_taken_over_from_oneself_at_once_and_from_others_if_asked_for() {
        let plan = |takeover, value: &str, lease| {
            plan(&record(OverwriteRules { update: false, takeover }), &[entry(UPSTREAM, value, lease)])
        };
        let is_written = |plan: Result<_, Owner>| plan.is_ok();
        assert!(is_written(plan(false, "10.0.0.1:80", 9)), "the same address");
        assert!(is_written(plan(false, r#"{"address":"10.0.0.1:80","state":"down"}"#, 9)), "the same address");
        assert!(is_written(plan(false, "10.0.0.2:80", 7)), "our own lease");
        assert!(is_written(plan(true, "10.0.0.2:80", 9)), "takeover");
        let owner = |address: &str, lease| Err(Owner { address: address.to_owned(), lease });
        assert_eq!(plan(false, "10.0.0.2:80", 9), owner("10.0.0.2:80", Some(LeaseId::from(9))));
        assert_eq!(plan(false, "10.0.0.2:80", 0), owner("10.0.0.2:80", None));
        assert_eq!(plan(false, "garbage", 0), owner("garbage", None));
        assert_eq!(plan(false, &"x".repeat(999), 0), owner(&format!("{}…", "x".repeat(200)), None));
    }

    #[test]
    fn a_record_that_has_stood_is_lost_to_another_announcer_and_to_no_hand() {
        let owner = |tenure, takeover, value: &str, lease| {
            let record = record(OverwriteRules { update: false, takeover });
            record.find_other_owner(&entry(UPSTREAM, value, lease), ours(), tenure).map(|owner| owner.address)
        };
        let held = OwnershipHistory { has_held: true, yielded_to: None };
        assert_eq!(owner(held, false, "10.0.0.1:80", 9).as_deref(), Some("10.0.0.1:80"), "a twin with our address");
        assert_eq!(
            owner(held, true, "10.0.0.2:80", 9).as_deref(),
            Some("10.0.0.2:80"),
            "--takeover takes nothing back"
        );
        assert_eq!(owner(held, false, "10.0.0.1:80", 7), None, "our own lease");
        assert_eq!(owner(held, false, "10.0.0.2:80", 0), None, "by hand");
        assert_eq!(owner(held, false, "garbage", 0), None, "by hand");
        let permanent = r#"{"address":"10.0.0.2:80","permanent":true}"#;
        assert_eq!(owner(held, false, permanent, 0).as_deref(), Some("10.0.0.2:80"), "meant to last");
        assert_eq!(owner(held, false, &permanent.replace("0.2", "0.1"), 0), None, "our address, by hand");
        let yielded = OwnershipHistory { has_held: false, yielded_to: Some(LeaseId::from(9)) };
        for takeover in [false, true] {
            assert!(owner(yielded, takeover, "10.0.0.1:80", 9).is_some(), "it took the record over before");
            assert!(owner(yielded, takeover, "10.0.0.1:80", 8).is_none(), "another one may be ourselves as of before");
        }
    }

    #[test]
    fn only_a_hand_written_record_of_our_address_is_taken_back_on_the_way_out() {
        let record = record(OverwriteRules::default());
        let lease = LeaseId::from(7);
        let retaken = |state, value: &str, lease_of: i64| {
            let mut draft = Draft::default();
            record.add_reclaim(&mut draft, state, lease, &entry(UPSTREAM, value, lease_of)).then_some(draft.txn)
        };
        let unchanged = || Txn::new().only_if(Condition::ModRevisionIs(UPSTREAM.into(), 5));
        let drained = unchanged().put(UPSTREAM, r#"{"address":"10.0.0.1:80","state":"drain"}"#, Some(lease));
        assert_eq!(retaken(Some(UpstreamState::Drain), "10.0.0.1:80", 0), Some(drained.or_get(UPSTREAM)));
        assert_eq!(retaken(None, "10.0.0.1:80", 0), Some(unchanged().delete(UPSTREAM).or_get(UPSTREAM)));
        assert_eq!(retaken(None, "10.0.0.1:80", 9), None, "another announcer's");
        assert_eq!(retaken(None, "10.0.0.2:80", 0), None, "another address");
        assert_eq!(retaken(None, r#"{"address":"10.0.0.1:80","permanent":true}"#, 0), None, "meant to last");
    }

    #[test]
    fn a_record_says_no_more_than_it_must() {
        let record = record(OverwriteRules::default());
        assert_eq!(record.encode_value(UpstreamState::Ready, ours()), "10.0.0.1:80");
        assert_eq!(record.encode_value(UpstreamState::Drain, ours()), r#"{"address":"10.0.0.1:80","state":"drain"}"#);
        assert_eq!(record.encode_value(UpstreamState::Ready, None), r#"{"address":"10.0.0.1:80","permanent":true}"#);
    }

    #[test]
    fn only_ones_own_address_is_deregistered() {
        let record = record(OverwriteRules { update: false, takeover: true });
        assert!(record.deregistration_txn(&entry(UPSTREAM, "10.0.0.1:80", 0)).is_some());
        assert!(record.deregistration_txn(&entry(UPSTREAM, "10.0.0.2:80", 0)).is_none());
        assert!(record.deregistration_txn(&entry(UPSTREAM, "garbage", 0)).is_none());
    }
}
