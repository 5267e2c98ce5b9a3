//! What a balancer says of itself below `balancers/`: what it runs, and what it can't follow.
//!
//! Whoever waits for balancers reads it. Garbage is a balancer that acknowledges nothing; it is never taken for a yes.

pub mod api;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refusal::escape_text;
use crate::{Key, Refusal, ServiceId, UpstreamId};

/// Characters that a reason keeps; the balancer's API has it whole.
const LONGEST_REASON: usize = 300;

/// The longest value that is read: etcd's limit of a request, so that no value of ours is ever too long.
const LONGEST: usize = 1536 * 1024;

/// The value of `balancers/<node>`. Services are named as their sections are, `http-shop`, upstreams as HAProxy's log
/// names a server, `http-shop/node-1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerRecord {
    /// The cluster id of the store that the revisions are of. Printed as text, since JSON's numbers end at 2^53 for
    /// many readers; read as either.
    #[serde(serialize_with = "as_text", deserialize_with = "text_or_number")]
    pub cluster: u64,
    /// The newest revision that it has heard of.
    #[serde(default)]
    pub seen: i64,
    /// HAProxy runs every change of a service's key up to this revision, but for what is named as pending.
    pub applied: i64,
    /// Where its API is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The confgen process that wrote the value, as its API says too. Made anew at each start. None from an older confgen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// HAProxy's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<String>,
    /// The services whose last change HAProxy doesn't run yet.
    pub pending: BTreeSet<String>,
    /// The upstreams that it keeps though the store has them no longer.
    pub held: BTreeSet<String>,
    /// What it retains since the store was reset; None if an older confgen doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<RetainedAfterReset>,
    /// How many upstreams its removal guard retains; None if an older confgen doesn't say, and accepts nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarded: Option<usize>,
    /// The keys that it refuses, relative to the prefix, and why.
    #[serde(default)]
    pub quarantined: BTreeMap<String, String>,
    /// The upstreams that finish requests, and with how many sessions. An upstream stands here at 0 too, for as long as
    /// an old process may send it one more request.
    pub draining: BTreeMap<String, u64>,
    /// The lists that are cut: what is missing from them counts as in them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub more: BTreeSet<String>,
    /// By list that is cut, the services of which entries are missing; `-` are keys of no service. If a list in `more` is
    /// not here, entries of any service may be missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cut: BTreeMap<String, BTreeSet<String>>,
}

/// What a balancer retains of a store that was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedAfterReset {
    /// The revision at which the balancer found the store reset; 0 if it retains nothing.
    pub revision: i64,
    /// How many keys of the store before it retains.
    pub keys: usize,
}

impl BalancerRecord {
    /// The most entries of a list.
    pub const MAX_ENTRIES: usize = 2_000;

    /// The most bytes of a list's entries, as JSON: four full lists leave room in the 1.5 MiB that etcd takes.
    const MAX_LIST_BYTES: usize = 256 * 1024;

    /// The most services that are named as cut. If there are more, the list is cut for all.
    const MAX_CUT_SERVICES: usize = 200;

    /// An upstream's name in the lists: `http-shop/node-1`.
    pub fn server_name(service: &ServiceId, upstream: &UpstreamId) -> String {
        format!("{service}/{upstream}")
    }

    /// Reads a value, whoever wrote it.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        if value.len() > LONGEST {
            return Err(Refusal::TooLong { length: value.len(), most: LONGEST });
        }
        serde_json::from_slice(value).map_err(|error| Refusal::Json(escape_text(&error.to_string(), 200).into()))
    }

    /// The same with lists that fit into a key, and long reasons that end in `…`. A list is cut by service: those with the
    /// fewest entries are listed whole, and `cut` names the others, so that a long list of one service says nothing of
    /// another one.
    #[must_use]
    pub fn fit_into_key(mut self) -> Self {
        for reason in self.quarantined.values_mut() {
            if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
                reason.truncate(end);
                reason.push('…');
            }
        }
        let pending =
            Cut::choose_entries(self.pending.iter().map(|name| (name.as_str(), json_length(name))), service_of_entry);
        self.pending.retain(|name| pending.includes_entry(name));
        let held =
            Cut::choose_entries(self.held.iter().map(|name| (name.as_str(), json_length(name))), service_of_entry);
        self.held.retain(|name| held.includes_entry(name));
        let quarantined = self.quarantined.iter().map(|(key, why)| (key.as_str(), json_length(key) + json_length(why)));
        let quarantined = Cut::choose_entries(quarantined, service_of_key);
        self.quarantined.retain(|key, _| quarantined.includes_entry(key));
        let draining = self.draining.keys().map(|name| (name.as_str(), json_length(name) + LONGEST_COUNT));
        let draining = Cut::choose_entries(draining, service_of_entry);
        self.draining.retain(|name, _| draining.includes_entry(name));
        for (list, cut) in [(PENDING, pending), (HELD, held), (QUARANTINED, quarantined), (DRAINING, draining)] {
            if cut.dropped.is_empty() {
                continue;
            }
            self.more.insert(list.to_owned());
            // Which services wait is what the list of them says: one that is missing can't be named.
            if cut.services.len() <= Self::MAX_CUT_SERVICES && list != PENDING {
                self.cut.insert(list.to_owned(), cut.services);
            }
        }
        self
    }

    /// Whether a list may lack entries of this service, so that nothing follows from what it lacks.
    fn may_omit_entries(&self, list: &str, service: &str) -> bool {
        self.more.contains(list) && self.cut.get(list).is_none_or(|services| services.contains(service))
    }

    /// Whether it runs what this upstream's record was at this revision of this store, and nobody sends requests there
    /// who shouldn't: the answer that a drain waits for.
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

    /// It retains keys that a reset store lacks, or may do so.
    pub fn retains_lost_keys(&self) -> bool {
        // An older confgen names only upstreams, and those of its removal guard among them.
        self.lost.map_or(!self.held.is_empty() || self.more.contains("held"), |lost| lost.keys > 0)
    }

    /// It retains upstreams whose keys are gone, or may do so: after a reset of the store or by its removal guard. An
    /// acceptance ends that.
    pub fn retains_anything(&self) -> bool {
        self.retains_lost_keys() || self.guarded.is_some_and(|count| count > 0)
    }

    /// Why it refuses a key, relative to the prefix; None if it doesn't, or if its list lacks the key.
    pub fn quarantine_reason(&self, key: &str) -> Option<&str> {
        self.quarantined.get(key).map(String::as_str)
    }

    /// Whether it may refuse this key and not say so, because its list is cut.
    pub fn may_omit_quarantine(&self, key: &str) -> bool {
        self.quarantine_reason(key).is_none() && self.may_omit_entries(QUARANTINED, &service_of_key(key))
    }

    /// Whether it runs what this upstream's record was at this revision of this store; what a drain leaves behind is
    /// not asked, nor whether it refuses the record.
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

    /// Whether it runs what this service's keys were at this revision of this store, but for those that it refuses.
    pub fn has_applied_service(&self, cluster: u64, revision: i64, service: &ServiceId) -> bool {
        self.cluster == cluster
            && self.applied >= revision
            && !self.pending.contains(&service.to_string())
            && !self.may_omit_entries(PENDING, &service.to_string())
    }
}

/// The value as it is written.
impl fmt::Display for BalancerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

const PENDING: &str = "pending";
const HELD: &str = "held";
const QUARANTINED: &str = "quarantined";
const DRAINING: &str = "draining";

/// `cut` names keys of no service so.
const NO_SERVICE_NAME: &str = "-";

/// The longest session count with its colon and comma.
const LONGEST_COUNT: usize = 22;

/// The service of an upstream, or of a service's own name, in a list.
fn service_of_entry(server: &str) -> String {
    server.split_once('/').map_or(server, |(service, _)| service).to_owned()
}

/// The service of a key.
fn service_of_key(key: &str) -> String {
    let key = key.parse::<Key>().ok();
    key.and_then(|key| key.service_id().map(ToString::to_string)).unwrap_or_else(|| NO_SERVICE_NAME.to_owned())
}

/// The bytes of a text in JSON, with quotes and a comma. A character that needs an escape takes six at most.
fn json_length(text: &str) -> usize {
    let of = |byte: u8| if byte < b' ' || byte == b'"' || byte == b'\\' { 6 } else { 1 };
    text.bytes().map(of).sum::<usize>() + 3
}

/// What of a list does not fit.
struct Cut {
    /// The entries.
    dropped: BTreeSet<String>,
    /// Their services.
    services: BTreeSet<String>,
}

impl Cut {
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
    fn it_acknowledges_what_it_runs() {
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
        // These keys are of no service. The other lists have too many services to name them.
        assert_eq!(cut.cut, BTreeMap::from([(QUARANTINED.to_owned(), [NO_SERVICE_NAME.to_owned()].into())]));
        assert!(
            [cut.pending.len(), cut.held.len(), cut.quarantined.len(), cut.draining.len()].iter().all(|it| *it < MOST)
        );
        for list in ["pending", "held", "draining"] {
            // So does an older confgen say it.
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
        // As many as one deployment drains at a time are listed one by one, and each is acknowledged when it is over.
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
}
