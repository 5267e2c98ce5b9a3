//! The quarantine: every key that isn't applied, with the reasons of all stages. Pure.

use std::collections::BTreeMap;

use discovery::KeyLimits;

use super::{DesiredState, ServiceState};
use crate::store::KEY_LIMITS;

impl DesiredState {
    /// The quarantined keys, each with its reasons. A service that is rejected as a whole stands there with its folder.
    pub fn quarantined_keys(&self) -> BTreeMap<String, String> {
        let mut quarantine = BTreeMap::new();
        for (id, forbidden) in &self.forbidden {
            add_reason(&mut quarantine, &id.folder_path(), &forbidden.reason);
        }
        for (key, reason) in self.malformed_keys.iter() {
            add_reason(&mut quarantine, key, reason);
        }
        self.add_left_out_keys(&mut quarantine);
        for (id, state) in self.services.iter() {
            for (key, reason) in &state.input.refusals {
                add_reason(&mut quarantine, key, reason);
            }
            if let Some(reason) = &state.rejection {
                let outcome =
                    if state.last_accepted.is_some() { "its last good form serves" } else { "it has no good form yet" };
                let reason = format!("HAProxy refuses the service: {reason}; {outcome}");
                add_reason(&mut quarantine, &id.folder_path(), &reason);
            }
            // The claims decide about HSTS, so the key's own value was good.
            if state.lacks_hsts() {
                let reason = "a host of it has a service with tls off too, which HSTS would make unreachable";
                add_reason(&mut quarantine, &state.input.hsts_origin.key, reason);
            }
        }
        for (key, reasons) in self.claims.refusals() {
            add_reason(&mut quarantine, key, &reasons.join("; "));
        }
        quarantine
    }
}

/// The remedy for each key that is left out.
const WHEN_FOLLOWED: &str =
    "delete what isn't needed; with room, the others are followed after the next listing (--resync)";

impl DesiredState {
    /// Adds the reasons against the keys that the replica has no room for. Only their folders are known.
    fn add_left_out_keys(&self, quarantine: &mut BTreeMap<String, String>) {
        let KeyLimits { services, upstreams_per_service, upstreams, others, .. } = KEY_LIMITS;
        let whole =
            format!("confgen follows {services} services and {upstreams} records and overrides; {WHEN_FOLLOWED}");
        for id in self.left_out_keys.services() {
            let folder = id.folder_path();
            if self.services.contains_key(id) {
                let reason = format!(
                    "newer records or overrides than these are not followed: confgen follows {upstreams_per_service} of each in a \
                     service, and {upstreams} in all; {WHEN_FOLLOWED}"
                );
                add_reason(quarantine, &format!("{folder}upstreams/"), &reason);
            } else {
                add_reason(quarantine, &folder, &format!("the service came too late to be followed: {whole}"));
            }
        }
        if self.left_out_keys.has_unnamed_services() {
            add_reason(quarantine, ALL_KEYS, &format!("more services came too late to be followed: {whole}"));
        }
        if self.left_out_keys.has_other_keys() {
            let reason = format!("only {others} keys that mean nothing are looked at; discoverctl lint lists them");
            add_reason(quarantine, ALL_KEYS, &reason);
        }
    }
}

/// Stands in the quarantine for keys of many folders.
const ALL_KEYS: &str = "/";

impl ServiceState {
    /// True if the service asks for HSTS and doesn't get it.
    fn lacks_hsts(&self) -> bool {
        let has_hsts = self.desired.as_ref().is_some_and(|desired| desired.settings.hsts.is_some());
        self.input.settings.hsts.is_some() && !has_hsts
    }
}

fn add_reason(quarantine: &mut BTreeMap<String, String>, key: &str, reason: &str) {
    let reasons = quarantine.entry(key.to_owned()).or_default();
    *reasons = if reasons.is_empty() { reason.to_owned() } else { format!("{reasons}; {reason}") };
}
