//! Upstreams at a glance: what the store asks for, and what each balancer makes of it. Pure.

use std::collections::{BTreeMap, HashMap};

use discovery::{
    Cause, Node, OverrideState, Service, ServiceId, Setting, SettingName, Upstream as Record, UpstreamId,
    UpstreamState, Verdict,
};
use serde::Serialize;

use crate::balancer_api::{Answers, ServiceInFull, Traffic, Upstream, Upstreams};
use crate::verdict::{BalancerAnswer, Case, Keys};

/// One upstream: what is asked for it, and what is made of that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Its service: `http-shop`.
    pub(crate) service: String,
    /// Its id.
    pub(crate) id: String,
    /// What the store says.
    #[serde(flatten)]
    pub(crate) asked: StoreView,
    /// By balancer, what it makes of that.
    pub(crate) balancers: BTreeMap<String, BalancerView>,
}

/// What the keys say of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StoreView {
    /// Where it listens.
    pub(crate) address: Option<String>,
    /// Its color.
    pub(crate) color: Option<String>,
    /// Its own weight, or the one that is imposed. A color's share is not in it.
    pub(crate) weight: Option<u16>,
    /// The strictest of all: `ready`, `drain`, `maint`; null where there is no record that makes sense.
    pub(crate) state: Option<&'static str>,
    /// What its announcer says: `ready`, `drain`, `down`.
    pub(crate) announced: Option<&'static str>,
    /// What an operator imposes: `drain`, `maint`.
    pub(crate) imposed: Option<&'static str>,
    /// Whether its color is active; null where no colors are set.
    pub(crate) active: Option<bool>,
    /// Used only when no other is up.
    pub(crate) backup: bool,
}

/// What one balancer makes of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct BalancerView {
    /// `up`, `down`, `draining`, `maint`, `absent` (HAProxy has no such server); null where it can't be asked.
    pub(crate) state: Option<&'static str>,
    /// Whether it gets new requests.
    pub(crate) balanced: Option<bool>,
    /// The cause why not, or why nobody knows, as `explain` names it.
    pub(crate) cause: Option<Cause>,
    /// The same in words.
    pub(crate) why: Option<String>,
    /// Sessions now.
    pub(crate) sessions: Option<u64>,
    /// Requests in the last second; connections of a TCP service.
    pub(crate) rate: Option<u64>,
    /// Its key has gone, and it is served all the same.
    pub(crate) held: bool,
    /// Since when, RFC 3339; null where that isn't known.
    pub(crate) held_since: Option<String>,
    /// What retains it then: `guard` or `reset`.
    pub(crate) held_by: Option<String>,
    /// HAProxy's own figures.
    #[serde(skip)]
    pub(crate) traffic: Option<Traffic>,
    /// The whole verdict.
    #[serde(skip)]
    pub(crate) verdict: Verdict,
}

/// The upstreams of all services, or of one: those that have a record, and those that a balancer serves without one.
pub(crate) fn build_rows(
    store: Keys,
    answers: &Answers<Upstreams>,
    only: Option<&ServiceId>,
) -> BTreeMap<(ServiceId, UpstreamId), Row> {
    let services = store.topology.services().iter().filter(|(id, _)| only.is_none_or(|only| only == *id));
    let indexed: BTreeMap<&Node, Result<Index, &String>> =
        answers.iter().map(|(node, answer)| (node, answer.as_ref().map(Index::from_answer))).collect();
    let mut rows = BTreeMap::new();
    for (service, keys) in services {
        let name = service.to_string();
        let held = indexed.values().flatten().flat_map(|index| index.held.get(name.as_str()).into_iter().flatten());
        let held = held.filter_map(|id| id.parse().ok());
        for id in keys.upstreams().map(|(id, _)| id.clone()).chain(held) {
            let case = Case::new(store, service, &id);
            let at = |(node, index): (&&Node, &Result<Index, &String>)| {
                let answered = match index {
                    Ok(index) => Ok(index.find_answer(&name, id.as_str())),
                    Err(reason) => Err(reason.as_str()),
                };
                (node.to_string(), BalancerView::from_verdict(answered.ok(), case.judge_at(node, answered)))
            };
            let row = Row {
                service: name.clone(),
                id: id.to_string(),
                asked: StoreView::from_keys(keys, &id),
                balancers: indexed.iter().map(at).collect(),
            };
            rows.insert((service.clone(), id), row);
        }
    }
    rows
}

/// One balancer's answer, found by name.
struct Index<'a> {
    error: Option<&'a str>,
    applied: Option<i64>,
    upstreams: HashMap<(&'a str, &'a str), &'a Upstream>,
    held: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Index<'a> {
    fn from_answer(answer: &'a Upstreams) -> Self {
        let mut held: HashMap<&str, Vec<&str>> = HashMap::new();
        for it in answer.upstreams.iter().filter(|it| it.held) {
            held.entry(&it.service).or_default().push(&it.id);
        }
        let upstreams = answer.upstreams.iter().map(|it| ((it.service.as_str(), it.id.as_str()), it)).collect();
        Self { error: answer.haproxy_error.as_deref(), applied: answer.applied, upstreams, held }
    }

    fn find_answer(&self, service: &str, id: &str) -> BalancerAnswer<'a> {
        let upstream = self.upstreams.get(&(service, id)).copied();
        BalancerAnswer { haproxy_error: self.error, applied: self.applied, upstream }
    }
}

impl BalancerView {
    /// What a balancer answers about an upstream, None if it can't be asked, and the verdict there.
    fn from_verdict(answered: Option<BalancerAnswer>, verdict: Verdict) -> Self {
        let upstream = answered.and_then(|it| it.upstream);
        // HAProxy that can't be asked has no figures: what it makes of the upstream isn't known.
        let is_known = answered.is_some_and(|it| it.haproxy_error.is_none() || it.upstream.is_none());
        let traffic = upstream.and_then(|it| it.haproxy.as_ref());
        let draining = upstream.and_then(|it| it.draining);
        Self {
            state: is_known.then(|| traffic.map_or("absent", |traffic| simplify_status(traffic, draining))),
            balanced: verdict.gets_requests,
            cause: verdict.cause().cloned(),
            why: verdict.words().map(str::to_owned),
            sessions: draining.or_else(|| traffic.map(|it| it.sessions)),
            rate: traffic.map(|it| it.rate),
            held: upstream.is_some_and(|it| it.held),
            held_since: upstream.and_then(|it| it.held_since.clone()),
            held_by: upstream.and_then(|it| it.held_by.clone()),
            traffic: traffic.cloned(),
            verdict,
        }
    }
}

/// HAProxy's many words in four.
fn simplify_status(traffic: &Traffic, draining: Option<u64>) -> &'static str {
    let is = |word: &str| traffic.status.starts_with(word);
    match draining {
        Some(_) => "draining",
        None if traffic.up => "up",
        None if is("DRAIN") => "draining",
        None if is("MAINT") => "maint",
        None => "down",
    }
}

impl StoreView {
    /// What the service's keys say of this upstream.
    pub(crate) fn from_keys(service: &Service, id: &UpstreamId) -> Self {
        let record = service.upstream(id).and_then(|field| field.value.as_ref().ok());
        let imposed = service.override_of(id).and_then(|field| field.value.as_ref().ok());
        let active = record.and_then(|record| is_color_active(service, record));
        let imposed_weight = imposed.and_then(|it| it.weight);
        let weight = imposed_weight.or(record.map(|it| it.weight)).map(discovery::Weight::get);
        let (announced, imposed) = (record.map(|it| it.state), imposed.and_then(|it| it.state));
        Self {
            address: record.map(|it| it.address.to_string()),
            color: record.and_then(|it| it.color.as_ref()).map(ToString::to_string),
            weight: weight.filter(|_| record.is_some()),
            state: announced.map(|announced| strictest_state(announced, imposed, active)),
            announced: announced.map(|state| match state {
                UpstreamState::Ready => "ready",
                UpstreamState::Drain => "drain",
                UpstreamState::Down => "down",
            }),
            imposed: imposed.map(|state| match state {
                OverrideState::Drain => "drain",
                OverrideState::Maint => "maint",
            }),
            active,
            backup: record.is_some_and(|it| it.backup),
        }
    }

    /// The state and, in brackets, who is stricter than its announcer's `ready`.
    pub(crate) fn describe_state(&self) -> String {
        let announced = self.announced.filter(|state| *state != "ready").map(|state| format!("announcer: {state}"));
        let imposed = self.imposed.map(|state| format!("override: {state}"));
        let inactive = (self.active == Some(false)).then(|| "inactive color".to_owned());
        let who: Vec<String> = [announced, imposed, inactive].into_iter().flatten().collect();
        let state = self.state.unwrap_or("–");
        if who.is_empty() { state.to_owned() } else { format!("{state} ({})", who.join(", ")) }
    }
}

/// Whether an upstream's color is active; none where no colors are set, or not well.
pub(crate) fn is_color_active(service: &Service, record: &Record) -> Option<bool> {
    let Ok(Setting::Active(active)) = &service.setting(SettingName::Active)?.value else { return None };
    Some(record.color.as_ref().is_some_and(|color| active.share_of(color).is_some()))
}

/// An announcer's drain is HAProxy's maint: that upstream is about to go. An operator's, and an inactive color, are its
/// drain.
fn strictest_state(announced: UpstreamState, imposed: Option<OverrideState>, active: Option<bool>) -> &'static str {
    match (announced, imposed, active) {
        (UpstreamState::Drain | UpstreamState::Down, _, _) | (_, Some(OverrideState::Maint), _) => "maint",
        (_, Some(OverrideState::Drain), _) | (_, _, Some(false)) => "drain",
        (UpstreamState::Ready, None, None | Some(true)) => "ready",
    }
}

/// What the balancers say of the upstreams of one service.
pub(crate) fn extract_upstreams(answers: &Answers<ServiceInFull>) -> Answers<Upstreams> {
    let upstreams = |it: &ServiceInFull| Upstreams {
        haproxy_error: it.haproxy_error.clone(),
        applied: it.applied,
        upstreams: it.upstreams.clone(),
    };
    answers.iter().map(|(node, answer)| (node.clone(), answer.as_ref().map(upstreams).map_err(Clone::clone))).collect()
}

/// The balancers that couldn't be asked, and why.
pub(crate) fn list_unreachable<T>(answers: &Answers<T>) -> BTreeMap<String, String> {
    answers.iter().filter_map(|(node, it)| Some((node.to_string(), it.as_ref().err()?.clone()))).collect()
}

/// The same for people, a line for each.
pub(crate) fn describe_unreachable(unreachable: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    unreachable.iter().map(|(node, reason)| format!("{node} can't be asked: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn the_strictest_counts_and_a_balancer_is_told_in_one_word() {
        let store = store(&[
            ("http-services/shop/active", "blue"),
            ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue"}"#),
            ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","color":"green","weight":7}"#),
            ("http-services/shop/upstreams/c", r#"{"address":"10.0.0.3:80","color":"blue","state":"drain"}"#),
            ("http-services/shop/upstreams/d", "?"),
            ("http-services/shop/overrides/a", r#"{"state":"maint","weight":3}"#),
        ]);
        let lb1 = serde_json::from_str(
            r#"{"upstreams":[
                {"service":"http-shop","id":"a","balanced":false,"haproxy":{"status":"MAINT","sessions":2}},
                {"service":"http-shop","id":"b","balanced":false,"draining":4,"haproxy":{"status":"DRAIN"}},
                {"service":"http-shop","id":"gone","balanced":true,"held":true,"haproxy":{"status":"UP","up":true,"rate":9}}
            ]}"#,
        );
        let answers: Answers<Upstreams> =
            [("lb1".parse().unwrap(), Ok(lb1.unwrap())), ("lb2".parse().unwrap(), Err("no".to_owned()))].into();
        let rows = build_rows(Keys::from(&store), &answers, None);
        let line = |row: &Row| {
            let there = &row.balancers["lb1"];
            let weight = row.asked.weight.unwrap_or_default();
            format!(
                "{} {weight} {} | {:?} {:?}",
                row.id,
                row.asked.describe_state(),
                there.state.unwrap(),
                there.sessions
            )
        };
        assert_eq!(
            rows.values().map(line).collect::<Vec<_>>(),
            [
                r#"a 3 maint (override: maint) | "maint" Some(2)"#,
                r#"b 7 drain (inactive color) | "draining" Some(4)"#,
                r#"c 100 maint (announcer: drain) | "absent" None"#,
                r#"d 0 – | "absent" None"#,
                r#"gone 0 – | "up" Some(0)"#,
            ]
        );
        let lb2 = &rows.values().next().unwrap().balancers["lb2"];
        assert_eq!((lb2.state, lb2.cause.as_ref()), (None, Some(&Cause::NoDomain)));
        assert!(lb2.verdict.has_cause(&Cause::ApiUnreachable), "{lb2:?}");
    }
}
