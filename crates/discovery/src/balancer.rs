//! The balancer record, the value of `balancers/<node>`: the changes that a balancer has applied, and the keys that it
//! can't apply.
//!
//! The announcer and discoverctl wait for balancers by it. A record that can't be parsed acknowledges nothing. Pure: no
//! I/O, no clock.

pub mod api;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use records::{BalancerRecords, QuarantinedKey};

use crate::refusal::escape_text;
use crate::{Key, Refusal, ServiceId, UpstreamId};

/// The most characters of a reason. The balancer's API has the whole reason.
const LONGEST_REASON: usize = 300;

/// The longest value that is read, in bytes. It is etcd's limit of a request (`--max-request-bytes`), so that no value that
/// a confgen could write is ever too long.
const LONGEST: usize = 1536 * 1024;

/// The value of `balancers/<node>`. Services are named as their sections are, `http-shop`, upstreams as HAProxy's log
/// names a server, `http-shop/node-1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BalancerRecord {
    /// The cluster id of the store that the revisions belong to. It is printed as text, because many JSON readers lose
    /// precision above 2^53. Text and numbers are read.
    #[serde(serialize_with = "as_text", deserialize_with = "text_or_number")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub cluster: u64,
    /// The newest revision that confgen has received.
    #[serde(default)]
    pub seen: i64,
    /// HAProxy runs every change of a service's key up to this revision, except for pending services and quarantined keys.
    pub applied: i64,
    /// The URL of the balancer's API. `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The id of the confgen process, new at each start. Its API has the same one. `None` from an older confgen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// HAProxy's version. `None` until HAProxy has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<String>,
    /// The pending services: a change of theirs waits for a restart of HAProxy.
    pub pending: BTreeSet<String>,
    /// The upstreams that are retained although their keys are gone.
    pub held: BTreeSet<String>,
    /// The keys that are retained since the store was reset. `None` from an older confgen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<RetainedAfterReset>,
    /// The number of upstreams that the removal guard retains. `None` from an older confgen, which releases none of them
    /// on an acceptance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarded: Option<usize>,
    /// The keys that are not applied, relative to the prefix, each with the reason.
    #[serde(default)]
    pub quarantined: BTreeMap<String, String>,
    /// The draining upstreams, each with its session count. An upstream is in here with 0 too, while an old HAProxy process
    /// may still send it a request.
    pub draining: BTreeMap<String, u64>,
    /// The names of the lists that are cut. A missing entry of these counts as in them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub more: BTreeSet<String>,
    /// By name of a cut list, the services of the entries that it lacks. `-` stands for keys of no service. A list that is in
    /// `more` and not in here may lack entries of any service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cut: BTreeMap<String, BTreeSet<String>>,
}

/// The keys that a balancer retains since the store was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RetainedAfterReset {
    /// The revision at which the balancer found the store reset. 0 if it retains nothing.
    pub revision: i64,
    /// The number of retained keys.
    pub keys: usize,
}

impl BalancerRecord {
    /// The most entries of a list.
    pub const MAX_ENTRIES: usize = 2_000;

    /// The most bytes of a list's entries, as JSON. Four full lists leave room in the 1.5 MiB that etcd takes.
    const MAX_LIST_BYTES: usize = 256 * 1024;

    /// The most services that are named as cut. With more of them, the list is cut for all services.
    const MAX_CUT_SERVICES: usize = 200;

    /// An upstream's name in the lists: `http-shop/node-1`.
    pub fn server_name(service: &ServiceId, upstream: &UpstreamId) -> String {
        format!("{service}/{upstream}")
    }

    /// Reads a value. Unknown fields are ignored, so that a newer confgen may add some.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        if value.len() > LONGEST {
            return Err(Refusal::TooLong { length: value.len(), limit: LONGEST });
        }
        serde_json::from_slice(value).map_err(|error| Refusal::Json(escape_text(&error.to_string(), 200).into()))
    }

    /// The record with lists that fit into a key, and long reasons that end in `…`.
    ///
    /// A list is cut by service. Services with the fewest entries are listed whole, and `cut` names the others. So a long
    /// list of one service hides nothing of another one.
    #[must_use]
    pub fn fit_into_key(mut self) -> Self {
        for reason in self.quarantined.values_mut() {
            if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
                reason.truncate(end);
                reason.push('…');
            }
        }
        let pending = Cut::choose_entries(self.pending.iter().map(|name| sized_name(name)), service_of_entry);
        self.pending.retain(|name| pending.includes_entry(name));
        let held = Cut::choose_entries(self.held.iter().map(|name| sized_name(name)), service_of_entry);
        self.held.retain(|name| held.includes_entry(name));
        let quarantined = self.quarantined.iter().map(|(key, why)| (key.as_str(), json_length(key) + json_length(why)));
        let quarantined = Cut::choose_entries(quarantined, service_of_key);
        self.quarantined.retain(|key, _| quarantined.includes_entry(key));
        let draining = self.draining.keys().map(|name| (name.as_str(), json_length(name) + LONGEST_COUNT));
        let draining = Cut::choose_entries(draining, service_of_entry);
        self.draining.retain(|name, _| draining.includes_entry(name));
        for (list, cut) in [(PENDING, pending), (HELD, held), (QUARANTINED, quarantined), (DRAINING, draining)] {
            self.note_cut(list, cut);
        }
        self.check_invariants();
        self
    }

    /// The record in which keys of these services may be quarantined without being named, since confgen has forgotten them.
    /// `others`: so may keys of further services.
    #[must_use]
    pub fn with_unnamed_quarantine<'a>(mut self, services: impl Iterator<Item = &'a ServiceId>, others: bool) -> Self {
        let services: BTreeSet<String> = services.map(ToString::to_string).collect();
        if services.is_empty() && !others {
            return self;
        }
        let is_cut_for_all = self.more.contains(QUARANTINED) && !self.cut.contains_key(QUARANTINED);
        self.more.insert(QUARANTINED.to_owned());
        let cut = self.cut.entry(QUARANTINED.to_owned()).or_default();
        cut.extend(services);
        if is_cut_for_all || others || cut.len() > Self::MAX_CUT_SERVICES {
            self.cut.remove(QUARANTINED);
        }
        self
    }

    /// Panics in debug builds if a list is too long for a key, or if the record names services of a list that isn't cut.
    fn check_invariants(&self) {
        let lengths = [self.pending.len(), self.held.len(), self.quarantined.len(), self.draining.len()];
        debug_assert!(lengths.iter().all(|length| *length <= Self::MAX_ENTRIES), "too long: {lengths:?}");
        debug_assert!(self.cut.keys().all(|list| self.more.contains(list)), "cut and whole: {:?}", self.cut.keys());
    }

    fn note_cut(&mut self, list: &str, cut: Cut) {
        if cut.dropped.is_empty() {
            return;
        }
        self.more.insert(list.to_owned());
        // The list of pending services is one of services. Those that it lacks would have to be in `cut`, which is no shorter.
        if cut.services.len() <= Self::MAX_CUT_SERVICES && list != PENDING {
            self.cut.insert(list.to_owned(), cut.services);
        }
    }

    /// True if a list may lack entries of this service. Their absence then means nothing.
    fn may_omit_entries(&self, list: &str, service: &str) -> bool {
        self.more.contains(list) && self.cut.get(list).is_none_or(|services| services.contains(service))
    }

    /// True if HAProxy runs this upstream's record as of this revision of this store, and its drain is over: no process
    /// has a session with it or may send it a request. A drain waits for this answer.
    pub fn acknowledges_upstream(
        &self,
        cluster: u64,
        revision: i64,
        service: &ServiceId,
        upstream: &UpstreamId,
    ) -> bool {
        let server = Self::server_name(service, upstream);
        self.has_applied_upstream(cluster, revision, service, upstream)
            && !self.draining.contains_key(&server)
            && !self.may_omit_entries(DRAINING, &service.to_string())
    }

    /// True if the balancer retains keys that a reset store lacks, or may do so.
    pub fn retains_lost_keys(&self) -> bool {
        // An older confgen has no `lost`. Its `held` names upstreams only, with those of the removal guard.
        self.lost.map_or(!self.held.is_empty() || self.more.contains("held"), |lost| lost.keys > 0)
    }

    /// True if the balancer retains upstreams without keys, after a reset of the store or by the removal guard, or may do so.
    /// An acceptance ends that.
    pub fn retains_anything(&self) -> bool {
        self.retains_lost_keys() || self.guarded.is_some_and(|count| count > 0)
    }

    /// The reason why a key, relative to the prefix, is quarantined. `None` if the record doesn't list the key, which a cut
    /// list may lack.
    pub fn quarantine_reason(&self, key: &str) -> Option<&str> {
        self.quarantined.get(key).map(String::as_str)
    }

    /// True if the key may be quarantined, and missing because the list is cut.
    pub fn may_omit_quarantine(&self, key: &str) -> bool {
        self.quarantine_reason(key).is_none() && self.may_omit_entries(QUARANTINED, &service_of_key(key))
    }

    /// True if HAProxy runs this upstream's record as of this revision of this store. The upstream may still drain, and its
    /// record may be quarantined.
    pub fn has_applied_upstream(
        &self,
        cluster: u64,
        revision: i64,
        service: &ServiceId,
        upstream: &UpstreamId,
    ) -> bool {
        self.has_applied_service(cluster, revision, service)
            && !self.held.contains(&Self::server_name(service, upstream))
            && !self.may_omit_entries(HELD, &service.to_string())
    }

    /// True if HAProxy runs this service's keys as of this revision of this store, except for those that are quarantined.
    pub fn has_applied_service(&self, cluster: u64, revision: i64, service: &ServiceId) -> bool {
        // A reset store counts its revisions from 1 again, so a revision means nothing without its cluster.
        self.cluster == cluster
            && self.applied >= revision
            && !self.pending.contains(&service.to_string())
            && !self.may_omit_entries(PENDING, &service.to_string())
    }
}

/// Prints the JSON value that [`BalancerRecord::parse`] reads.
impl fmt::Display for BalancerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

const PENDING: &str = "pending";
const HELD: &str = "held";
const QUARANTINED: &str = "quarantined";
const DRAINING: &str = "draining";

/// The entry of `cut` that stands for keys of no service. No service is called so.
const NO_SERVICE_NAME: &str = "-";

/// The longest session count with its colon and comma, in bytes.
const LONGEST_COUNT: usize = 22;

/// The service of a list's entry, which is an upstream's name or the service's own.
fn service_of_entry(entry: &str) -> String {
    entry.split_once('/').map_or(entry, |(service, _)| service).to_owned()
}

fn service_of_key(key: &str) -> String {
    let key = key.parse::<Key>().ok();
    key.and_then(|key| key.service_id().map(ToString::to_string)).unwrap_or_else(|| NO_SERVICE_NAME.to_owned())
}

/// The most bytes of a text in JSON, with its quotes and a comma.
fn json_length(text: &str) -> usize {
    // An escape such as `\u0001` has six bytes.
    text.bytes().map(|byte| if byte < b' ' || byte == b'"' || byte == b'\\' { 6 } else { 1 }).sum::<usize>() + 3
}

/// An entry of a list of names, with its bytes in JSON.
fn sized_name(name: &str) -> (&str, usize) {
    (name, json_length(name))
}

/// The entries of a list that don't fit into a record.
struct Cut {
    dropped: BTreeSet<String>,
    /// The services of the dropped entries.
    services: BTreeSet<String>,
}

impl Cut {
    /// Chooses the entries, given with their length in bytes, that fit. `service` names an entry's service.
    fn choose_entries<'a>(entries: impl Iterator<Item = (&'a str, usize)>, service: fn(&str) -> String) -> Self {
        let entries: Vec<(&str, usize)> = entries.collect();
        let mut cut = Self { dropped: BTreeSet::new(), services: BTreeSet::new() };
        let bytes = entries.iter().map(|(_, bytes)| bytes).sum::<usize>();
        if entries.len() <= BalancerRecord::MAX_ENTRIES && bytes <= BalancerRecord::MAX_LIST_BYTES {
            return cut;
        }
        let mut by_service: BTreeMap<String, Vec<(&str, usize)>> = BTreeMap::new();
        for entry in entries {
            by_service.entry(service(entry.0)).or_default().push(entry);
        }
        let mut smallest_first: Vec<(String, Vec<(&str, usize)>)> = by_service.into_iter().collect();
        smallest_first.sort_by_key(|(_, entries)| entries.len());
        let (mut count, mut room) = (BalancerRecord::MAX_ENTRIES, BalancerRecord::MAX_LIST_BYTES);
        for (service, entries) in smallest_first {
            for (entry, bytes) in entries {
                // No `break` at the first that doesn't fit: a shorter entry may still have room.
                if count > 0 && bytes <= room {
                    (count, room) = (count - 1, room - bytes);
                } else {
                    cut.dropped.insert(entry.to_owned());
                    cut.services.insert(service.clone());
                }
            }
        }
        cut
    }

    fn includes_entry(&self, entry: &str) -> bool {
        !self.dropped.contains(entry)
    }
}

pub(crate) fn as_text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

pub(crate) fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    const MOST: usize = BalancerRecord::MAX_ENTRIES;
    const VALUE: &str = r#"{"cluster":"14841639068965178418","seen":12,"applied":10,"url":"http://10.0.0.5:9101","haproxy":"2.6.12","pending":["http-new"],"held":["http-shop/b"],"quarantined":{"http-services/x/tls":"`maybe`"},"draining":{"http-shop/a":3}}"#;

    #[test]
    fn a_service_whose_quarantined_keys_are_forgotten_counts_as_cut() {
        let named = |services: &[&str], others: bool| {
            let services: Vec<ServiceId> = services.iter().map(|name| service(name)).collect();
            BalancerRecord::parse(VALUE.as_bytes()).unwrap().with_unnamed_quarantine(services.iter(), others)
        };
        let may_omit = |record: &BalancerRecord, service: &str| {
            record.may_omit_quarantine(&format!("http-services/{service}/upstreams/a"))
        };
        assert!(named(&[], false).more.is_empty());
        let one = named(&["shop"], false);
        assert!(may_omit(&one, "shop") && !may_omit(&one, "blog"));
        assert!(may_omit(&named(&["shop"], true), "blog"));
        let many: Vec<String> = (0..=BalancerRecord::MAX_CUT_SERVICES).map(|at| format!("s{at}")).collect();
        let many = named(&many.iter().map(String::as_str).collect::<Vec<_>>(), false);
        assert!(may_omit(&many, "blog") && many.cut.is_empty());
    }

    fn service(name: &str) -> ServiceId {
        ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
    }

    fn acknowledges(balancer: &BalancerRecord, revision: i64, service_name: &str, upstream: &str) -> bool {
        balancer.acknowledges_upstream(balancer.cluster, revision, &service(service_name), &upstream.parse().unwrap())
    }

    fn full(count: usize) -> BalancerRecord {
        let name = |n| format!("http-{n:0249}/{n:0253}");
        let (pending, held) = ((0..count).map(name).collect(), (0..count).map(name).collect());
        let quarantined = (0..count).map(|n| (name(n), "ü".repeat(9999))).collect();
        let draining = (0..count).map(|n| (name(n), u64::MAX)).collect();
        BalancerRecord { applied: 10, pending, held, quarantined, draining, ..BalancerRecord::default() }
    }

    #[test]
    fn a_value_reads_and_prints() {
        let balancer = BalancerRecord::parse(VALUE.as_bytes()).unwrap();
        assert_eq!(balancer.to_string(), VALUE);
        assert_eq!(balancer.cluster, 14_841_639_068_965_178_418);
        let number = VALUE.replace(r#""14841639068965178418""#, "14841639068965178418");
        assert_eq!(BalancerRecord::parse(number.as_bytes()), Ok(balancer));
        let terse = br#"{"cluster":7,"applied":1,"pending":[],"held":[],"draining":{},"later":[1]}"#;
        assert!(acknowledges(&BalancerRecord::parse(terse).unwrap(), 1, "shop", "a"), "unknown fields are ignored");
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in ["", "{}", "[]", "7", "null", "yes", "\u{0}", &"[".repeat(100_000)] {
            assert!(BalancerRecord::parse(garbage.as_bytes()).is_err(), "{garbage:.20}");
        }
        for (from, to) in [
            (r#""held":["http-shop/b"],"#, ""),
            (r#""applied":10"#, r#""applied":"10""#),
            (r#""applied":10"#, r#""applied":1e99"#),
            (r#""14841639068965178418""#, r#""-1""#),
            (r#""14841639068965178418""#, "1e30"),
            (r#"{"http-shop/a":3}"#, r#"{"http-shop/a":-1}"#),
            (r#"{"http-shop/a":3}"#, "[]"),
            (r#""pending":["#, r#""pending":[],"pending":["#),
        ] {
            let value = VALUE.replacen(from, to, 1);
            assert_ne!(value, VALUE);
            assert!(BalancerRecord::parse(value.as_bytes()).is_err(), "{value}");
        }
        assert!(BalancerRecord::parse(&[0xff, 0xfe]).is_err());
        assert!(matches!(BalancerRecord::parse(&vec![b' '; LONGEST + 1]), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn a_balancer_acknowledges_applied_upstreams() {
        let balancer = BalancerRecord::parse(VALUE.as_bytes()).unwrap();
        assert!(acknowledges(&balancer, 10, "shop", "c"));
        assert!(!acknowledges(&balancer, 11, "shop", "c"), "not applied yet");
        assert!(!acknowledges(&balancer, 10, "new", "c"), "pending");
        assert!(!acknowledges(&balancer, 10, "shop", "b"), "held");
        assert!(!acknowledges(&balancer, 10, "shop", "a"), "still has sessions");
        assert!(balancer.has_applied_upstream(balancer.cluster, 10, &service("shop"), &"a".parse().unwrap()));
        assert!(!balancer.acknowledges_upstream(1, 10, &service("shop"), &"c".parse().unwrap()), "another store");
        let tcp = ServiceId { kind: Kind::Tcp, ..service("new") };
        assert!(
            balancer.acknowledges_upstream(balancer.cluster, 10, &tcp, &"c".parse().unwrap()),
            "tcp-new is another one"
        );
    }

    #[test]
    fn what_is_missing_from_a_cut_list_counts_as_in_it() {
        let whole = full(200).fit_into_key();
        assert!(whole.more.is_empty() && acknowledges(&whole, 10, "shop", "a"));
        let cut = full(MOST + 1).fit_into_key();
        assert_eq!(cut.more.len(), 4);
        // These quarantined keys belong to no service. The other lists have entries of too many services to name them.
        assert_eq!(cut.cut, BTreeMap::from([(QUARANTINED.to_owned(), [NO_SERVICE_NAME.to_owned()].into())]));
        assert!(
            [cut.pending.len(), cut.held.len(), cut.quarantined.len(), cut.draining.len()].iter().all(|it| *it < MOST)
        );
        for list in ["pending", "held", "draining"] {
            // An older confgen writes `more` without `cut`.
            let one = BalancerRecord { more: [list.to_owned()].into(), ..whole.clone() };
            assert!(!acknowledges(&one, 10, "shop", "a"), "{list}");
        }
        let other = BalancerRecord { more: ["quarantined".to_owned()].into(), ..whole };
        assert!(acknowledges(&other, 10, "shop", "a"));
    }

    #[test]
    fn a_long_list_of_one_service_says_nothing_of_another() {
        let many = |service: &str, count: usize| (0..count).map(|n| format!("{service}/n{n:05}")).collect::<Vec<_>>();
        let draining = many("http-big", MOST + 10).into_iter().chain(many("http-shop", 1));
        let held = many("http-huge", MOST + 10).into_iter().chain(many("http-mail", 3));
        let keys = (0..=MOST).map(|n| (format!("http-services/odd/overrides/n{n}"), "why".to_owned()));
        let balancer = BalancerRecord {
            applied: 10,
            draining: draining.map(|name| (name, 3)).collect(),
            held: held.collect(),
            quarantined: keys.chain([("nonsense/x".to_owned(), "why".to_owned())]).collect(),
            ..BalancerRecord::default()
        };
        let text = balancer.clone().fit_into_key().to_string();
        let cut = BalancerRecord::parse(text.as_bytes()).unwrap();
        assert_eq!((cut.draining.len(), cut.held.len(), cut.quarantined.len()), (MOST, MOST, MOST));
        let names = |list: &str| cut.cut[list].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(
            [names("draining"), names("held"), names("quarantined")],
            [["http-big"], ["http-huge"], ["http-odd"]]
        );
        assert!(acknowledges(&cut, 10, "shop", "a"), "another service's drain");
        assert!(!acknowledges(&cut, 10, "shop", "n00000"), "it is listed");
        assert!(!acknowledges(&cut, 10, "big", "a"), "it may be among what is missing");
        assert!(acknowledges(&cut, 10, "mail", "a") && !acknowledges(&cut, 10, "mail", "n00001"));
        assert!(!acknowledges(&cut, 10, "huge", "a"));
        assert!(cut.may_omit_quarantine("http-services/odd/upstreams/a"));
        assert!(!cut.may_omit_quarantine("http-services/shop/upstreams/a") && !cut.may_omit_quarantine("other/x"));
        // One deployment's drains fit into the list, so the balancer acknowledges each of them when it is over.
        let draining: Vec<String> = many("http-big", 210);
        let some =
            BalancerRecord { applied: 10, draining: draining.into_iter().map(|name| (name, 1)).collect(), ..cut };
        let some = BalancerRecord { more: BTreeSet::new(), cut: BTreeMap::new(), held: BTreeSet::new(), ..some }
            .fit_into_key();
        assert!(
            some.cut.is_empty()
                && acknowledges(&some, 10, "big", "n00210")
                && !acknowledges(&some, 10, "big", "n00209")
        );
    }

    #[test]
    fn a_cut_value_fits_into_a_key() {
        let text = full(5000).fit_into_key().to_string();
        assert!(text.len() < LONGEST * 3 / 4, "{}", text.len());
        assert_eq!(BalancerRecord::parse(text.as_bytes()).unwrap().fit_into_key().to_string(), text);
        let name = |n: usize| format!("http-x/{n}\u{1}{}", "\"".repeat(3000));
        let odd = BalancerRecord { held: (0..9999).map(name).collect(), ..BalancerRecord::default() }.fit_into_key();
        assert!(odd.to_string().len() < LONGEST / 2);
    }

    #[test]
    #[should_panic(expected = "too long")]
    fn a_list_that_is_too_long_for_a_key_panics_in_debug_builds() {
        full(BalancerRecord::MAX_ENTRIES + 1).check_invariants();
    }

    #[test]
    #[should_panic(expected = "cut and whole")]
    fn services_of_a_list_that_is_whole_panic_in_debug_builds() {
        let cut = BTreeMap::from([(HELD.to_owned(), ["http-shop".to_owned()].into())]);
        BalancerRecord { cut, ..BalancerRecord::default() }.check_invariants();
    }
}
