//! Decides if the id belongs to this announcer or to another owner. Pure.

use std::fmt;

use discovery::{Entry, Upstream, UpstreamAddress};
use registry::LeaseId;

use crate::record::Record;
use crate::record::difference::truncate_value;

/// Past of this announcer with a key. It decides what may be done to an entry that another writer put there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnershipHistory {
    /// True if the record was stored under the present lease.
    pub(crate) has_held: bool,
    /// Lease of another announcer that took the record over from this one. The record is not taken back from it.
    /// Otherwise two announcers with one id would take turns for ever.
    pub(crate) yielded_to: Option<LeaseId>,
}

/// Owner of an id, as the store shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Address of the record, or the shortened value if it can't be parsed.
    pub address: String,
    /// Lease of the record. `None` never ends by itself.
    pub lease: Option<LeaseId>,
}

/// Finds the owner that keeps this announcer from the id. `None` if the id is free for it.
///
/// An entry with our address counts as ours, from before a restart. A record that was stored already may be taken over by
/// another announcer, but not by a manual write: that has no lease, and is meant to last only if it is marked as
/// permanent.
pub(crate) fn find_other_owner(
    record: &Record,
    entry: &Entry,
    lease: Option<LeaseId>,
    history: OwnershipHistory,
) -> Option<Owner> {
    let entry_lease = (entry.lease != 0).then(|| LeaseId::from(entry.lease));
    let has_our_address = parse_address(entry) == Some(record.address());
    let is_free = match entry_lease {
        Some(_) if entry_lease == lease => true,
        // --takeover doesn't count here: it is meant for the start, not for a record that was lost since.
        Some(_) if history.has_held || entry_lease == history.yielded_to => false,
        None if history.has_held => has_our_address || !is_permanent(entry),
        Some(_) | None => {
            let rules = record.overwrite_rules;
            has_our_address || rules.takeover || (rules.takeover_on_host && is_on_our_host(record, entry))
        }
    };
    (!is_free).then(|| Owner {
        address: parse_address(entry).map_or_else(|| truncate_value(&entry.value), |address| address.to_string()),
        lease: entry_lease,
    })
}

/// True if the entry is a record of our host, from an earlier process that lost its lease.
fn is_on_our_host(record: &Record, entry: &Entry) -> bool {
    let host = Upstream::parse(&entry.value).ok().and_then(|upstream| upstream.host);
    host.is_some() && host.as_ref() == record.host()
}

/// True if the entry is a record that is marked as permanent.
pub(crate) fn is_permanent(entry: &Entry) -> bool {
    Upstream::parse(&entry.value).is_ok_and(|upstream| upstream.permanent)
}

/// Address in the entry. `None` if it isn't a record.
pub(crate) fn parse_address(entry: &Entry) -> Option<UpstreamAddress> {
    Upstream::parse(&entry.value).ok().map(|upstream| upstream.address)
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lease {
            Some(lease) => write!(f, "{} under lease {lease}", self.address),
            None => write!(f, "{}, which is permanent", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::upstream::OverwriteRules;
    use crate::record::tests::{UPSTREAM, entry, on_host, our_lease, record_with};

    #[test]
    fn an_agent_takes_its_own_hosts_ids_over_and_no_others() {
        let rules = OverwriteRules { takeover_on_host: true, ..OverwriteRules::default() };
        let is_free = |rules: OverwriteRules, value: &str| {
            let record = on_host(&record_with(rules), "web1");
            find_other_owner(&record, &entry(UPSTREAM, value, 9), Some(our_lease()), OwnershipHistory::default())
                .is_none()
        };
        assert!(is_free(rules, r#"{"address":"10.0.0.1:81","host":"web1"}"#));
        assert!(!is_free(rules, r#"{"address":"10.0.0.1:81","host":"web2"}"#));
        assert!(!is_free(rules, "10.0.0.1:81"));
        assert!(!is_free(OverwriteRules::default(), r#"{"address":"10.0.0.1:81","host":"web1"}"#));
    }

    #[test]
    fn a_record_that_has_stood_is_lost_to_another_announcer_and_to_no_hand() {
        let owner = |history, takeover, value: &str, lease| {
            let record = record_with(OverwriteRules { update: false, takeover, ..OverwriteRules::default() });
            let entry = entry(UPSTREAM, value, lease);
            find_other_owner(&record, &entry, Some(our_lease()), history).map(|owner| owner.address)
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
}
