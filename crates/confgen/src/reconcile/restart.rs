//! Restarts: publish, restart, apply what haproxy.cfg can't say. It decides nothing about when.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;

use super::{Reconciler, RestartOutcome};
use crate::publish::{Publication, PublishOutcome};
use crate::runtime::RestartResult;
use crate::runtime::ports::unbindable_reason;

impl Reconciler {
    /// Publishes haproxy.cfg, restarts HAProxy into it, and applies what the file can't say.
    pub fn restart_haproxy(&mut self, reason: &str) -> anyhow::Result<RestartOutcome> {
        // A restart is the time to drop the shapes that no service has.
        let publication = Publication { kept_shapes: BTreeMap::new(), ..self.publication() };
        // Checked even if it is unchanged: the operator may have broken another file since.
        let published = publication.check_and_write()?;
        self.on_published(&publication, &published)?;
        if !matches!(published, PublishOutcome::Unchanged | PublishOutcome::Written) {
            return Ok(RestartOutcome::Rejected(published));
        }
        // An operator or a crash may have restarted HAProxy meanwhile, and then no restart is needed any more.
        self.apply_to_haproxy(&BTreeSet::new())?;
        if self.restart_reason().is_none() {
            self.desired.mark_accepted(&publication.desired);
            return Ok(RestartOutcome::InSync);
        }
        tracing::info!(%reason, "restarting HAProxy");
        let generation = self.fingerprints.generation_id();
        match self.haproxy.restart_into(&generation, self.files.suspect.is_some())? {
            RestartResult::Taken => self.clear_edit_windows(),
            RestartResult::Stopped => return Ok(RestartOutcome::Stopped),
            RestartResult::Failed(reason) => {
                // `haproxy -c` binds nothing, so a port that another program has shows only at the start.
                let unbindable = self.find_unbindable();
                if unbindable.is_empty() {
                    return Ok(RestartOutcome::NotLive(reason));
                }
                let rejected = PublishOutcome::ServicesRejected(unbindable);
                self.on_published(&publication, &rejected)?;
                return Ok(RestartOutcome::Rejected(rejected));
            }
        }
        self.desired.mark_accepted(&publication.desired);
        // Not before: until the restart was taken, HAProxy ran another generation, with maps of its own.
        self.config.state_dir.remove_other_generations(&[&generation])?;
        self.apply_to_haproxy(&BTreeSet::new())?;
        self.restart_reason();
        Ok(match self.haproxy.refused_change() {
            None => RestartOutcome::Restarted,
            Some(words) => RestartOutcome::NotLive(format!("HAProxy refuses a change: {words}")),
        })
    }

    /// The services with a port that can't be bound, each with the reason. HAProxy doesn't start with them.
    fn find_unbindable(&self) -> BTreeMap<ServiceId, String> {
        let mut services = BTreeMap::new();
        for (id, desired) in self.desired.services() {
            if let Some(reason) = desired.binds.iter().find_map(|bind| unbindable_reason(*bind)) {
                services.insert(id.clone(), reason);
            }
        }
        services
    }
}
