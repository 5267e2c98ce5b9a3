//! What a balancer says of itself below `balancers/`: what it runs, and what it can't follow.
//!
//! Whoever waits for balancers reads it. Garbage is a balancer that acknowledges nothing; it is never taken for a yes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refusal::escaped;
use crate::{Refusal, ServiceId, UpstreamId};

/// Characters that a reason keeps; the balancer's API has it whole.
const LONGEST_REASON: usize = 300;

/// The longest value that is read: etcd's limit of a request, so that no value of ours is ever too long.
const LONGEST: usize = 1536 * 1024;

/// The value of `balancers/<node>`. Services are named as their sections are, `http-shop`, upstreams as HAProxy's log
/// names a server, `http-shop/node-1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balancer {
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
    pub lost: Option<Lost>,
    /// The keys that it refuses, relative to the prefix, and why.
    #[serde(default)]
    pub quarantined: BTreeMap<String, String>,
    /// The upstreams that finish requests, and with how many sessions. An upstream stands here at 0 too, for as long as
    /// an old process may send it one more request.
    pub draining: BTreeMap<String, u64>,
    /// The lists that are cut: what is missing from them counts as in them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub more: BTreeSet<String>,
}

/// What a balancer retains of a store that was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The revision at which the balancer found the store reset; 0 if it retains nothing.
    pub revision: i64,
    /// How many keys of the store before it retains.
    pub keys: usize,
}

impl Balancer {
    /// The entries that a list keeps: four full ones with the longest names are some 600 kB, etcd takes 1.5 MiB.
    pub const MOST: usize = 200;

    /// An upstream's name in the lists: `http-shop/node-1`.
    pub fn server(service: &ServiceId, upstream: &UpstreamId) -> String {
        format!("{service}/{upstream}")
    }

    /// Reads a value, whoever wrote it.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        if value.len() > LONGEST {
            return Err(Refusal::TooLong { length: value.len(), most: LONGEST });
        }
        serde_json::from_slice(value).map_err(|error| Refusal::Json(escaped(&error.to_string(), 200).into()))
    }

    /// The same with lists that fit into a key: `more` names those that are cut, and long reasons end in `…`.
    #[must_use]
    pub fn cut(mut self) -> Self {
        let Self { pending, held, quarantined, draining, more, .. } = &mut self;
        let lists = [
            ("pending", cut(pending, BTreeSet::len, BTreeSet::pop_last)),
            ("held", cut(held, BTreeSet::len, BTreeSet::pop_last)),
            ("quarantined", cut(quarantined, BTreeMap::len, BTreeMap::pop_last)),
            ("draining", cut(draining, BTreeMap::len, BTreeMap::pop_last)),
        ];
        more.extend(lists.into_iter().filter(|(_, is_cut)| *is_cut).map(|(name, _)| name.to_owned()));
        for reason in quarantined.values_mut() {
            if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
                reason.truncate(end);
                reason.push('…');
            }
        }
        self
    }

    /// Whether it runs what this upstream's record was at this revision of this store, and nobody sends requests there
    /// who shouldn't: the answer that a drain waits for.
    pub fn acknowledges(&self, cluster: u64, revision: i64, service: &ServiceId, upstream: &UpstreamId) -> bool {
        let server = Self::server(service, upstream);
        self.runs(cluster, revision, service, upstream)
            && !self.draining.contains_key(&server)
            && !self.more.contains("draining")
    }

    /// It retains keys that a reset store lacks, or may do so.
    pub fn retains_lost_keys(&self) -> bool {
        // An older confgen names only upstreams, and those of its removal guard among them.
        self.lost.map_or(!self.held.is_empty() || self.more.contains("held"), |lost| lost.keys > 0)
    }

    /// Why it refuses a key, relative to the prefix; None where it doesn't, or the list is cut before it.
    pub fn refuses(&self, key: &str) -> Option<&str> {
        self.quarantined.get(key).map(String::as_str)
    }

    /// Whether it runs what this upstream's record was at this revision of this store; what a drain leaves behind is
    /// not asked, nor whether it refuses the record.
    pub fn runs(&self, cluster: u64, revision: i64, service: &ServiceId, upstream: &UpstreamId) -> bool {
        self.follows(cluster, revision, service)
            && !self.held.contains(&Self::server(service, upstream))
            && !self.more.contains("held")
    }

    /// Whether it runs what this service's keys were at this revision of this store, but for those that it refuses.
    pub fn follows(&self, cluster: u64, revision: i64, service: &ServiceId) -> bool {
        self.cluster == cluster
            && self.applied >= revision
            && !self.pending.contains(&service.to_string())
            && !self.more.contains("pending")
    }
}

/// The value as it is written.
impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Drops what stands last until the list is short enough; whether anything was dropped.
fn cut<L, T>(list: &mut L, length: fn(&L) -> usize, drop_last: fn(&mut L) -> Option<T>) -> bool {
    let is_cut = length(list) > Balancer::MOST;
    while length(list) > Balancer::MOST {
        drop_last(list);
    }
    is_cut
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

    const MOST: usize = Balancer::MOST;
    const VALUE: &str = r#"{"cluster":"14841639068965178418","seen":12,"applied":10,"url":"http://10.0.0.5:9101","haproxy":"2.6.12","pending":["http-new"],"held":["http-shop/b"],"quarantined":{"http-services/x/tls":"`maybe`"},"draining":{"http-shop/a":3}}"#;

    fn service(name: &str) -> ServiceId {
        ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
    }

    fn acknowledges(balancer: &Balancer, revision: i64, service_name: &str, upstream: &str) -> bool {
        balancer.acknowledges(balancer.cluster, revision, &service(service_name), &upstream.parse().unwrap())
    }

    fn full(count: usize) -> Balancer {
        let name = |n| format!("http-{n:0249}/{n:0253}");
        let (pending, held) = ((0..count).map(name).collect(), (0..count).map(name).collect());
        let quarantined = (0..count).map(|n| (name(n), "ü".repeat(9999))).collect();
        let draining = (0..count).map(|n| (name(n), u64::MAX)).collect();
        Balancer { applied: 10, pending, held, quarantined, draining, ..Balancer::default() }
    }

    #[test]
    fn a_value_reads_and_prints() {
        let balancer = Balancer::parse(VALUE.as_bytes()).unwrap();
        assert_eq!(balancer.to_string(), VALUE);
        assert_eq!(balancer.cluster, 14_841_639_068_965_178_418);
        let number = VALUE.replace(r#""14841639068965178418""#, "14841639068965178418");
        assert_eq!(Balancer::parse(number.as_bytes()), Ok(balancer));
        let terse = br#"{"cluster":7,"applied":1,"pending":[],"held":[],"draining":{},"later":[1]}"#;
        assert!(acknowledges(&Balancer::parse(terse).unwrap(), 1, "shop", "a"), "unknown fields are ignored");
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in ["", "{}", "[]", "7", "null", "yes", "\u{0}", &"[".repeat(100_000)] {
            assert!(Balancer::parse(garbage.as_bytes()).is_err(), "{garbage:.20}");
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
            assert!(Balancer::parse(value.as_bytes()).is_err(), "{value}");
        }
        assert!(Balancer::parse(&[0xff, 0xfe]).is_err());
        assert!(matches!(Balancer::parse(&vec![b' '; LONGEST + 1]), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn it_acknowledges_what_it_runs() {
        let balancer = Balancer::parse(VALUE.as_bytes()).unwrap();
        assert!(acknowledges(&balancer, 10, "shop", "c"));
        assert!(!acknowledges(&balancer, 11, "shop", "c"), "not applied yet");
        assert!(!acknowledges(&balancer, 10, "new", "c"), "pending");
        assert!(!acknowledges(&balancer, 10, "shop", "b"), "held");
        assert!(!acknowledges(&balancer, 10, "shop", "a"), "still has sessions");
        assert!(balancer.runs(balancer.cluster, 10, &service("shop"), &"a".parse().unwrap()));
        assert!(!balancer.acknowledges(1, 10, &service("shop"), &"c".parse().unwrap()), "another store");
        let tcp = ServiceId { kind: Kind::Tcp, ..service("new") };
        assert!(balancer.acknowledges(balancer.cluster, 10, &tcp, &"c".parse().unwrap()), "tcp-new is another one");
    }

    #[test]
    fn what_is_missing_from_a_cut_list_counts_as_in_it() {
        let whole = full(MOST).cut();
        assert!(whole.more.is_empty() && acknowledges(&whole, 10, "shop", "a"));
        let cut = full(MOST + 1).cut();
        let lengths = [cut.pending.len(), cut.held.len(), cut.quarantined.len(), cut.draining.len()];
        assert_eq!((lengths, cut.more.len()), ([MOST; 4], 4));
        for list in ["pending", "held", "draining"] {
            let one = Balancer { more: [list.to_owned()].into(), ..whole.clone() };
            assert!(!acknowledges(&one, 10, "shop", "a"), "{list}");
        }
        let other = Balancer { more: ["quarantined".to_owned()].into(), ..whole };
        assert!(acknowledges(&other, 10, "shop", "a"));
    }

    #[test]
    fn a_cut_value_fits_into_a_key() {
        let text = full(1000).cut().to_string();
        assert!(text.len() < LONGEST / 2, "{}", text.len());
        assert_eq!(Balancer::parse(text.as_bytes()).unwrap().cut().to_string(), text);
    }
}
