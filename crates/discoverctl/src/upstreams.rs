//! Upstreams as the store describes them and as each balancer serves them, in one row each.
//!
//! Pure: joins keys and answers. The verdicts come from `verdict`.

use std::collections::{BTreeMap, HashMap};

use discovery::{
    Cause, Node, OverrideState, Service, ServiceId, Setting, SettingName, Upstream as Record, UpstreamId,
    UpstreamState, Verdict,
};
use serde::Serialize;

use crate::balancer_api::{Answers, ServiceInFull, Traffic, Upstream, Upstreams};
use crate::print::Cell;
use crate::verdict::{BalancerAnswer, Case, Keys};

/// One upstream in the store and at each balancer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// The section of its service: `http-shop`.
    pub(crate) service: String,
    pub(crate) id: String,
    /// The state that its keys ask for.
    #[serde(flatten)]
    pub(crate) asked: StoreView,
    /// The state at each balancer, by node.
    pub(crate) balancers: BTreeMap<String, BalancerView>,
}

/// The state of one upstream as the store's keys ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StoreView {
    /// The record's IP address and port.
    pub(crate) address: Option<String>,
    /// The host that the record names.
    pub(crate) host: Option<String>,
    pub(crate) color: Option<String>,
    /// The override's weight, else the record's. A color's share is not included.
    pub(crate) weight: Option<u16>,
    /// The strictest of record, override and color: `ready`, `drain`, `maint`; null without a good record.
    pub(crate) state: Option<&'static str>,
    /// The record's state: `ready`, `drain`, `down`.
    pub(crate) announced: Option<&'static str>,
    /// The override's state: `drain`, `maint`.
    pub(crate) imposed: Option<&'static str>,
    /// The upstream's color is active; null if the service sets no active colors.
    pub(crate) active: Option<bool>,
    /// HAProxy uses it only if no other upstream is up.
    pub(crate) backup: bool,
}

/// The state of one upstream at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct BalancerView {
    /// `up`, `down`, `draining`, `maint`, `absent` (HAProxy has no such server); null if HAProxy or the API doesn't
    /// answer.
    pub(crate) state: Option<&'static str>,
    /// It gets new requests; null if the balancer can't tell.
    pub(crate) balanced: Option<bool>,
    /// The verdict's cause, as `explain` names it; null if it gets requests.
    pub(crate) cause: Option<Cause>,
    /// The verdict's cause in words.
    pub(crate) why: Option<String>,
    /// Open sessions; while it drains, in old HAProxy processes too.
    pub(crate) sessions: Option<u64>,
    /// Requests in the last second; connections of a TCP service.
    pub(crate) rate: Option<u64>,
    /// It is retained: served although its key is gone.
    pub(crate) held: bool,
    /// The time since when it is retained, RFC 3339; null if it isn't, or if the balancer doesn't know.
    pub(crate) held_since: Option<String>,
    /// `guard` or `reset`, by the mechanism that retains it.
    pub(crate) held_by: Option<String>,
    /// HAProxy's own counters and check result.
    #[serde(skip)]
    pub(crate) traffic: Option<Traffic>,
    /// The verdict with all its reasons.
    #[serde(skip)]
    pub(crate) verdict: Verdict,
}

/// Builds the rows of all services, or of one: upstreams that have a record, and upstreams that a balancer retains
/// without one.
pub(crate) fn build_rows(
    store: Keys,
    answers: &Answers<Upstreams>,
    only: Option<&ServiceId>,
) -> BTreeMap<(ServiceId, UpstreamId), Row> {
    let services = store.topology.services().iter().filter(|(id, _)| only.is_none_or(|only| only == *id));
    // A balancer may list 10,000 upstreams. A search through its list for each row would take quadratic time.
    let indexed: BTreeMap<&Node, Result<Index, &String>> =
        answers.iter().map(|(node, answer)| (node, answer.as_ref().map(Index::from_answer))).collect();
    let mut rows = BTreeMap::new();
    for (service, keys) in services {
        let name = service.to_string();
        // A retained upstream has no record, so only the answers name it.
        let retained = indexed.values().flatten().flat_map(|index| index.retained.get(name.as_str()));
        let retained = retained.flatten().filter_map(|id| id.parse().ok());
        for id in keys.upstreams().map(|(id, _)| id.clone()).chain(retained) {
            let case = Case::new(store, service, &id);
            let mut balancers = BTreeMap::new();
            for (node, index) in &indexed {
                let answered = match index {
                    Ok(index) => Ok(index.find_answer(&name, id.as_str())),
                    Err(reason) => Err(reason.as_str()),
                };
                balancers
                    .insert(node.to_string(), BalancerView::from_verdict(answered.ok(), case.judge_at(node, answered)));
            }
            let asked = StoreView::from_keys(keys, &id);
            let row = Row { service: name.clone(), id: id.to_string(), asked, balancers };
            rows.insert((service.clone(), id), row);
        }
    }
    rows
}

/// One balancer's answer, indexed by service and id.
struct Index<'a> {
    error: Option<&'a str>,
    applied: Option<i64>,
    upstreams: HashMap<(&'a str, &'a str), &'a Upstream>,
    /// By service, the ids of retained upstreams.
    retained: HashMap<&'a str, Vec<&'a str>>,
}

impl<'a> Index<'a> {
    fn from_answer(answer: &'a Upstreams) -> Self {
        let mut retained: HashMap<&str, Vec<&str>> = HashMap::new();
        for it in answer.upstreams.iter().filter(|it| it.held) {
            retained.entry(&it.service).or_default().push(&it.id);
        }
        let upstreams = answer.upstreams.iter().map(|it| ((it.service.as_str(), it.id.as_str()), it)).collect();
        Self { error: answer.haproxy_error.as_deref(), applied: answer.applied, upstreams, retained }
    }

    fn find_answer(&self, service: &str, id: &str) -> BalancerAnswer<'a> {
        let upstream = self.upstreams.get(&(service, id)).copied();
        BalancerAnswer { haproxy_error: self.error, applied: self.applied, upstream }
    }
}

impl BalancerView {
    /// `answered` is None if the balancer can't be asked.
    fn from_verdict(answered: Option<BalancerAnswer>, verdict: Verdict) -> Self {
        let upstream = answered.and_then(|it| it.upstream);
        // If HAProxy doesn't answer, the balancer knows no state. An upstream that the balancer doesn't know is absent
        // all the same.
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

    /// Describes that the upstream is retained, and since when; None if it isn't.
    pub(crate) fn describe_retained(&self) -> Option<String> {
        let since = self.held_since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        let by = match self.held_by.as_deref() {
            Some("guard") => " by the removal guard",
            Some("reset") => " after a reset of the store",
            _ => "",
        };
        self.held.then(|| format!("its key is gone; retained{by}{since}"))
    }

    /// The state in one word with its cause, or a dash.
    pub(crate) fn to_cell(&self) -> Cell {
        // An upstream that is down or drains says enough. One that is up without requests needs its cause.
        let cause = self.cause.as_ref().filter(|_| matches!(self.state, Some("up" | "absent"))).map(Cause::name);
        let notes: Vec<&str> = self.held.then_some("held").into_iter().chain(cause).collect();
        let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join(", ")) };
        match self.state {
            None => "–".into(),
            Some("up") if self.balanced == Some(false) => Cell::bad(format!("up{notes}")),
            Some("up") => Cell::good(format!("up{notes}")),
            Some(state @ ("down" | "absent")) => Cell::bad(format!("{state}{notes}")),
            Some(state) => Cell::odd(format!("{state}{notes}")),
        }
    }
}

/// Reduces HAProxy's many status words to four. `draining` is the number of sessions that are left of a drain.
fn simplify_status(traffic: &Traffic, draining: Option<u64>) -> &'static str {
    // HAProxy adds to its words: `UP 1/3`, `MAINT (resolution)`.
    match (draining, traffic.status.as_str()) {
        (Some(_), _) => "draining",
        (None, _) if traffic.up => "up",
        (None, status) if status.starts_with("DRAIN") => "draining",
        (None, status) if status.starts_with("MAINT") => "maint",
        (None, _) => "down",
    }
}

impl StoreView {
    /// Reads what the service's keys ask for this upstream.
    pub(crate) fn from_keys(service: &Service, id: &UpstreamId) -> Self {
        let record = service.upstream(id).and_then(|field| field.value.as_ref().ok());
        let imposed = service.override_of(id).and_then(|field| field.value.as_ref().ok());
        let active = record.and_then(|record| is_color_active(service, record));
        let imposed_weight = imposed.and_then(|it| it.weight);
        let weight = imposed_weight.or(record.map(|it| it.weight)).map(discovery::Weight::get);
        let (announced, imposed) = (record.map(|it| it.state), imposed.and_then(|it| it.state));
        Self {
            address: record.map(|it| it.address.to_string()),
            host: record.and_then(|it| it.host.as_ref()).map(ToString::to_string),
            color: record.and_then(|it| it.color.as_ref()).map(ToString::to_string),
            // An override without a record has no upstream to weigh.
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

    /// The state, and in brackets each source that is stricter than the announcer's `ready`.
    pub(crate) fn describe_state(&self) -> String {
        let announced = self.announced.filter(|state| *state != "ready").map(|state| format!("announcer: {state}"));
        let imposed = self.imposed.map(|state| format!("override: {state}"));
        let inactive = (self.active == Some(false)).then(|| "inactive color".to_owned());
        let sources: Vec<String> = [announced, imposed, inactive].into_iter().flatten().collect();
        let state = self.state.unwrap_or("–");
        if sources.is_empty() { state.to_owned() } else { format!("{state} ({})", sources.join(", ")) }
    }
}

/// The upstream's color is active; None if the service sets no active colors, or if their value can't be read.
pub(crate) fn is_color_active(service: &Service, record: &Record) -> Option<bool> {
    let Ok(Setting::Active(active)) = &service.setting(SettingName::Active)?.value else { return None };
    Some(record.color.as_ref().is_some_and(|color| active.share_of(color).is_some()))
}

/// An announcer's `drain` becomes HAProxy's maint, because that upstream is about to stop. The `drain` of an override
/// or of an inactive color keeps sticky clients.
fn strictest_state(announced: UpstreamState, imposed: Option<OverrideState>, active: Option<bool>) -> &'static str {
    match (announced, imposed, active) {
        (UpstreamState::Drain | UpstreamState::Down, _, _) | (_, Some(OverrideState::Maint), _) => "maint",
        (_, Some(OverrideState::Drain), _) | (_, _, Some(false)) => "drain",
        (UpstreamState::Ready, None, None | Some(true)) => "ready",
    }
}

/// Extracts the upstreams from answers about one service.
pub(crate) fn extract_upstreams(answers: &Answers<ServiceInFull>) -> Answers<Upstreams> {
    answers.iter().map(|(node, answer)| (node.clone(), answer.clone().map(keep_upstreams))).collect()
}

fn keep_upstreams(answer: ServiceInFull) -> Upstreams {
    let ServiceInFull { haproxy_error, applied, upstreams, .. } = answer;
    Upstreams { haproxy_error, applied, upstreams }
}

/// Lists the balancers without an answer, with the reason.
pub(crate) fn list_unreachable<T>(answers: &Answers<T>) -> BTreeMap<String, String> {
    answers.iter().filter_map(|(node, it)| Some((node.to_string(), it.as_ref().err()?.clone()))).collect()
}

/// Describes the balancers without an answer, a line for each.
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
