//! Rounds that may take a restart: of the daemon where HAProxy lacks something, and the whole one of `once`.

use std::collections::BTreeMap;

use discovery::ServiceId;

use super::{Left, Outcome, Reconciler};
use crate::desired::DesiredService;
use crate::publish::PublishOutcome;
use crate::runtime::Restart;
use crate::runtime::ports::unbindable;
use crate::store::StoreUpdate;

impl Reconciler {
    /// Writes the file, restarts HAProxy into it, and puts right what the file could not say.
    pub fn restart(&mut self, reason: &str) -> anyhow::Result<Outcome> {
        let filing = self.filing();
        let filed = filing.write_surely()?;
        self.filed(&filing, &filed)?;
        if !matches!(filed, PublishOutcome::Same | PublishOutcome::Written) {
            return Ok(Outcome::Refused(filed));
        }
        // Whoever else has started it meanwhile may have done what is needed.
        self.proxy.follow(&self.settled, std::iter::empty(), &self.disk)?;
        if self.restart_reason().is_none() {
            self.settled.taken(&filing.settled);
            return Ok(Outcome::InSync);
        }
        tracing::info!("restart: {reason}");
        let stamp = self.structure.stamp();
        match self.proxy.restart(&stamp, self.suspect.is_some())? {
            Restart::Taken => self.clear_edit_windows(),
            Restart::Stopped => return Ok(Outcome::Stopped),
            Restart::NotLive(reason) => {
                let culprits = self.unbindable();
                if culprits.is_empty() {
                    return Ok(Outcome::NotLive(reason));
                }
                let filed = PublishOutcome::Culprits(culprits);
                self.filed(&filing, &filed)?;
                return Ok(Outcome::Refused(filed));
            }
        }
        self.settled.taken(&filing.settled);
        self.disk.sweep(&[&stamp])?;
        self.proxy.follow(&self.settled, std::iter::empty(), &self.disk)?;
        self.restart_reason();
        Ok(match self.proxy.refused() {
            None => Outcome::Restarted,
            Some(words) => Outcome::NotLive(format!("HAProxy refuses a change: {words}")),
        })
    }

    /// The services that bind what can't be bound: HAProxy will not start with them.
    fn unbindable(&self) -> BTreeMap<ServiceId, String> {
        let reasons = |wanted: &DesiredService| wanted.binds.iter().find_map(|bind| unbindable(*bind));
        self.settled.services().filter_map(|(id, wanted)| Some((id.clone(), reasons(wanted)?))).collect()
    }

    /// One whole round, from nothing: HAProxy, file, restart if need be.
    pub fn once(&mut self, news: &StoreUpdate) -> anyhow::Result<Outcome> {
        let left = self.apply_runtime(news)?;
        self.tell_quarantine();
        let outcome = self.complete(left)?;
        if let Outcome::Refused(PublishOutcome::Culprits(_) | PublishOutcome::Unfilled(_)) = outcome {
            // Once more, without them.
            let left = self.apply_runtime(news)?;
            self.tell_quarantine();
            return self.complete(left);
        }
        Ok(outcome)
    }

    /// Does what a quick round has left.
    fn complete(&mut self, left: Left) -> anyhow::Result<Outcome> {
        if let Some(rejection) = &self.refused {
            return Ok(Outcome::Refused(PublishOutcome::OperatorRefused(rejection.clone())));
        }
        if let Some(reason) = left.restart {
            return self.restart(&reason);
        }
        let filing = self.filing();
        let filed = filing.write()?;
        self.filed(&filing, &filed)?;
        Ok(match filed {
            PublishOutcome::Same | PublishOutcome::Written => Outcome::InSync,
            refused => Outcome::Refused(refused),
        })
    }
}
