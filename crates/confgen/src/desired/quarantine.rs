//! The quarantine: every key that isn't applied, with the reasons of all stages. Pure.

use std::collections::BTreeMap;

use super::{DesiredState, ServiceState};

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
        for (id, state) in &self.services {
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
