//! Keys that are not followed: what each stage has against them, put together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DesiredService, DesiredState};

impl DesiredState {
    /// Keys that are not followed, with the reason in words.
    pub fn quarantined_keys(&self) -> BTreeMap<String, String> {
        let forbidden = self.forbidden.iter().map(|(id, it)| (id.folder_path(), it.reason.clone()));
        let mut all: BTreeMap<String, String> = forbidden.collect();
        let mut add = |key: &str, reason: &str| {
            let reasons = all.entry(key.to_owned()).or_default();
            *reasons = if reasons.is_empty() { reason.to_owned() } else { format!("{reasons}; {reason}") };
        };
        self.malformed_keys.iter().for_each(|(key, reason)| add(key, reason));
        for (id, it) in &self.services {
            it.input.refusals.iter().for_each(|(key, reason)| add(key, reason));
            if let Some(words) = &it.rejection {
                let outcome =
                    if it.last_accepted.is_some() { "its last good form serves" } else { "it has no good form yet" };
                add(&id.folder_path(), &format!("HAProxy refuses the service: {words}; {outcome}"));
            }
            let hsts = |wanted: &Arc<DesiredService>| wanted.settings.hsts.is_some();
            if it.input.settings.hsts.is_some() && !it.desired.as_ref().is_some_and(hsts) {
                add(
                    &it.input.hsts_origin.key,
                    "a host of it has a service with tls off too, which HSTS would make unreachable",
                );
            }
        }
        self.claims.refusals().for_each(|(key, reasons)| add(key, &reasons.join("; ")));
        all
    }
}
