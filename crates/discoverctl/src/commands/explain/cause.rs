//! Why an upstream gets no new requests: one name and one sentence for each cause.

use serde::{Serialize, Serializer};

/// A cause. Where several apply, [`super::verdict`] says which comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing stands below `balancers/`.
    NoBalancer,
    /// The balancer's key says nothing that makes sense.
    Garbled,
    /// It follows another cluster.
    OtherStore,
    /// HAProxy refuses the service as it stands, in its words.
    Refused(String),
    /// Neither `domain` nor `url_reg`, or no `ports`: the key that is missing.
    NoName(&'static str),
    /// The claims that another service has: which, and the balancer's words.
    Outbid {
        /// The services whose keys name the same.
        others: Vec<String>,
        /// The balancer's words.
        words: String,
    },
    /// The key that names what the service serves isn't followed.
    NameQuarantined {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A key without which the service gets no upstreams.
    Gate {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// Its key has gone, and it is served all the same, for this reason.
    Held(String),
    /// It has no record.
    NoRecord(Option<Last>),
    /// Its record isn't followed.
    RecordQuarantined {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// Its announcer says `drain` or `down`.
    Announcer(&'static str),
    /// An override says `drain` or `maint`.
    Override {
        /// Which.
        state: &'static str,
        /// `shop/node-1`.
        upstream: String,
    },
    /// Its color isn't active: its color, and what is.
    Inactive {
        /// Its own.
        color: Option<String>,
        /// The active ones.
        active: String,
    },
    /// Its weight is 0, by whom.
    Weight(&'static str),
    /// HAProxy's checks fail, in its words.
    CheckFails(String),
    /// A backup, and others are up.
    Backup,
    /// HAProxy can't be asked, or isn't there.
    HaproxySilent(String),
    /// The balancer doesn't run what the store asks for.
    OutOfSync(String),
    /// A change of its service waits for a restart.
    Pending,
    /// The balancer has not heard of it: where it is, and where the record is.
    Behind {
        /// What it follows.
        applied: Option<i64>,
        /// The record's revision.
        revision: i64,
    },
    /// HAProxy has no such server.
    Absent,
    /// HAProxy has it otherwise than is wanted.
    Otherwise(String),
    /// Another key of the service isn't followed; the rest is.
    Quarantined {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// The balancer's API can't be reached.
    Unasked(String),
}

/// What the store last had of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Last {
    /// A revision at which it stood there.
    pub(super) revision: i64,
    /// Its value.
    pub(super) value: String,
    /// Its lease, as etcdctl prints it; null is none.
    pub(super) lease: Option<String>,
    /// Whether that lease lives; null where nobody knows.
    pub(super) lease_lives: Option<bool>,
}

impl Last {
    fn words(&self) -> String {
        let lease = match (&self.lease, self.lease_lives) {
            (None, _) => "without a lease: somebody deleted it".to_owned(),
            (Some(lease), Some(true)) => format!("under lease {lease}, which lives: somebody deleted the key"),
            (Some(lease), Some(false)) => format!("under lease {lease}, which has ended"),
            (Some(lease), None) => format!("under lease {lease}"),
        };
        format!("it is not in the store; at revision {} it was {}, {lease}", self.revision, self.value)
    }
}

impl Cause {
    /// Its stable name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::NoBalancer => "no_balancer",
            Self::Garbled => "balancer_garbled",
            Self::OtherStore => "other_store",
            Self::Refused(_) => "service_refused",
            Self::NoName(_) => "no_domain",
            Self::Outbid { .. } => "claim_held",
            Self::NameQuarantined { .. } => "domain_quarantined",
            Self::Gate { .. } => "service_quarantined",
            Self::Held(_) => "held",
            Self::NoRecord(_) => "no_record",
            Self::RecordQuarantined { .. } => "record_quarantined",
            Self::Announcer(_) => "announcer",
            Self::Override { .. } => "override",
            Self::Inactive { .. } => "inactive_color",
            Self::Weight(_) => "weight",
            Self::CheckFails(_) => "check",
            Self::Backup => "backup",
            Self::HaproxySilent(_) => "haproxy_silent",
            Self::OutOfSync(_) => "out_of_sync",
            Self::Pending => "pending",
            Self::Behind { .. } => "behind",
            Self::Absent => "absent",
            Self::Otherwise(_) => "otherwise",
            Self::Quarantined { .. } => "quarantined",
            Self::Unasked(_) => "unasked",
        }
    }

    /// What it is and, where that isn't plain, what to do.
    pub(super) fn words(&self) -> String {
        match self {
            Self::NoBalancer => "no balancer lives: nothing stands below balancers/".into(),
            Self::Garbled => "the balancer's key makes no sense: is another program writing it?".into(),
            Self::OtherStore => "the balancer follows another etcd cluster: see --endpoints of its confgen".into(),
            Self::Refused(words) => format!("HAProxy refuses the service: {words}"),
            Self::NoName(key) => format!("the service has no {key}: discoverctl set SVC {key} VALUE"),
            Self::Outbid { others, words } => format!("{} has the claim: {words}", others.join(", ")),
            Self::Gate { key, reason } => {
                format!("the service gets no upstreams while {key} can't be read: {reason}")
            }
            Self::NameQuarantined { key, reason }
            | Self::RecordQuarantined { key, reason }
            | Self::Quarantined { key, reason } => format!("{key} is not followed: {reason}"),
            Self::Held(why) => format!("held: {why}"),
            Self::NoRecord(None) => "no record in the store, nor in the revisions that etcd keeps".into(),
            Self::NoRecord(Some(last)) => last.words(),
            Self::Announcer(state) => format!("its announcer says {state}"),
            Self::Override { state, upstream } => {
                format!("an override says {state}: discoverctl ready {upstream} takes it back")
            }
            Self::Inactive { color: Some(color), active } => format!("color {color} is not active: {active}"),
            Self::Inactive { color: None, active } => format!("it has no color, and active is {active}"),
            Self::Weight(by) => format!("its weight is 0, says {by}"),
            Self::CheckFails(words) => format!("HAProxy's check fails: {words}"),
            Self::Backup => "a backup, and others are up".into(),
            Self::HaproxySilent(words) => format!("HAProxy can't be asked: {words}"),
            Self::OutOfSync(words) => words.clone(),
            Self::Pending => "a change of its service waits for HAProxy's restart".into(),
            Self::Behind { applied: Some(applied), revision } => {
                format!("the balancer doesn't know it yet: it is at revision {applied}, the record at {revision}")
            }
            Self::Behind { applied: None, .. } => "the balancer doesn't know it: it follows the store not yet".into(),
            Self::Absent => "HAProxy has no such server yet".into(),
            Self::Otherwise(words) => words.clone(),
            Self::Unasked(words) => format!("the balancer can't be asked: {words}"),
        }
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Both {
            cause: &'static str,
            words: String,
        }
        Both { cause: self.name(), words: self.words() }.serialize(serializer)
    }
}
