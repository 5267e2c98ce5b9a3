//! The verdict on one upstream at one balancer: it gets new requests, or the reasons why it gets none.
//!
//! confgen judges, because it knows what HAProxy runs. The admin port's API, the console, the metrics and discoverctl
//! take its verdict as it is. discoverctl adds only causes that a balancer can't know. Pure: no I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::{Active, Kind, Override, OverrideState, ServiceId, Upstream, UpstreamState};

/// The cause why an upstream gets no new requests, or a note. The order of the variants is the order in which a request
/// meets the causes. The first that applies is the verdict's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(from = "String", into = "String")]
pub enum Cause {
    /// No key is below `balancers/`.
    NoBalancer,
    /// The balancer's record can't be parsed.
    BalancerUnreadable,
    /// The balancer follows another cluster.
    OtherStore,
    /// A limit of the whole HAProxy process isn't as its files say. Requests may wait for it.
    Limited,
    /// The frontend that requests come through is closed in HAProxy.
    FrontendClosed,
    /// HAProxy rejects the service.
    ServiceRejected,
    /// The service has neither `domain` nor `url_reg`, or no `ports`.
    NoDomain,
    /// Other services own all hosts or ports that the service claims.
    ClaimHeld,
    /// The key with the service's hosts or ports is quarantined.
    DomainQuarantined,
    /// A key is quarantined without which the service gets no upstreams.
    ServiceQuarantined,
    /// The operator's `defaults` section that the service's `profile` names answers each request, or refuses it.
    ProfileCloses,
    /// The upstream is retained: it is served although its key is gone.
    Retained,
    /// The upstream is a copy of a service with a limited number of copies, and it doesn't run.
    StandsBy,
    /// The upstream has no record.
    NoRecord,
    /// The upstream's record is quarantined.
    RecordQuarantined,
    /// The record says `drain` or `down`.
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
    /// The upstream is up in HAProxy, and HAProxy chooses only others.
    Starved,
    /// HAProxy can't be asked.
    HaproxySilent,
    /// HAProxy doesn't run the desired state.
    OutOfSync,
    /// A change of the service waits for a restart.
    Pending,
    /// The balancer hasn't applied the keys' revision yet.
    Behind,
    /// HAProxy has no such server.
    ServerMissing,
    /// The server's state in HAProxy isn't the desired one.
    ServerStateDiffers,
    /// Another key of the service is quarantined.
    Quarantined,
    /// The balancer's API can't be reached.
    ApiUnreachable,
    /// A cause with this name, which a newer confgen knows.
    Other(String),
}

impl Cause {
    /// All causes that have a name here, in their order.
    pub const ALL: [Self; 30] = [
        Self::NoBalancer,
        Self::BalancerUnreadable,
        Self::OtherStore,
        Self::Limited,
        Self::FrontendClosed,
        Self::ServiceRejected,
        Self::NoDomain,
        Self::ClaimHeld,
        Self::DomainQuarantined,
        Self::ServiceQuarantined,
        Self::ProfileCloses,
        Self::Retained,
        Self::StandsBy,
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

    /// The stable name that programs read, in the API, the metrics and discoverctl's JSON.
    pub fn name(&self) -> &str {
        // Some names are older than the variants'. Programs read them, so they stay.
        match self {
            Self::NoBalancer => "no_balancer",
            Self::BalancerUnreadable => "balancer_garbled",
            Self::OtherStore => "other_store",
            Self::Limited => "limited",
            Self::FrontendClosed => "frontend_closed",
            Self::ServiceRejected => "service_refused",
            Self::NoDomain => "no_domain",
            Self::ClaimHeld => "claim_held",
            Self::DomainQuarantined => "domain_quarantined",
            Self::ServiceQuarantined => "service_quarantined",
            Self::ProfileCloses => "profile",
            Self::Retained => "held",
            Self::StandsBy => "stands_by",
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

    /// True if a record, an override, a color or a weight asks for it. Every other cause is a fault or a delay.
    pub fn is_intended(&self) -> bool {
        let by_keys = matches!(self, Self::Announcer | Self::Override | Self::InactiveColor | Self::Weight);
        by_keys || matches!(self, Self::Backup | Self::StandsBy)
    }

    /// The cause with its sentence for people.
    pub fn into_reason(self, words: impl Into<String>) -> Reason {
        Reason { cause: self, words: words.into() }
    }
}

impl From<String> for Cause {
    fn from(name: String) -> Self {
        // A discoverctl of this release may ask a newer confgen.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reason {
    /// The cause, for programs.
    pub cause: Cause,
    /// The sentence. It says what the cause is and, unless that is plain, what to do.
    pub words: String,
}

impl Reason {
    /// The reason of a service that claims nothing, with the command that sets a claim.
    pub fn no_domain(service: &ServiceId) -> Self {
        let key = if service.kind == Kind::Http { "domain" } else { "ports" };
        Cause::NoDomain.into_reason(format!("the service has no {key}: discoverctl set {} {key} VALUE", service.name))
    }
}

/// The verdict on one upstream at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Verdict {
    /// True if the upstream gets new requests. `None` if the balancer can't tell.
    pub gets_requests: Option<bool>,
    /// The reason why the upstream gets none, or why the balancer can't tell. `None` if it gets requests.
    pub because: Option<Reason>,
    /// Further reasons and notes, in the order of the causes.
    #[serde(default)]
    pub also: Vec<Reason>,
}

impl Verdict {
    /// A verdict from `against`, the reasons that keep requests off, and `notes`, which keep none off.
    pub fn new(gets_requests: Option<bool>, mut against: Vec<Reason>, notes: Vec<Reason>) -> Self {
        // `Cause` is in the order in which a request meets the causes. The first one leads.
        against.sort_by(|one, other| one.cause.cmp(&other.cause));
        let mut because = None;
        if gets_requests != Some(true) {
            // A verdict without a reason would leave a reader nothing to do.
            if against.is_empty() {
                against.push(Cause::ServerStateDiffers.into_reason("the balancer doesn't say why"));
            }
            because = Some(against.remove(0));
        }
        let mut also = against;
        for note in notes {
            let is_known = also.contains(&note) || because.as_ref() == Some(&note);
            also.extend((!is_known).then_some(note));
        }
        also.sort_by(|one, other| one.cause.cmp(&other.cause));
        let verdict = Self { gets_requests, because, also };
        verdict.check_invariants();
        verdict
    }

    /// Adds a reason that counts before all others. It becomes the verdict's own, unless the upstream gets requests.
    #[must_use]
    pub fn with_leading_reason(mut self, reason: Reason) -> Self {
        if self.gets_requests == Some(true) {
            return self.with_note(reason);
        }
        let after = self.because.replace(reason);
        self.also.splice(0..0, after);
        self
    }

    /// Adds a note, in the order of the causes.
    #[must_use]
    pub fn with_note(mut self, note: Reason) -> Self {
        self.also.push(note);
        self.also.sort_by(|one, other| one.cause.cmp(&other.cause));
        self
    }

    /// All reasons and notes, the verdict's own reason first.
    pub fn reasons(&self) -> impl Iterator<Item = &Reason> {
        self.because.iter().chain(&self.also)
    }

    /// The sentence of the verdict's own reason. `None` if the upstream gets requests.
    pub fn words(&self) -> Option<&str> {
        self.because.as_ref().map(|reason| reason.words.as_str())
    }

    /// The verdict's own cause. `None` if the upstream gets requests.
    pub fn cause(&self) -> Option<&Cause> {
        self.because.as_ref().map(|reason| &reason.cause)
    }

    /// True if a reason or note has this cause.
    pub fn has_cause(&self, cause: &Cause) -> bool {
        self.reasons().any(|reason| reason.cause == *cause)
    }

    /// Panics in debug builds if an upstream that gets requests has a reason against it, or one that gets none has no
    /// reason, or if the further reasons are not in the order of the causes.
    pub fn check_invariants(&self) {
        debug_assert_eq!(self.because.is_none(), self.gets_requests == Some(true), "{self:?}");
        debug_assert!(self.also.is_sorted_by(|one, other| one.cause <= other.cause), "{self:?}");
    }
}

/// The intended causes why an upstream takes no requests: its record, override, color and weight. `upstream` is named as
/// people name it, `shop/node-1`. Without a record there are none.
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
    if let Some(state) = imposed.and_then(|imposed| imposed.state) {
        let state = match state {
            OverrideState::Drain => "drain",
            OverrideState::Maint => "maint",
        };
        let words = match imposed.and_then(|imposed| imposed.host.as_ref()) {
            Some(host) => format!("host {host} is in {state}: discoverctl ready --host {host} takes it back"),
            None => format!("an override says {state}: discoverctl ready {upstream} takes it back"),
        };
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
    let weight = imposed.and_then(|imposed| imposed.weight);
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
    fn each_intended_cause_is_named() {
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
        let imposed = Override::parse(br#"{"state":"drain","host":"web1"}"#).unwrap();
        let reasons = find_intended_reasons("shop/a", Some(&plain), Some(&imposed), None);
        assert_eq!(
            reasons.first().unwrap().words,
            "host web1 is in drain: discoverctl ready --host web1 takes it back"
        );
        assert_eq!(find_intended_reasons("shop/a", Some(&plain), None, None), []);
    }

    #[test]
    #[should_panic(expected = "gets_requests: Some(false)")]
    fn a_refusal_without_a_reason_panics_in_debug_builds() {
        Verdict { gets_requests: Some(false), ..Verdict::default() }.check_invariants();
    }

    #[test]
    #[should_panic(expected = "gets_requests: Some(true)")]
    fn notes_in_another_order_than_the_causes_panic_in_debug_builds() {
        let also = vec![Cause::Check.into_reason("c"), Cause::Retained.into_reason("r")];
        Verdict { gets_requests: Some(true), because: None, also }.check_invariants();
    }
}
