//! Faults of the balancers: their records, the keys that they refuse, and their disagreements.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use discovery::Node;

use super::answers::join_names;
use super::{Finding, LintInput};

/// Finds the faults. `known` are those of the store: if a value is unreadable, every balancer refuses it.
pub(super) fn lint_balancers(input: &LintInput, known: &[Finding]) -> Vec<Finding> {
    let mut findings = lint_balancer_keys(input);
    findings.extend(lint_old_haproxys(input));
    findings.extend(lint_quarantined(input, known));
    findings.extend(lint_disputed_claims(input));
    findings
}

/// Finds faults in the balancers' own records.
fn lint_balancer_keys(input: &LintInput) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (node, record) in input.store.balancers.records_by_node() {
        let key = format!("balancers/{node}");
        let Some(record) = record else {
            let todo = "see which program writes it; nothing that waits for balancers ends while it stands";
            findings.push(Finding::new(key, "balancer_garbled", "it makes no sense", todo));
            continue;
        };
        if record.cluster != input.store.cluster {
            let what = format!("it follows the cluster {}, and this is {}", record.cluster, input.store.cluster);
            let todo = "see --endpoints of its confgen; after a wiped store: discoverctl accept-store";
            findings.push(Finding::new(key.clone(), "other_store", what, todo));
        }
        // A balancer that can't be asked is no finding, so only an answer counts.
        if let Some(Ok(status)) = input.status.get(node).filter(|status| status.as_ref().is_ok_and(|it| !it.in_sync)) {
            let todo = "its log and its /api/v1/history say what was tried";
            findings.push(Finding::new(key.clone(), "out_of_sync", status.words.clone(), todo));
        }
        if record.url.is_none() {
            let what = "it doesn't say where its API is: check, verify and explain can't ask it";
            findings.push(Finding::new(key, "no_url", what, "--admin and --admin-host of its confgen"));
        }
    }
    findings
}

/// The time for which a connection that was cut is a finding.
const CUT_OFF_FOR: Duration = Duration::from_secs(24 * 3600);

/// Finds balancers that can't ask all of their HAProxys, and those of which handover has lately cut connections.
fn lint_old_haproxys(input: &LintInput) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (node, status) in input.status.iter().filter_map(|(node, it)| Some((node, it.as_ref().ok()?))) {
        let key = format!("balancers/{node}");
        let old = &status.old_haproxys;
        if old.silent > 0 {
            let what =
                format!("{} masters or processes of HAProxy don't answer: drains wait for their age", old.silent);
            let todo = "is its confgen in handover's --group?";
            findings.push(Finding::new(key.clone(), "haproxy_silent", what, todo));
        }
        let last = old.cut_off.last.as_deref().and_then(|last| humantime::parse_rfc3339(last).ok());
        if last.is_some_and(|last| input.now.duration_since(last).unwrap_or_default() < CUT_OFF_FOR) {
            let what = format!(
                "handover has ended {} old HAProxys with {} connections, because there were too many or they had too much memory",
                old.cut_off.processes, old.cut_off.connections
            );
            let todo = "restart HAProxy less often, or raise handover's --old-processes or --old-memory";
            findings.push(Finding::new(key, "connections_cut", what, todo));
        }
    }
    findings
}

/// Finds refused keys, and keys that only some balancers refuse. The API's list is complete. The list in a balancer's
/// record may be cut.
fn lint_quarantined(input: &LintInput, known: &[Finding]) -> Vec<Finding> {
    let mut by_node: BTreeMap<&Node, BTreeMap<&str, &str>> = BTreeMap::new();
    for (node, record) in input.store.balancers.records_by_node() {
        // A balancer without a record disagrees with none. A list that is cut doesn't tell which other keys are
        // followed.
        let Some(record) = record.filter(|record| !record.more.contains("quarantined")) else { continue };
        let keys = record.quarantined.iter();
        by_node.insert(node, keys.map(|(key, reason)| (key.as_str(), reason.as_str())).collect());
    }
    // The API's list replaces that of the record, because it is never cut.
    for (node, answer) in input.quarantine.iter().filter_map(|(node, it)| Some((node, it.as_ref().ok()?))) {
        let keys = answer.quarantine.iter().map(|(key, reason)| (key.as_str(), reason.as_str()));
        by_node.insert(node, keys.collect());
    }
    let all_nodes: BTreeSet<&Node> = by_node.keys().copied().collect();
    let mut by_key: BTreeMap<&str, BTreeMap<&str, BTreeSet<&Node>>> = BTreeMap::new();
    for (node, keys) in &by_node {
        for (key, reason) in keys {
            by_key.entry(key).or_default().entry(reason).or_default().insert(node);
        }
    }
    let mut findings = Vec::new();
    for (key, reasons) in by_key {
        let refusing: BTreeSet<&Node> = reasons.values().flatten().copied().collect();
        // The store's own finding names the fault already. A disagreement is still new.
        let is_known =
            known.iter().any(|finding| finding.key == key && ["unreadable", "unfollowed_key"].contains(&finding.kind));
        for (reason, nodes) in reasons.iter().filter(|_| !is_known) {
            let what = format!("{} on {}", reason, join_names(nodes));
            findings.push(Finding::new(key, "quarantined", what, "mend the value, or delete the key"));
        }
        if refusing != all_nodes {
            let others: BTreeSet<&Node> = all_nodes.difference(&refusing).copied().collect();
            let what = format!("refused on {}, followed on {}", join_names(&refusing), join_names(&others));
            let todo = "their options or versions differ, or one is behind: look again, then compare them";
            findings.push(Finding::new(key, "disagreement", what, todo));
        }
    }
    findings
}

/// Finds claims that different services own at different balancers. The first claimant owns a claim at each balancer.
fn lint_disputed_claims(input: &LintInput) -> Vec<Finding> {
    let mut by_claim: BTreeMap<String, BTreeMap<String, BTreeSet<&Node>>> = BTreeMap::new();
    for (node, answer) in input.services.iter().filter_map(|(node, it)| Some((node, it.as_ref().ok()?))) {
        for service in &answer.services {
            let routes = service.routes.iter().map(|route| format!("{}{}", route.host, route.path));
            // `*:3306` and `10.0.0.5:3306` are the same claim.
            let ports = service.ports.iter().map(|bind| format!("port {}", bind.rsplit(':').next().unwrap_or(bind)));
            for claim in routes.chain(ports) {
                by_claim.entry(claim).or_default().entry(service.id.clone()).or_default().insert(node);
            }
        }
    }
    let mut findings = Vec::new();
    for (claim, owners) in by_claim.into_iter().filter(|(_, owners)| owners.len() > 1) {
        let each: Vec<String> = owners.iter().map(|(id, nodes)| format!("{id} on {}", join_names(nodes))).collect();
        let what = format!("{claim} is served by {}", each.join(", "));
        let todo = "take the claim out of all but one of them";
        findings.push(Finding::new("balancers/", "disagreement", what, todo));
    }
    findings
}
