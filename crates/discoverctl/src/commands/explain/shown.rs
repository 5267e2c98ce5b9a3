//! The answer of `explain`: keys, lines, HAProxy's state and the verdicts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{
    Cause, CopyReport, Node, Override, ParsedEntry, ServiceId, Setting, Upstream as Record, UpstreamId, Verdict,
    explain_missing_copy,
};
use serde::Serialize;

use super::last::{LastRecord, no_record_reason};
use super::unfollowed::{self, UnfollowedKey};
use crate::balancer_api::{Answers, ServiceInFull, Traffic};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::{Store, lossy_text};
use crate::upstreams::StoreView;
use crate::verdict::{BalancerAnswer, Case, Keys};

use crate::commands::copies;

#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    /// The name of the service's section: `http-shop`.
    id: String,
    revision: i64,
    settings: Vec<KeyShown>,
    upstreams: Vec<Explained>,
    /// The copies with their slots; null if their number isn't limited.
    copies: Option<CopyReport>,
    /// The keys below the service that no balancer can follow.
    unfollowed: Vec<UnfollowedKey>,
    /// The operator asked for one upstream.
    #[serde(skip)]
    is_one: bool,
}

/// A key and its parsed value.
#[derive(Debug, Serialize)]
struct KeyShown {
    /// The key, relative to the prefix.
    key: String,
    /// The value in the store.
    value: String,
    /// The meaning of the value; null if it can't be read.
    parsed: Option<String>,
    /// The reason why the value, or a part of it, can't be read; null if it can.
    refused: Option<String>,
    /// The key has a lease.
    lease: bool,
}

/// One upstream with its keys and verdicts.
#[derive(Debug, Serialize)]
struct Explained {
    id: String,
    /// Its record and its override.
    keys: Vec<KeyShown>,
    /// The state that the keys ask for.
    asked: StoreView,
    /// The last value of its record; null if the record exists, or if no old value was found.
    last: Option<LastRecord>,
    /// By balancer. Without a live balancer it has one entry, without a name.
    balancers: Vec<AtBalancer>,
}

/// One upstream at one balancer.
#[derive(Debug, Serialize)]
struct AtBalancer {
    /// Null if no balancer lives.
    balancer: Option<String>,
    /// The upstream's line in the balancer's haproxy.cfg.
    line: Option<String>,
    /// HAProxy's state of the server, in words.
    haproxy: Option<String>,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Explanation {
    pub(super) fn new(
        store: &Store,
        service: &ServiceId,
        ids: &BTreeSet<UpstreamId>,
        last: &BTreeMap<UpstreamId, LastRecord>,
        answers: &Answers<ServiceInFull>,
        is_one: bool,
    ) -> Self {
        let keys = store.topology.services().get(service);
        let settings = keys.into_iter().flat_map(|keys| keys.settings());
        let settings = settings.map(|(_, field)| KeyShown::from_field(field, Setting::to_string)).collect();
        let copies = store.topology.copies().get(service);
        let mut upstreams = Vec::new();
        for id in ids {
            let mut upstream = Explained::new(store, service, id, answers);
            // The search for old values takes several requests, so `explain SVC` doesn't search for each upstream.
            // A copy without a slot, or one that has just got it, has no record to look for.
            let is_copy = copies.is_some_and(|copies| explain_missing_copy(copies, id).is_some());
            if is_one && !is_copy {
                upstream.add_last_record(last.get(id));
            }
            upstreams.push(upstream);
        }
        let unfollowed = if is_one { Vec::new() } else { UnfollowedKey::list_below_service(store, service) };
        let copies = copies.map(|copies| CopyReport::new(copies));
        Self { id: service.to_string(), revision: store.revision, settings, upstreams, copies, unfollowed, is_one }
    }
}

impl Explained {
    fn new(store: &Store, service: &ServiceId, id: &UpstreamId, answers: &Answers<ServiceInFull>) -> Self {
        let service_keys = store.topology.services().get(service);
        let record = service_keys.and_then(|keys| keys.upstream(id));
        let imposed = service_keys.and_then(|keys| keys.override_of(id));
        let record = record.map(|field| KeyShown::from_field(field, record_words));
        let imposed = imposed.map(|field| KeyShown::from_field(field, override_words));
        let case = Case::new(Keys::from(store), service, id);
        let mut balancers: Vec<AtBalancer> =
            answers.iter().map(|(node, answer)| AtBalancer::from_answer(&case, id, node, answer)).collect();
        if balancers.is_empty() {
            let verdict = case.judge_without_balancer();
            balancers.push(AtBalancer { balancer: None, line: None, haproxy: None, verdict });
        }
        Self {
            id: id.to_string(),
            keys: record.into_iter().chain(imposed).collect(),
            asked: service_keys.map(|keys| StoreView::from_keys(keys, id)).unwrap_or_default(),
            last: None,
            balancers,
        }
    }

    fn add_last_record(&mut self, last: Option<&LastRecord>) {
        self.balancers.iter_mut().for_each(|at| at.explain_no_record(last));
        self.last = last.cloned();
    }
}

impl KeyShown {
    fn from_field<T>(field: &Arc<ParsedEntry<T>>, words: impl Fn(&T) -> String) -> Self {
        Self {
            key: field.entry.key.clone(),
            value: lossy_text(&field.entry).trim().to_owned(),
            parsed: field.value.as_ref().ok().map(words),
            refused: field.refusal_text(),
            lease: field.entry.lease != 0,
        }
    }

    fn parsed_cell(&self) -> Cell {
        match (&self.parsed, &self.refused) {
            (Some(parsed), None) => parsed.as_str().into(),
            (Some(parsed), Some(unread)) => Cell::bad(format!("{parsed} ({unread})")),
            (None, Some(refused)) => Cell::bad(refused),
            (None, None) => "–".into(),
        }
    }
}

fn record_words(record: &Record) -> String {
    let mut words = vec![record.address.to_string(), format!("weight {}", record.weight)];
    words.extend(record.color.as_ref().map(|color| format!("color {color}")));
    words.extend(record.host.as_ref().map(|host| format!("host {host}")));
    words.push(format!("{:?}", record.state).to_lowercase());
    words.extend(record.backup.then(|| "backup".to_owned()));
    words.extend(record.permanent.then(|| "permanent".to_owned()));
    words.join(", ")
}

fn override_words(it: &Override) -> String {
    let state = it.state.map(|state| format!("{state:?}").to_lowercase());
    let weight = it.weight.map(|weight| format!("weight {weight}"));
    let host = it.host.as_ref().map(|host| format!("with the whole host {host}"));
    let words: Vec<String> = [state, weight, host].into_iter().flatten().collect();
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

fn haproxy_words(traffic: &Traffic) -> String {
    let check = [&traffic.check, &traffic.check_words].into_iter().flatten().map(String::as_str);
    let check = check.collect::<Vec<_>>().join(": ");
    let check = if check.is_empty() { String::new() } else { format!(", check {check}") };
    let Traffic { status, weight, sessions, since_seconds, .. } = traffic;
    format!("{status} for {since_seconds} s, weight {weight}, {sessions} sessions{check}")
}

impl AtBalancer {
    fn from_answer(case: &Case, id: &UpstreamId, node: &Node, answer: &Result<ServiceInFull, String>) -> Self {
        let answered = match answer {
            Err(reason) => Err(reason.as_str()),
            Ok(answer) => Ok(BalancerAnswer {
                haproxy_error: answer.haproxy_error.as_deref(),
                applied: answer.applied,
                upstream: answer.upstreams.iter().find(|it| it.id == id.as_str()),
            }),
        };
        let there = answered.ok().and_then(|it| it.upstream);
        Self {
            balancer: Some(node.to_string()),
            line: there.and_then(|it| it.line.clone()),
            haproxy: there.and_then(|it| it.haproxy.as_ref()).map(haproxy_words),
            verdict: case.judge_at(node, answered),
        }
    }

    /// Replaces the reason of a missing record by what etcd's older revisions tell.
    fn explain_no_record(&mut self, last: Option<&LastRecord>) {
        let reasons = self.verdict.because.iter_mut().chain(&mut self.verdict.also);
        let gone = reasons.filter(|reason| reason.cause == Cause::NoRecord);
        gone.for_each(|reason| *reason = no_record_reason(last));
    }

    fn requests_cell(&self) -> Cell {
        match self.verdict.gets_requests {
            Some(true) => Cell::good("yes"),
            Some(false) => Cell::bad("no"),
            None => "–".into(),
        }
    }
}

impl Printable for Explanation {
    fn to_blocks(&self) -> Vec<Block> {
        let mut blocks = vec![Block::Text(format!("{} at revision {}", self.id, self.revision))];
        let upstreams = self.upstreams.iter().filter(|_| self.is_one).flat_map(|it| &it.keys);
        let mut keys = Table::new(["KEY", "VALUE", "READ AS"]);
        for it in self.settings.iter().chain(upstreams) {
            keys.add_row([it.key.as_str().into(), it.value.as_str().into(), it.parsed_cell()]);
        }
        let mut lines = Table::new(["UPSTREAM", "BALANCER", "LINE", "HAPROXY"]);
        let mut verdicts = Table::new(["UPSTREAM", "BALANCER", "REQUESTS", "CAUSE", "WHY"]);
        for (it, at) in self.upstreams.iter().flat_map(|it| it.balancers.iter().map(move |at| (it, at))) {
            let (id, balancer) = (Cell::from(it.id.as_str()), Cell::or_dash(at.balancer.as_ref()));
            let (line, haproxy) = (Cell::or_dash(at.line.as_ref()), Cell::or_dash(at.haproxy.as_ref()));
            lines.add_row([id.clone(), balancer.clone(), line, haproxy]);
            let because = at.verdict.because.as_ref();
            let cause = Cell::or_dash(because.map(|reason| reason.cause.name()));
            let why = Cell::or_dash(because.map(|reason| &reason.words));
            verdicts.add_row([id.clone(), balancer.clone(), at.requests_cell(), cause, why]);
            for also in &at.verdict.also {
                verdicts.add_row([
                    id.clone(),
                    balancer.clone(),
                    "also".into(),
                    also.cause.name().into(),
                    also.words.as_str().into(),
                ]);
            }
        }
        let copies = self.copies.iter().filter(|_| !self.is_one).flat_map(copies::blocks);
        if self.upstreams.is_empty() {
            blocks.extend([keys].map(Block::Table));
            blocks.extend(unfollowed::keys_block(&self.unfollowed));
            blocks.push(Block::Text("no upstream: its clients get 503".into()));
            return blocks;
        }
        blocks.extend([keys, lines].map(Block::Table));
        blocks.extend(unfollowed::keys_block(&self.unfollowed));
        blocks.extend(copies);
        // The verdict comes last, because scripts and people read the last line.
        blocks.push(Block::Table(verdicts));
        blocks
    }
}
