//! Restarts: publish, restart, apply what haproxy.cfg can't say. It decides nothing about when.

use std::collections::BTreeMap;

use discovery::ServiceId;

use super::{Reconciler, RestartOutcome};
use crate::desired::DesiredService;
use crate::publish::PublishOutcome;
use crate::runtime::RestartResult;
use crate::runtime::ports::unbindable_reason;

impl Reconciler {
    /// Writes the file, restarts HAProxy into it, and puts right what the file could not say.
    pub fn restart_haproxy(&mut self, reason: &str) -> anyhow::Result<RestartOutcome> {
        let filing = self.publication();
        let filed = filing.check_and_write()?;
        self.on_published(&filing, &filed)?;
        if !matches!(filed, PublishOutcome::Unchanged | PublishOutcome::Written) {
            return Ok(RestartOutcome::Rejected(filed));
        }
        // Whoever else has started it meanwhile may have done what is needed.
        self.haproxy.apply_desired(&self.desired, std::iter::empty(), &self.state_dir)?;
        if self.restart_reason().is_none() {
            self.desired.mark_accepted(&filing.desired);
            return Ok(RestartOutcome::InSync);
        }
        tracing::info!("restart: {reason}");
        let stamp = self.fingerprints.generation_id();
        match self.haproxy.restart_into(&stamp, self.suspect_file.is_some())? {
            RestartResult::Taken => self.clear_edit_windows(),
            RestartResult::Stopped => return Ok(RestartOutcome::Stopped),
            RestartResult::Failed(reason) => {
                let culprits = self.find_unbindable();
                if culprits.is_empty() {
                    return Ok(RestartOutcome::NotLive(reason));
                }
                let filed = PublishOutcome::ServicesRejected(culprits);
                self.on_published(&filing, &filed)?;
                return Ok(RestartOutcome::Rejected(filed));
            }
        }
        self.desired.mark_accepted(&filing.desired);
        self.state_dir.remove_other_generations(&[&stamp])?;
        self.haproxy.apply_desired(&self.desired, std::iter::empty(), &self.state_dir)?;
        self.restart_reason();
        Ok(match self.haproxy.refused_change() {
            None => RestartOutcome::Restarted,
            Some(words) => RestartOutcome::NotLive(format!("HAProxy refuses a change: {words}")),
        })
    }

    /// The services that bind what can't be bound: HAProxy will not start with them.
    fn find_unbindable(&self) -> BTreeMap<ServiceId, String> {
        let reasons = |wanted: &DesiredService| wanted.binds.iter().find_map(|bind| unbindable_reason(*bind));
        self.desired.services().filter_map(|(id, wanted)| Some((id.clone(), reasons(wanted)?))).collect()
    }
}
