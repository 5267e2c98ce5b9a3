//! Faults of whole services. Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Claim, Kind, Service, ServiceId, Setting, SettingName, UpstreamAddress, collect_claims};

use super::answers::join_names;
use super::{Finding, LintInput};
use crate::verdict::has_claim_key;

pub(super) fn lint_services(input: &LintInput) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut claimants: BTreeMap<(Kind, Claim), Vec<&ServiceId>> = BTreeMap::new();
    for (id, service) in input.store.topology.services() {
        findings.extend(lint_nameless(input, id, service));
        findings.extend(lint_without_record(input, id, service));
        findings.extend(lint_empty_colors(input, id, service));
        findings.extend(lint_double_addresses(service));
        let settings: Vec<&Setting> = service.settings().filter_map(|(_, field)| field.value.as_ref().ok()).collect();
        for claim in collect_claims(settings) {
            claimants.entry((id.kind, claim)).or_default().push(id);
        }
    }
    let contested = claimants.iter().filter(|(_, ids)| ids.len() > 1);
    findings.extend(contested.flat_map(|((_, claim), ids)| lint_rivals(input, claim, ids)));
    findings
}

/// Finds a service without a key that names its hosts or ports.
fn lint_nameless(input: &LintInput, id: &ServiceId, service: &Service) -> Option<Finding> {
    // The service `default` gets the hosts that no other service names.
    if id.is_default() || has_claim_key(service) {
        return None;
    }
    let key = if id.kind == Kind::Http { "domain" } else { "ports" };
    let named = input.list_served(id).filter(|(_, it)| !it.list_claims().is_empty());
    let named: BTreeSet<_> = named.map(|(node, _)| node).collect();
    let gets_requests =
        input.rows_of(id).iter().flat_map(|row| row.balancers.values()).any(|it| it.balanced == Some(true));
    let what = match (named.is_empty(), gets_requests) {
        (false, _) => format!("no {key} in the store; {} retains what it was", join_names(&named)),
        // The service gets requests without the key: ACME's challenges, or those of an operator's own frontend.
        (true, true) => return None,
        (true, false) if input.list_served(id).next().is_none() => format!("no {key}"),
        (true, false) => format!("no {key}: no request finds it"),
    };
    Some(Finding::new(id.folder_path(), "no_domain", what, format!("discoverctl set {} {key} VALUE", id.name)))
}

/// Finds a service without a record. A balancer may still retain upstreams of it.
fn lint_without_record(input: &LintInput, id: &ServiceId, service: &Service) -> Option<Finding> {
    if service.upstreams().next().is_some() {
        return None;
    }
    let retaining = input.nodes_retaining_service(id);
    let (what, todo) = if !retaining.is_empty() {
        let what = format!("no upstream's record; {} retains upstreams and serves them", join_names(&retaining));
        (what, "start an announcer")
    } else if let Some(unknown) = input.unknown_reason() {
        let what = format!("no upstream's record; a balancer may retain upstreams, and {unknown}");
        (what, "start an announcer; delete the service only once every balancer says that it retains none")
    } else {
        ("no upstream: its clients get 503".to_owned(), "start an announcer, or discoverctl delete it")
    };
    Some(Finding::new(id.folder_path(), "no_upstream", what, todo))
}

/// Finds active colors without an upstream.
fn lint_empty_colors(input: &LintInput, id: &ServiceId, service: &Service) -> Option<Finding> {
    let field = service.setting(SettingName::Active)?;
    let Ok(Setting::Active(active)) = &field.value else { return None };
    let records = service.upstreams().filter_map(|(_, field)| field.value.as_ref().ok());
    let mut colors: BTreeSet<String> =
        records.filter_map(|record| record.color.as_ref()).map(ToString::to_string).collect();
    let name = id.to_string();
    // A retained upstream keeps its color, and serves.
    let retained = input.retained.iter().filter(|((service, _), _)| *service == name);
    colors.extend(retained.flat_map(|(_, by)| by.values()).filter_map(|it| it.color.clone()));
    let empty: Vec<String> =
        active.iter().map(|(color, _)| color.to_string()).filter(|color| !colors.contains(color)).collect();
    if empty.is_empty() {
        return None;
    }
    let what = format!("no upstream has the color {}", empty.join(", "));
    let todo = "start upstreams of that color, or discoverctl color SVC another";
    Some(Finding::at_entry(&field.entry, "color_without_upstream", what, todo))
}

/// Finds records of one service that have the same address.
fn lint_double_addresses(service: &Service) -> Vec<Finding> {
    let mut by_address: BTreeMap<&UpstreamAddress, Vec<&discovery::Entry>> = BTreeMap::new();
    for (_, field) in service.upstreams() {
        if let Ok(record) = &field.value {
            by_address.entry(&record.address).or_default().push(&field.entry);
        }
    }
    let mut findings = Vec::new();
    for (address, entries) in by_address.into_iter().filter(|(_, entries)| entries.len() > 1) {
        let Some((first, others)) = entries.split_first() else { continue };
        let what = format!("{address} is that of {} too", first.key);
        findings.extend(others.iter().map(|entry| {
            Finding::at_entry(
                entry,
                "double_address",
                what.clone(),
                "deregister one of them; two announcers may be running",
            )
        }));
    }
    findings
}

/// Finds claims of several services. Only a balancer knows the owner.
fn lint_rivals(input: &LintInput, claim: &Claim, ids: &[&ServiceId]) -> Vec<Finding> {
    let owners = describe_owners(input, claim);
    let mut findings = Vec::new();
    for id in ids {
        let others: Vec<String> = ids.iter().filter(|other| *other != id).map(ToString::to_string).collect();
        let key = match claim {
            Claim::Route(..) => SettingName::Domain,
            Claim::Port(_) => SettingName::Ports,
        };
        let key = format!("{}{key}", id.folder_path());
        let what = format!("{claim} is named by {} too; {owners}", others.join(", "));
        findings.push(Finding::new(key, "rival_claim", what, "take it out of one of them"));
    }
    findings
}

/// Describes the owner of a claim at each balancer.
fn describe_owners(input: &LintInput, claim: &Claim) -> String {
    let mut by_owner: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
    let answers = input.services.iter().filter_map(|(node, it)| Some((node, it.as_ref().ok()?)));
    for (node, service) in answers.flat_map(|(node, it)| it.services.iter().map(move |service| (node, service))) {
        if service.has_claim(claim) {
            by_owner.entry(&service.id).or_default().insert(node);
        }
    }
    if by_owner.is_empty() {
        return "which of them has it, no balancer says".into();
    }
    let each = by_owner.iter().map(|(id, nodes)| format!("{id} has it at {}", join_names(nodes)));
    each.collect::<Vec<_>>().join(", ")
}
