//! What is odd about a service as a whole.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Claim, Kind, Service, ServiceId, Setting, SettingName, UpstreamAddress, claims};

use super::Finding;
use crate::store::Store;

pub(super) fn findings(store: &Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut claimants: BTreeMap<(Kind, Claim), Vec<&ServiceId>> = BTreeMap::new();
    for (id, service) in store.topology.services() {
        findings.extend(nameless(id, service));
        if service.upstreams().next().is_none() {
            let todo = "start an announcer, or discoverctl delete it";
            findings.push(Finding::new(id.folder(), "no_upstream", "no upstream: its clients get 503", todo));
        }
        findings.extend(empty_colors(service));
        findings.extend(doubles(service));
        let settings: Vec<&Setting> = service.settings().filter_map(|(_, field)| field.value.as_ref().ok()).collect();
        for claim in claims(settings) {
            claimants.entry((id.kind, claim)).or_default().push(id);
        }
    }
    findings.extend(claimants.iter().filter(|(_, ids)| ids.len() > 1).flat_map(|((_, claim), ids)| rivals(claim, ids)));
    findings
}

fn nameless(id: &ServiceId, service: &Service) -> Option<Finding> {
    let has = |name| service.setting(name).is_some();
    let (is_named, key) = match id.kind {
        Kind::Http => (has(SettingName::Domain) || has(SettingName::UrlReg) || id.is_default(), "domain"),
        Kind::Tcp => (has(SettingName::Ports), "ports"),
    };
    let todo = || format!("discoverctl set {} {key} VALUE", id.name);
    (!is_named).then(|| Finding::new(id.folder(), "no_domain", format!("no {key}: no request finds it"), todo()))
}

/// Active colors that no upstream has.
fn empty_colors(service: &Service) -> Option<Finding> {
    let field = service.setting(SettingName::Active)?;
    let Ok(Setting::Active(active)) = &field.value else { return None };
    let records = service.upstreams().filter_map(|(_, field)| field.value.as_ref().ok());
    let colors: BTreeSet<_> = records.filter_map(|record| record.color.as_ref()).collect();
    let empty: Vec<String> =
        active.iter().filter(|(color, _)| !colors.contains(color)).map(|(color, _)| color.to_string()).collect();
    let what = || format!("no upstream has the color {}", empty.join(", "));
    let todo = "start upstreams of that color, or discoverctl color SVC another";
    (!empty.is_empty()).then(|| Finding::at(&field.entry, "color_without_upstream", what(), todo))
}

/// Records of one service with one address.
fn doubles(service: &Service) -> Vec<Finding> {
    let mut by_address: BTreeMap<&UpstreamAddress, Vec<&discovery::Entry>> = BTreeMap::new();
    for (_, field) in service.upstreams() {
        if let Ok(record) = &field.value {
            by_address.entry(&record.address).or_default().push(&field.entry);
        }
    }
    let mut findings = Vec::new();
    for (address, entries) in by_address.into_iter().filter(|(_, entries)| entries.len() > 1) {
        let Some((first, others)) = entries.split_first() else { continue };
        let what = format!("{address} is that of {} too: it gets a double share", first.key);
        findings.extend(others.iter().map(|entry| {
            Finding::at(entry, "double_address", what.clone(), "deregister one of them; two announcers may be running")
        }));
    }
    findings
}

fn rivals(claim: &Claim, ids: &[&ServiceId]) -> Vec<Finding> {
    let finding = |id: &&ServiceId| {
        let others: Vec<String> = ids.iter().filter(|other| *other != id).map(ToString::to_string).collect();
        let key = match claim {
            Claim::Route(..) => SettingName::Domain,
            Claim::Port(_) => SettingName::Ports,
        };
        let key = format!("{}{key}", id.folder());
        let what = format!("{claim} is named by {} too; who had it first holds it", others.join(", "));
        Finding::new(key, "rival_claim", what, "take it out of one of them")
    };
    ids.iter().map(finding).collect()
}
