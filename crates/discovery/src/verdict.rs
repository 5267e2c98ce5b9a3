//! The verdict on one upstream at one balancer: it gets new requests, or the reasons why it gets none.
//!
//! confgen judges, because it knows what HAProxy runs. Everything else takes its verdict as it is: the admin port's API, the
//! status page, the metrics, and discoverctl, which adds only what a balancer can't know. Pure.

use serde::{Deserialize, Serialize};

use crate::{Active, Kind, Override, OverrideState, ServiceId, Upstream, UpstreamState};

/// Why an upstream gets no new requests, or what else there is to know of it. The order is the one in which a request meets
/// the causes: the first that applies is the verdict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Cause {
    /// No key stands below `balancers/`.
    NoBalancer,
    /// The balancer's key can't be read.
    BalancerUnreadable,
    /// The balancer follows another cluster.
    OtherStore,
    /// The frontend through which requests come is closed in HAProxy.
    FrontendClosed,
    /// HAProxy rejects the service.
    ServiceRejected,
    /// The service has neither `domain` nor `url_reg`, or no `ports`.
    NoDomain,
    /// Other services own all hosts or ports that the service claims.
    ClaimHeld,
    /// The key that names what the service serves isn't followed.
    DomainQuarantined,
    /// A key isn't followed without which the service gets no upstreams.
    ServiceQuarantined,
    /// The upstream is retained: it is served although its key is gone.
    Retained,
    /// The upstream has no record.
    NoRecord,
    /// The record isn't followed.
    RecordQuarantined,
    /// The announcer says `drain` or `down`.
    Announcer,
    /// An override says `drain` or `maint`.
    Override,
    /// The upstream's color isn't active.
    InactiveColor,
    /// The weight is 0.
    Weight,
    /// HAProxy's check fails.
    Check,
    /// The upstream is a backup, and another upstream serves.
    Backup,
    /// HAProxy has the upstream up and chooses only others.
    Starved,
    /// HAProxy can't be asked.
    HaproxySilent,
    /// HAProxy doesn't run what the store asks for.
    OutOfSync,
    /// A change of the service waits for a restart.
    Pending,
    /// The balancer hasn't applied the keys' revision yet.
    Behind,
    /// HAProxy has no such server.
    ServerMissing,
    /// HAProxy has the server in a state that isn't the wanted one.
    ServerStateDiffers,
    /// Another key of the service isn't followed.
    Quarantined,
    /// The balancer's API can't be reached.
    ApiUnreachable,
    /// A cause that a newer confgen knows.
    Other(String),
}

impl Cause {
    /// All causes that have a name here, in their order.
    pub const ALL: [Self; 27] = [
        Self::NoBalancer,
        Self::BalancerUnreadable,
        Self::OtherStore,
        Self::FrontendClosed,
        Self::ServiceRejected,
        Self::NoDomain,
        Self::ClaimHeld,
        Self::DomainQuarantined,
        Self::ServiceQuarantined,
        Self::Retained,
        Self::NoRecord,
        Self::RecordQuarantined,
        Self::Announcer,
        Self::Override,
        Self::InactiveColor,
        Self::Weight,
        Self::Check,
        Self::Backup,
        Self::Starved,
        Self::HaproxySilent,
        Self::OutOfSync,
        Self::Pending,
        Self::Behind,
        Self::ServerMissing,
        Self::ServerStateDiffers,
        Self::Quarantined,
        Self::ApiUnreachable,
    ];

    /// The stable name that programs read.
    pub fn name(&self) -> &str {
        match self {
            Self::NoBalancer => "no_balancer",
            Self::BalancerUnreadable => "balancer_garbled",
            Self::OtherStore => "other_store",
            Self::FrontendClosed => "frontend_closed",
            Self::ServiceRejected => "service_refused",
            Self::NoDomain => "no_domain",
            Self::ClaimHeld => "claim_held",
            Self::DomainQuarantined => "domain_quarantined",
            Self::ServiceQuarantined => "service_quarantined",
            Self::Retained => "held",
            Self::NoRecord => "no_record",
            Self::RecordQuarantined => "record_quarantined",
            Self::Announcer => "announcer",
            Self::Override => "override",
            Self::InactiveColor => "inactive_color",
            Self::Weight => "weight",
            Self::Check => "check",
            Self::Backup => "backup",
            Self::Starved => "starved",
            Self::HaproxySilent => "haproxy_silent",
            Self::OutOfSync => "out_of_sync",
            Self::Pending => "pending",
            Self::Behind => "behind",
            Self::ServerMissing => "absent",
            Self::ServerStateDiffers => "otherwise",
            Self::Quarantined => "quarantined",
            Self::ApiUnreachable => "unasked",
            Self::Other(name) => name,
        }
    }

    /// Somebody asked for it, with a record, an override, a color or a weight.
    pub fn is_intended(&self) -> bool {
        matches!(self, Self::Announcer | Self::Override | Self::InactiveColor | Self::Weight | Self::Backup)
    }

    /// The cause with its words.
    pub fn into_reason(self, words: impl Into<String>) -> Reason {
        Reason { cause: self, words: words.into() }
    }
}

impl From<String> for Cause {
    fn from(name: String) -> Self {
        Self::ALL.into_iter().find(|cause| cause.name() == name).unwrap_or(Self::Other(name))
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.name().to_owned()
    }
}

/// A cause, with a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The cause.
    pub cause: Cause,
    /// The sentence. It says what the cause is and, unless that is plain, what to do.
    pub words: String,
}

impl Reason {
    /// The service claims nothing.
    pub fn no_domain(service: &ServiceId) -> Self {
        let key = if service.kind == Kind::Http { "domain" } else { "ports" };
        Cause::NoDomain.into_reason(format!("the service has no {key}: discoverctl set {} {key} VALUE", service.name))
    }
}

/// The verdict on one upstream at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The upstream gets new requests; None if the balancer can't tell.
    pub gets_requests: Option<bool>,
    /// Why it gets none, or why the balancer can't tell; None if it gets requests.
    pub because: Option<Reason>,
    /// What else there is to know, in the order of the causes.
    #[serde(default)]
    pub also: Vec<Reason>,
}

impl Verdict {
    /// Puts a verdict together. `against` are reasons that keep requests off, `notes` are none.
    pub fn new(gets_requests: Option<bool>, mut against: Vec<Reason>, notes: Vec<Reason>) -> Self {
        against.sort_by(|one, other| one.cause.cmp(&other.cause));
        let mut because = None;
        if gets_requests != Some(true) {
            if against.is_empty() {
                against.push(Cause::ServerStateDiffers.into_reason("the balancer doesn't say why"));
            }
            because = Some(against.remove(0));
        }
        let mut also = against;
        for note in notes {
            let is_told = also.contains(&note) || because.as_ref() == Some(&note);
            also.extend((!is_told).then_some(note));
        }
        also.sort_by(|one, other| one.cause.cmp(&other.cause));
        Self { gets_requests, because, also }
    }

    /// Adds a reason that keeps requests off and that a request meets before all others.
    #[must_use]
    pub fn with_leading_reason(mut self, reason: Reason) -> Self {
        if self.gets_requests == Some(true) {
            return self.with_note(reason);
        }
        let after = self.because.replace(reason);
        self.also.splice(0..0, after);
        self
    }

    /// Adds what else there is to know.
    #[must_use]
    pub fn with_note(mut self, note: Reason) -> Self {
        self.also.push(note);
        self.also.sort_by(|one, other| one.cause.cmp(&other.cause));
        self
    }

    /// All reasons, the verdict's own first.
    pub fn reasons(&self) -> impl Iterator<Item = &Reason> {
        self.because.iter().chain(&self.also)
    }

    /// The words of the verdict's own reason.
    pub fn words(&self) -> Option<&str> {
        self.because.as_ref().map(|reason| reason.words.as_str())
    }

    /// The verdict's own cause.
    pub fn cause(&self) -> Option<&Cause> {
        self.because.as_ref().map(|reason| &reason.cause)
    }

    /// One of the reasons has this cause.
    pub fn has_cause(&self, cause: &Cause) -> bool {
        self.reasons().any(|reason| reason.cause == *cause)
    }
}

/// Why an upstream is not wanted to take requests, by each that has a say in it. `upstream` is named as people do: `shop/node-1`.
pub fn find_intended_reasons(
    upstream: &str,
    record: Option<&Upstream>,
    imposed: Option<&Override>,
    active: Option<&Active>,
) -> Vec<Reason> {
    let Some(record) = record else { return Vec::new() };
    let mut reasons = Vec::new();
    match record.state {
        UpstreamState::Ready => {}
        UpstreamState::Drain => reasons.push(Cause::Announcer.into_reason("its announcer says drain")),
        UpstreamState::Down => reasons.push(Cause::Announcer.into_reason("its announcer says down")),
    }
    if let Some(state) = imposed.and_then(|it| it.state) {
        let state = match state {
            OverrideState::Drain => "drain",
            OverrideState::Maint => "maint",
        };
        let words = format!("an override says {state}: discoverctl ready {upstream} takes it back");
        reasons.push(Cause::Override.into_reason(words));
    }
    match (active, &record.color) {
        (Some(active), None) => {
            reasons.push(Cause::InactiveColor.into_reason(format!("it has no color, and active is {active}")));
        }
        (Some(active), Some(color)) if active.share_of(color).is_none() => {
            reasons.push(Cause::InactiveColor.into_reason(format!("color {color} is not active: {active}")));
        }
        _ => {}
    }
    let weight = imposed.and_then(|it| it.weight);
    let by = if weight.is_some() { "an override" } else { "its announcer" };
    if weight.unwrap_or(record.weight).get() == 0 {
        reasons.push(Cause::Weight.into_reason(format!("its weight is 0, says {by}")));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_read_by_the_name_that_it_prints() {
        for cause in Cause::ALL {
            let json = serde_json::to_string(&cause).unwrap();
            assert_eq!(serde_json::from_str::<Cause>(&json).unwrap(), cause);
            assert!(!matches!(cause, Cause::Other(_)));
        }
        let newer: Cause = serde_json::from_str("\"tomorrows\"").unwrap();
        assert_eq!((newer.name(), serde_json::to_string(&newer).unwrap().as_str()), ("tomorrows", "\"tomorrows\""));
        let mut sorted = Cause::ALL.to_vec();
        sorted.sort();
        assert_eq!(sorted, Cause::ALL, "the list has the order of the causes");
    }

    #[test]
    fn the_first_reason_against_is_the_verdict_and_a_note_never_is() {
        let check = || Cause::Check.into_reason("down");
        let verdict = Verdict::new(
            Some(false),
            vec![Cause::ServerMissing.into_reason("x"), check()],
            vec![Cause::Retained.into_reason("h")],
        );
        assert_eq!(verdict.cause(), Some(&Cause::Check));
        let also: Vec<&str> = verdict.also.iter().map(|it| it.cause.name()).collect();
        assert_eq!(also, ["held", "absent"]);
        let yes = Verdict::new(Some(true), vec![check()], Vec::new());
        assert_eq!((yes.because.clone(), yes.has_cause(&Cause::Check)), (None, true));
        assert_eq!(yes.with_leading_reason(Cause::OtherStore.into_reason("o")).because, None);
        let nothing = Verdict::new(Some(false), Vec::new(), Vec::new());
        assert_eq!(nothing.cause(), Some(&Cause::ServerStateDiffers));
        let led = nothing.with_leading_reason(Cause::OtherStore.into_reason("o"));
        assert_eq!((led.cause(), led.also.len()), (Some(&Cause::OtherStore), 1));
    }

    #[test]
    fn each_that_has_a_say_is_named() {
        let record = Upstream::parse(br#"{"address":"10.0.0.1:80","color":"blue","state":"down","weight":0}"#).unwrap();
        let imposed = Override::parse(br#"{"state":"maint"}"#).unwrap();
        let active: Active = "green".parse().unwrap();
        let reasons = find_intended_reasons("shop/a", Some(&record), Some(&imposed), Some(&active));
        let words: Vec<&str> = reasons.iter().map(|it| it.words.as_str()).collect();
        assert_eq!(
            words,
            [
                "its announcer says down",
                "an override says maint: discoverctl ready shop/a takes it back",
                "color blue is not active: green",
                "its weight is 0, says its announcer"
            ]
        );
        let plain = Upstream::parse(b"10.0.0.1:80").unwrap();
        let imposed = Override::parse(br#"{"weight":0}"#).unwrap();
        let reasons = find_intended_reasons("shop/a", Some(&plain), Some(&imposed), Some(&active));
        assert_eq!(reasons.first().unwrap().words, "it has no color, and active is green");
        assert_eq!(reasons.last().unwrap().words, "its weight is 0, says an override");
        assert_eq!(find_intended_reasons("shop/a", Some(&plain), None, None), []);
    }
}
