//! Faults that the balancers' answers about upstreams and services show. Pure.
//!
//! The store alone doesn't tell the state of clients. A balancer may retain upstreams without a key, and another
//! service may own a claim. So a fault mentions clients only if a balancer says so.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Cause, Key, Node, ServiceId, UpstreamId};

use super::{Finding, LintInput};
use crate::balancer_api::Service;
use crate::upstreams::Row;
use crate::verdict::record_key;

/// Joins the names of balancers.
pub(super) fn join_names(nodes: &BTreeSet<&Node>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl<'a> LintInput<'a> {
    /// The balancers that answered about upstreams.
    pub(super) fn answering_nodes(&self) -> BTreeSet<&'a Node> {
        self.upstreams.iter().filter(|(_, answer)| answer.is_ok()).map(|(node, _)| node).collect()
    }

    /// The balancers that couldn't be asked.
    pub(super) fn silent_nodes(&self) -> BTreeSet<&'a Node> {
        self.upstreams.iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| node).collect()
    }

    /// The reason why the state of clients is unknown; None if every live balancer answered.
    pub(super) fn unknown_reason(&self) -> Option<String> {
        let silent = self.silent_nodes();
        if self.upstreams.is_empty() {
            return Some("no balancer lives that could be asked".into());
        }
        (!silent.is_empty()).then(|| format!("{} can't be asked", join_names(&silent)))
    }

    /// The balancers that retain an upstream of the service without a key.
    pub(super) fn nodes_retaining_service(&self, service: &ServiceId) -> BTreeSet<&'a Node> {
        let name = service.to_string();
        let of = self.retained.iter().filter(|((service, _), _)| *service == name);
        of.flat_map(|(_, by)| by.keys().copied()).collect()
    }

    /// The balancers that retain this upstream without a key.
    pub(super) fn nodes_retaining_upstream(&self, service: &ServiceId, id: &UpstreamId) -> BTreeSet<&'a Node> {
        let name = service.to_string();
        self.retained.get(&(name.as_str(), id.as_str())).into_iter().flat_map(|by| by.keys().copied()).collect()
    }

    /// The service at each balancer that answered about services.
    pub(super) fn list_served(&self, service: &ServiceId) -> impl Iterator<Item = (&'a Node, &'a Service)> {
        let name = service.to_string();
        let served = self.served.get(name.as_str());
        served.into_iter().flatten().map(|(node, service)| (*node, *service)).collect::<Vec<_>>().into_iter()
    }

    /// The service's upstreams, as the balancers judge them.
    pub(super) fn rows_of(&self, service: &ServiceId) -> &[Row] {
        self.rows.get(service).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Finds retained upstreams, and services without requests.
pub(super) fn lint_answers(input: &LintInput) -> Vec<Finding> {
    let mut findings = lint_retained(input);
    for id in input.store.topology.services().keys() {
        findings.extend(lint_unserved(input, id));
    }
    findings
}

/// Finds upstreams that are served although their keys are gone.
fn lint_retained(input: &LintInput) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((service, id), by) in &input.retained {
        let each = by.iter().map(|(node, it)| match &it.held_since {
            Some(since) => format!("{node} since {since}"),
            None => node.to_string(),
        });
        let what = format!("its key is gone; retained by {}", each.collect::<Vec<_>>().join(", "));
        let is_reset = by.values().any(|it| it.held_by.as_deref() == Some("reset"));
        // After a reset only an announcement or the operator releases a key. The removal guard also does if a check fails.
        let todo = if is_reset {
            "have it announced again; if it is meant to be gone: discoverctl accept-store"
        } else {
            "see its announcer's log and lease; it goes when HAProxy's check fails; if it is meant to be gone: discoverctl \
             accept-store"
        };
        let key = upstream_key(service, id).unwrap_or_else(|| format!("{service}/{id}"));
        findings.push(Finding::new(key, "held", what, todo).with_cause(Cause::Retained));
    }
    findings
}

fn upstream_key(service: &str, id: &str) -> Option<String> {
    let (kind, name) = service.split_once('-')?;
    let kind = if kind == "http" { discovery::Kind::Http } else { discovery::Kind::Tcp };
    let key: Key = record_key(&ServiceId { kind, name: name.parse().ok()? }, &id.parse().ok()?).parse().ok()?;
    Some(key.to_string())
}

/// The cause is a fault of the keys, or only an operator can end it. `check` and `verify` report failing checks and
/// requested states. A balancer that is behind or out of sync has a finding of its own, or soon none.
fn is_odd(cause: &Cause) -> bool {
    use Cause::{Behind, Check, HaproxySilent, OutOfSync, Pending};
    !cause.is_intended() && !matches!(cause, Check | HaproxySilent | OutOfSync | Pending | Behind)
}

/// Finds services of which no upstream gets requests at a balancer. A balancer that can't tell doesn't count.
fn lint_unserved(input: &LintInput, id: &ServiceId) -> Vec<Finding> {
    let mut by_cause: BTreeMap<Cause, (String, BTreeSet<&Node>)> = BTreeMap::new();
    for node in input.answering_nodes() {
        let name = node.to_string();
        let there: Vec<_> = input.rows_of(id).iter().filter_map(|row| row.balancers.get(&name)).collect();
        let is_unserved = !there.is_empty() && there.iter().all(|it| it.balanced == Some(false));
        let first = there.iter().filter(|_| is_unserved).find_map(|it| it.verdict.because.as_ref());
        if let Some(reason) = first.filter(|reason| is_odd(&reason.cause)) {
            let (_, nodes) = by_cause.entry(reason.cause.clone()).or_insert((reason.words.clone(), BTreeSet::new()));
            nodes.insert(node);
        }
    }
    let mut findings = Vec::new();
    for (cause, (words, nodes)) in by_cause {
        let what = format!("no upstream gets requests at {}: {words}", join_names(&nodes));
        let todo = format!("discoverctl explain {}", id.name);
        findings.push(Finding::new(id.folder_path(), "no_requests", what, todo).with_cause(cause));
    }
    findings
}
