//! The verdict on one upstream at one balancer: whether it gets new requests, and if not, why. Pure.
//!
//! Causes are collected in the order in which a request meets them: is there a balancer, does it take the service, does the
//! service have a name there, does the record count, is it wanted, does it work, is HAProxy told. The first is the verdict.

use std::collections::BTreeMap;

use discovery::{Balancer, Field, Key, Layout, Service, ServiceId, Setting, SettingName, UpstreamId, claims};
use serde::Serialize;

use super::cause::{Cause, Last};
use crate::fleet::{ServiceInFull, Status, Upstream};
use crate::store::Store;
use crate::upstreams::{Asked, is_active};

/// What the store says, and which upstream is asked about.
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) store: &'a Store,
    pub(super) service: &'a ServiceId,
    pub(super) id: &'a UpstreamId,
    /// What it was, where it is no more.
    pub(super) last: Option<&'a Last>,
}

/// What one balancer says.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Its key below `balancers/`; None makes no sense.
    pub(super) key: Option<Balancer>,
    /// How it stands.
    pub(super) status: Result<Status, String>,
    /// The service; empty where it doesn't know it.
    pub(super) service: Result<ServiceInFull, String>,
}

/// The verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Whether it gets new requests; null where the balancer can't be asked.
    pub(super) gets_requests: Option<bool>,
    /// Why not; null where it does.
    pub(super) because: Option<Cause>,
    /// What else there is to know.
    pub(super) also: Vec<Cause>,
}

/// The verdict; no balancer lives where nobody has said anything.
pub(super) fn verdict(facts: &Facts, said: Option<&Said>) -> Verdict {
    let Some(said) = said else {
        let also = of_store(facts, None);
        return Verdict { gets_requests: Some(false), because: Some(Cause::NoBalancer), also };
    };
    let answer = said.service.as_ref().ok();
    let there = answer.and_then(|answer| answer.upstreams.iter().find(|it| it.id == facts.id.as_str()));
    let gets_requests = answer.and_then(|answer| {
        let balanced = there.map_or(Some(false), |it| it.balanced)?;
        Some(balanced && has_name(facts.service, answer))
    });
    let mut causes = of_key(facts, said);
    causes.extend(of_store(facts, answer));
    if let Some(answer) = answer {
        causes.extend(of_haproxy(answer, there));
        causes.extend(of_balancer(facts, said, answer, there));
        let rest = remaining(facts, answer, &causes);
        causes.extend(rest);
    } else if let Err(words) = &said.service {
        causes.push(Cause::Unasked(words.clone()));
    }
    if gets_requests == Some(true) {
        return Verdict { gets_requests, because: None, also: causes };
    }
    if causes.is_empty() {
        let words = there.and_then(|it| it.not_balanced.clone());
        causes.push(Cause::Otherwise(words.unwrap_or_else(|| "the balancer doesn't say why".into())));
    }
    let because = Some(causes.remove(0));
    Verdict { gets_requests, because, also: causes }
}

/// Whether any request can come to the service there.
fn has_name(id: &ServiceId, answer: &ServiceInFull) -> bool {
    id.is_default() || !answer.service.claims().is_empty()
}

/// Is it a balancer of this store at all?
fn of_key(facts: &Facts, said: &Said) -> Vec<Cause> {
    match &said.key {
        None => vec![Cause::Garbled],
        Some(key) if key.cluster != facts.store.cluster => vec![Cause::OtherStore],
        Some(_) => Vec::new(),
    }
}

/// What the keys say against it, and the balancer of them.
fn of_store(facts: &Facts, answer: Option<&ServiceInFull>) -> Vec<Cause> {
    let nothing = Service::new(facts.service.kind);
    let service = facts.store.topology.services().get(facts.service).map_or(&nothing, |it| it);
    let quarantine = answer.map(|answer| answer.quarantine.clone()).unwrap_or_default();
    let mut causes: Vec<Cause> =
        answer.and_then(|answer| answer.service.refused.clone()).map(Cause::Refused).into_iter().collect();
    causes.extend(of_name(facts, service, answer, &quarantine));
    causes.extend(of_gate(facts, answer));
    causes.extend(of_record(facts, service, answer, &quarantine));
    causes.extend(of_state(facts, service));
    causes
}

/// The settings that say what a service answers for.
const NAMES: [SettingName; 3] = [SettingName::Domain, SettingName::UrlReg, SettingName::Ports];

fn of_name(
    facts: &Facts,
    service: &Service,
    answer: Option<&ServiceInFull>,
    quarantine: &BTreeMap<String, String>,
) -> Vec<Cause> {
    let fields = NAMES.into_iter().filter_map(|name| service.setting(name)).collect::<Vec<_>>();
    if fields.is_empty() && !facts.service.is_default() && !service.is_empty() {
        return vec![Cause::NoName(if facts.service.kind == discovery::Kind::Http { "domain" } else { "ports" })];
    }
    // A name that is only partly lost is told among the rest.
    if answer.is_some_and(|answer| has_name(facts.service, answer)) {
        return Vec::new();
    }
    let lost = |field: &std::sync::Arc<Field<Setting>>| {
        let unread = field.value.as_ref().err().map(ToString::to_string);
        let reason = quarantine.get(&field.entry.key).cloned().or(unread)?;
        Some(match rivals(facts, service, field) {
            others if others.is_empty() => Cause::NameQuarantined { key: field.entry.key.clone(), reason },
            others => Cause::Outbid { others, words: reason },
        })
    };
    fields.into_iter().filter_map(lost).collect()
}

/// The services whose keys claim what this one's do.
fn rivals(facts: &Facts, service: &Service, field: &Field<Setting>) -> Vec<String> {
    if field.value.is_err() {
        return Vec::new();
    }
    let of = |service: &Service| {
        let settings: Vec<Setting> = service.settings().filter_map(|(_, it)| it.value.clone().ok()).collect();
        claims(&settings)
    };
    let mine = of(service);
    let others = facts.store.topology.services().iter().filter(|(id, _)| *id != facts.service);
    let rivals = others.filter(|(id, it)| id.kind == facts.service.kind && !of(it).is_disjoint(&mine));
    rivals.map(|(id, _)| id.to_string()).collect()
}

/// Keys that a service must not be served without.
fn of_gate(facts: &Facts, answer: Option<&ServiceInFull>) -> Vec<Cause> {
    let Some(answer) = answer else { return Vec::new() };
    let there = answer.upstreams.iter().find(|it| it.id == facts.id.as_str());
    if there.is_none_or(|it| it.state.is_some()) || answer.service.refused.is_some() {
        return Vec::new();
    }
    let gates = answer.quarantine.iter().filter(|(key, _)| is_setting(key) && !is_name(key));
    gates.map(|(key, reason)| Cause::Gate { key: key.clone(), reason: reason.clone() }).collect()
}

fn is_setting(key: &str) -> bool {
    matches!(key.parse(), Ok(Key::Setting { .. }))
}

fn is_name(key: &str) -> bool {
    matches!(key.parse(), Ok(Key::Setting { name, .. }) if NAMES.contains(&name))
}

fn of_record(
    facts: &Facts,
    service: &Service,
    answer: Option<&ServiceInFull>,
    quarantine: &BTreeMap<String, String>,
) -> Option<Cause> {
    let there = answer.and_then(|answer| answer.upstreams.iter().find(|it| it.id == facts.id.as_str()));
    match service.upstream(facts.id) {
        None if there.is_some_and(|it| it.held) => {
            Some(Cause::Held(there.map(|it| it.why.join("; ")).unwrap_or_default()))
        }
        None => Some(Cause::NoRecord(facts.last.cloned())),
        Some(field) => {
            let unread = field.value.as_ref().err().map(ToString::to_string);
            let key = field.entry.key.clone();
            let reason = quarantine.get(&key).cloned().or(unread)?;
            Some(Cause::RecordQuarantined { key, reason })
        }
    }
}

/// Is it wanted to take requests?
fn of_state(facts: &Facts, service: &Service) -> Vec<Cause> {
    let Some(record) = service.upstream(facts.id).and_then(|field| field.value.as_ref().ok()) else {
        return Vec::new();
    };
    let asked = Asked::of(service, facts.id);
    let upstream = format!("{}/{}", facts.service.name, facts.id);
    let announcer = asked.announced.filter(|state| *state != "ready").map(Cause::Announcer);
    let imposed = asked.imposed.map(|state| Cause::Override { state, upstream });
    let active = service.setting(SettingName::Active).and_then(|field| field.value.as_ref().ok());
    let inactive = active
        .filter(|_| is_active(service, record) == Some(false))
        .map(|active| Cause::Inactive { color: asked.color.clone(), active: active.to_string() });
    let imposed_weight = service.imposed(facts.id).and_then(|field| field.value.as_ref().ok()?.weight);
    let by = if imposed_weight.is_some() { "an override" } else { "its announcer" };
    let weight = (asked.weight == Some(0)).then_some(Cause::Weight(by));
    [announcer, imposed, inactive, weight].into_iter().flatten().collect()
}

/// Does it work, as HAProxy sees it?
fn of_haproxy(answer: &ServiceInFull, there: Option<&Upstream>) -> Vec<Cause> {
    if let Some(words) = &answer.haproxy_error {
        return vec![Cause::HaproxySilent(words.clone())];
    }
    let Some((it, traffic)) = there.and_then(|it| Some((it, it.haproxy.as_ref()?))) else { return Vec::new() };
    if traffic.status.starts_with("DOWN") {
        let words = [&traffic.check, &traffic.check_words].into_iter().flatten().map(String::as_str);
        let since = format!("for {} s", traffic.since_seconds);
        return vec![Cause::CheckFails(words.chain([since.as_str()]).collect::<Vec<_>>().join(", "))];
    }
    let is_spare = traffic.up && it.balanced == Some(false) && traffic.weight > 0;
    is_spare.then_some(Cause::Backup).into_iter().collect()
}

/// Does HAProxy run what is wanted?
fn of_balancer(facts: &Facts, said: &Said, answer: &ServiceInFull, there: Option<&Upstream>) -> Vec<Cause> {
    let status = said.status.as_ref().ok();
    let mut causes: Vec<Cause> =
        status.filter(|it| !it.in_sync).map(|it| Cause::OutOfSync(it.words.clone())).into_iter().collect();
    let pending = answer.service.pending || there.is_some_and(|it| it.pending);
    causes.extend(pending.then_some(Cause::Pending));
    let record = facts.store.topology.services().get(facts.service).and_then(|it| it.upstream(facts.id));
    match there {
        None => {
            let known = record.filter(|it| it.value.is_ok() && !answer.quarantine.contains_key(&it.entry.key));
            let applied = status.and_then(|it| it.applied);
            causes.extend(known.map(|it| Cause::Behind { applied, revision: it.entry.mod_revision }));
        }
        Some(it) if answer.haproxy_error.is_none() && it.state.is_some() => match &it.haproxy {
            None => causes.push(Cause::Absent),
            Some(traffic) => {
                let is_up = traffic.up || traffic.status.starts_with("DOWN");
                let strays = it.state.as_deref() == Some("ready") && !is_up;
                let words = it.not_balanced.clone().unwrap_or_else(|| format!("HAProxy has it {}", traffic.status));
                causes.extend(strays.then_some(Cause::Otherwise(words)));
            }
        },
        Some(_) => {}
    }
    causes
}

/// Keys of the service that aren't followed and weren't named yet; those of other upstreams are no matter here.
fn remaining(facts: &Facts, answer: &ServiceInFull, named: &[Cause]) -> Vec<Cause> {
    let imposed = Key::Override { service: facts.service.clone(), id: facts.id.clone() }.to_string();
    let is_named = |wanted: &String, words: &String| {
        named.iter().any(|cause| match cause {
            Cause::NameQuarantined { key, .. } | Cause::Gate { key, .. } | Cause::RecordQuarantined { key, .. } => {
                key == wanted
            }
            Cause::Outbid { words: said, .. } => said == words,
            _ => false,
        })
    };
    let rest = answer.quarantine.iter().filter(|(key, _)| is_setting(key) || **key == imposed);
    let rest = rest.filter(|(key, words)| !is_named(key, words));
    rest.map(|(key, reason)| Cause::Quarantined { key: key.clone(), reason: reason.clone() }).collect()
}

/// The key of an upstream's record, whichever layout it stands in.
pub(super) fn record_key(service: &ServiceId, id: &UpstreamId) -> String {
    Key::Upstream { service: service.clone(), layout: Layout::Current, id: id.clone() }.to_string()
}

#[cfg(test)]
mod tests;
