//! Finds settings that claim hosts or ports of another service, so that they aren't written. Best effort: the balancers
//! decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Claim, ClaimConflict, Entry, Key, ServiceId, Setting, SettingName, Topology, find_claim_conflicts};
use registry::{Client, Error};

use crate::record::Record;

/// Keys of settings that must not be written. They are logged. `None` if etcd is unreachable, which must not delay the
/// records. Empty if etcd's roles forbid reading the other services.
pub(crate) async fn find_withheld_settings(client: &Client, records: &[Arc<Record>]) -> Option<BTreeSet<String>> {
    match find_contested_settings(client, records).await {
        Ok(contested) => {
            for (key, rival) in &contested {
                let hint = "remove the claim from one of the two services";
                tracing::warn!(key, %rival, hint, "another service has the same claim, setting not written");
            }
            Some(contested.into_keys().collect())
        }
        Err(error) => {
            tracing::debug!(%error, "can't read the other services' claims");
            // etcd's roles may forbid the read. Then the settings are written, and the balancers decide.
            (!error.is_unreachable()).then(BTreeSet::new)
        }
    }
}

/// Keys of settings that claim what another service's keys name, with the first such claim of each.
async fn find_contested_settings(
    client: &Client,
    records: &[Arc<Record>],
) -> Result<BTreeMap<String, ClaimConflict>, Error> {
    let mut contested = BTreeMap::new();
    for (service, settings) in group_claiming_settings(records) {
        // Stored settings make no new claim. Skipping them saves the read of all services at most starts.
        if !are_settings_stored(client, service, &settings).await? {
            let folder = client.read_filtered_snapshot(service.kind.folder_name(), keep_claim).await?;
            let topology = Topology::from_entries(&folder.entries);
            for rival in find_claim_conflicts(topology.services(), service, &settings) {
                for setting in settings.iter().filter(|setting| is_part_of_claim(setting, &rival.claim)) {
                    // One rival is reason enough for the log.
                    contested
                        .entry(Key::for_setting(service, setting.name()).to_string())
                        .or_insert_with(|| rival.clone());
                }
            }
        }
    }
    Ok(contested)
}

/// Settings that claim hosts, paths or ports, by service.
fn group_claiming_settings(records: &[Arc<Record>]) -> BTreeMap<&ServiceId, Vec<Setting>> {
    let mut all: BTreeMap<&ServiceId, Vec<Setting>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for record in records {
        let (service, _) = record.service_and_id();
        for setting in record.announced_settings().filter(|setting| can_claim(setting)) {
            // Records of one service have equal settings.
            if !seen.insert((service, setting.name())) {
                continue;
            }
            all.entry(service).or_default().push(setting.clone());
        }
    }
    all
}

/// Keeps the settings that claim something. The folder may have many records, and the app's container little memory.
fn keep_claim(entry: Entry) -> Option<Entry> {
    let is_claim = matches!(entry.key.parse(), Ok(Key::Setting { name, .. }) if is_claiming_name(name));
    is_claim.then(|| entry.with_bounded_value())
}

/// True if a setting of this kind claims hosts, paths or ports.
fn can_claim(setting: &Setting) -> bool {
    is_claiming_name(setting.name())
}

fn is_claiming_name(name: SettingName) -> bool {
    matches!(name, SettingName::Domain | SettingName::Path | SettingName::Ports)
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

/// True if the setting contributes to the claim.
fn is_part_of_claim(setting: &Setting, claim: &Claim) -> bool {
    match (setting, claim) {
        (Setting::Ports(binds), Claim::Port(port)) => binds.iter().any(|bind| bind.port == *port),
        (Setting::Domain(domains), Claim::Route(domain, _)) => domains.contains(domain),
        (Setting::Path(paths), Claim::Route(_, path)) => paths.contains(path),
        _ => false,
    }
}
