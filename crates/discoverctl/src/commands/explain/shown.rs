//! What `explain` answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Cause, Field, Node, Override, ServiceId, Setting, Upstream as Record, UpstreamId, Verdict};
use serde::Serialize;

use super::last::{Last, no_record};
use super::unfollowed::{self, UnfollowedKey};
use crate::balancer_api::{Answers, ServiceInFull, Traffic};
use crate::print::{Block, Cell, Shown, Table};
use crate::store::Store;
use crate::upstreams::Asked;
use crate::verdict::{Answered, Case, Keys};

/// What `explain` answers.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    /// `http-shop`.
    id: String,
    /// The store's revision.
    revision: i64,
    /// The service's settings.
    settings: Vec<KeyShown>,
    /// By id.
    upstreams: Vec<Explained>,
    /// The keys below the service that no balancer can follow.
    unfollowed: Vec<UnfollowedKey>,
    /// One upstream was asked about.
    #[serde(skip)]
    is_one: bool,
}

/// A key and what is read from it.
#[derive(Debug, Serialize)]
struct KeyShown {
    /// Relative to the prefix.
    key: String,
    /// As it stands there.
    value: String,
    /// What it means; null where that can't be read.
    parsed: Option<String>,
    /// Why it can't.
    refused: Option<String>,
    /// It hangs on a lease.
    lease: bool,
}

/// One upstream.
#[derive(Debug, Serialize)]
struct Explained {
    /// Its id.
    id: String,
    /// Its record and what is imposed on it.
    keys: Vec<KeyShown>,
    /// What they ask for.
    asked: Asked,
    /// What the store last had of its record, where it is gone.
    last: Option<Last>,
    /// By balancer; one without a name where none lives.
    balancers: Vec<At>,
}

/// One balancer's part.
#[derive(Debug, Serialize)]
struct At {
    /// The balancer; null where none lives.
    balancer: Option<String>,
    /// The line in its haproxy.cfg.
    line: Option<String>,
    /// What HAProxy makes of it.
    haproxy: Option<String>,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Explanation {
    pub(super) fn of(
        store: &Store,
        service: &ServiceId,
        ids: &BTreeSet<UpstreamId>,
        last: &BTreeMap<UpstreamId, Last>,
        answers: &Answers<ServiceInFull>,
        is_one: bool,
    ) -> Self {
        let keys = store.topology.services().get(service);
        let settings = keys.into_iter().flat_map(|keys| keys.settings());
        let settings = settings.map(|(_, field)| KeyShown::of(field, Setting::to_string)).collect();
        let explain = |id: &UpstreamId| {
            let record = keys.and_then(|keys| keys.upstream(id)).map(|field| KeyShown::of(field, record_words));
            let imposed = keys.and_then(|keys| keys.imposed(id)).map(|field| KeyShown::of(field, override_words));
            let case = Case::of(Keys::from(store), service, id);
            let mut balancers: Vec<At> = answers.iter().map(|(node, answer)| At::of(&case, id, node, answer)).collect();
            if balancers.is_empty() {
                balancers.push(At { balancer: None, line: None, haproxy: None, verdict: case.without_balancer() });
            }
            if is_one {
                // Of a whole service's upstreams, none is looked for in the past.
                balancers.iter_mut().for_each(|at| at.recall(last.get(id)));
            }
            let asked = keys.map(|keys| Asked::of(keys, id)).unwrap_or_default();
            let keys = record.into_iter().chain(imposed).collect();
            Explained { id: id.to_string(), keys, asked, last: last.get(id).cloned(), balancers }
        };
        let upstreams = ids.iter().map(explain).collect();
        let unfollowed = if is_one { Vec::new() } else { UnfollowedKey::of_service(store, service) };
        Self { id: service.to_string(), revision: store.revision, settings, upstreams, unfollowed, is_one }
    }
}

impl KeyShown {
    fn of<T>(field: &Arc<Field<T>>, words: impl Fn(&T) -> String) -> Self {
        Self {
            key: field.entry.key.clone(),
            value: String::from_utf8_lossy(&field.entry.value).trim().to_owned(),
            parsed: field.value.as_ref().ok().map(words),
            refused: field.refused(),
            lease: field.entry.lease != 0,
        }
    }

    fn read(&self) -> Cell {
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
    words.push(format!("{:?}", record.state).to_lowercase());
    words.extend(record.backup.then(|| "backup".to_owned()));
    words.extend(record.permanent.then(|| "permanent".to_owned()));
    words.join(", ")
}

fn override_words(it: &Override) -> String {
    let state = it.state.map(|state| format!("{state:?}").to_lowercase());
    let weight = it.weight.map(|weight| format!("weight {weight}"));
    let words: Vec<String> = [state, weight].into_iter().flatten().collect();
    if words.is_empty() { "nothing".into() } else { words.join(", ") }
}

fn haproxy_words(traffic: &Traffic) -> String {
    let check = [&traffic.check, &traffic.check_words].into_iter().flatten().map(String::as_str);
    let check = check.collect::<Vec<_>>().join(": ");
    let check = if check.is_empty() { String::new() } else { format!(", check {check}") };
    let Traffic { status, weight, sessions, since_seconds, .. } = traffic;
    format!("{status} for {since_seconds} s, weight {weight}, {sessions} sessions{check}")
}

impl At {
    fn of(case: &Case, id: &UpstreamId, node: &Node, answer: &Result<ServiceInFull, String>) -> Self {
        let answered = match answer {
            Err(reason) => Err(reason.as_str()),
            Ok(answer) => Ok(Answered {
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
            verdict: case.at(node, answered),
        }
    }

    /// Says what a record that is gone was, as far as etcd's past tells.
    fn recall(&mut self, last: Option<&Last>) {
        let reasons = self.verdict.because.iter_mut().chain(&mut self.verdict.also);
        let gone = reasons.filter(|reason| reason.cause == Cause::NoRecord);
        gone.for_each(|reason| *reason = no_record(last));
    }

    fn requests(&self) -> Cell {
        match self.verdict.gets_requests {
            Some(true) => Cell::good("yes"),
            Some(false) => Cell::bad("no"),
            None => "–".into(),
        }
    }
}

impl Shown for Explanation {
    fn blocks(&self) -> Vec<Block> {
        let mut blocks = vec![Block::Text(format!("{} at revision {}", self.id, self.revision))];
        let upstreams = self.upstreams.iter().filter(|_| self.is_one).flat_map(|it| &it.keys);
        let mut keys = Table::new(["KEY", "VALUE", "READ AS"]);
        for it in self.settings.iter().chain(upstreams) {
            keys.row([it.key.as_str().into(), it.value.as_str().into(), it.read()]);
        }
        let mut lines = Table::new(["UPSTREAM", "BALANCER", "LINE", "HAPROXY"]);
        let mut verdicts = Table::new(["UPSTREAM", "BALANCER", "REQUESTS", "CAUSE", "WHY"]);
        for (it, at) in self.upstreams.iter().flat_map(|it| it.balancers.iter().map(move |at| (it, at))) {
            let (id, balancer) = (Cell::from(it.id.as_str()), Cell::of(at.balancer.as_ref()));
            let (line, haproxy) = (Cell::of(at.line.as_ref()), Cell::of(at.haproxy.as_ref()));
            lines.row([id.clone(), balancer.clone(), line, haproxy]);
            let because = at.verdict.because.as_ref();
            let cause = Cell::of(because.map(|reason| reason.cause.name()));
            let why = Cell::of(because.map(|reason| &reason.words));
            verdicts.row([id.clone(), balancer.clone(), at.requests(), cause, why]);
            for also in &at.verdict.also {
                verdicts.row([
                    id.clone(),
                    balancer.clone(),
                    "also".into(),
                    also.cause.name().into(),
                    also.words.as_str().into(),
                ]);
            }
        }
        if self.upstreams.is_empty() {
            blocks.extend([keys].map(Block::Table));
            blocks.extend(unfollowed::blocks(&self.unfollowed));
            blocks.push(Block::Text("no upstream: its clients get 503".into()));
            return blocks;
        }
        blocks.extend([keys, lines].map(Block::Table));
        blocks.extend(unfollowed::blocks(&self.unfollowed));
        // Last, since scripts and people read the last line.
        blocks.push(Block::Table(verdicts));
        blocks
    }
}
