//! Hosts and ports that another service's keys name already: settings that claim them aren't written. Best effort: the
//! balancers decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Claim, ClaimConflict, Key, ServiceId, Setting, SettingName, Topology, find_claim_conflicts};
use registry::{Client, Error};

use crate::record::Record;

/// The keys of the settings that aren't to be written, which the log hears of. None where etcd can't be asked now, which is
/// no reason to wait; where its roles don't let us look, nothing is withheld.
pub(crate) async fn find_withheld_settings(client: &Client, records: &[Arc<Record>]) -> Option<BTreeSet<String>> {
    match find_contested_settings(client, records).await {
        Ok(contested) => {
            for (key, rival) in &contested {
                tracing::warn!(key, "not written: {rival}, and one service has it; take it out of one of the two");
            }
            Some(contested.into_keys().collect())
        }
        Err(error) => {
            tracing::debug!(%error, "whether others name the same hosts or ports isn't known");
            (!error.is_unreachable()).then(BTreeSet::new)
        }
    }
}

/// The settings' keys that would claim what another service's keys name, with the first such claim of each.
async fn find_contested_settings(
    client: &Client,
    records: &[Arc<Record>],
) -> Result<BTreeMap<String, ClaimConflict>, Error> {
    let mut contested = BTreeMap::new();
    for (service, settings) in group_claiming_settings(records) {
        // What stands so already is no new claim; then nobody else's keys have to be read.
        if !are_settings_stored(client, service, &settings).await? {
            let folder = client.read_snapshot(service.kind.folder_name()).await?;
            let topology = Topology::from_entries(&folder.entries);
            for rival in find_claim_conflicts(topology.services(), service, &settings) {
                for setting in settings.iter().filter(|setting| is_part_of_claim(setting, &rival.claim)) {
                    contested
                        .entry(Key::for_setting(service, setting.name()).to_string())
                        .or_insert_with(|| rival.clone());
                }
            }
        }
    }
    Ok(contested)
}

/// The settings that claim something, by service.
fn group_claiming_settings(records: &[Arc<Record>]) -> BTreeMap<&ServiceId, Vec<Setting>> {
    let mut all: BTreeMap<&ServiceId, Vec<Setting>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for record in records {
        let (service, _) = record.service_and_id();
        let claims = |it: &&Setting| matches!(it.name(), SettingName::Domain | SettingName::Path | SettingName::Ports);
        for setting in record.announced_settings().filter(claims).filter(|it| seen.insert((service, it.name()))) {
            all.entry(service).or_default().push(setting.clone());
        }
    }
    all
}

async fn are_settings_stored(client: &Client, service: &ServiceId, settings: &[Setting]) -> Result<bool, Error> {
    for setting in settings {
        let entry = client.get(&Key::for_setting(service, setting.name()).to_string()).await?;
        let read = entry.and_then(|entry| Setting::parse(service.kind, setting.name(), &entry.value).ok());
        if read.as_ref() != Some(setting) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the setting has a part in the claim.
fn is_part_of_claim(setting: &Setting, claim: &Claim) -> bool {
    match (setting, claim) {
        (Setting::Ports(binds), Claim::Port(port)) => binds.iter().any(|bind| bind.port == *port),
        (Setting::Domain(domains), Claim::Route(domain, _)) => domains.contains(domain),
        (Setting::Path(paths), Claim::Route(_, path)) => paths.contains(path),
        _ => false,
    }
}
