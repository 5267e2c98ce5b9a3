//! Restarts: publish, restart, apply what haproxy.cfg can't say. Only the steps that need the reconciler's state run on its thread, so
//! changes over the Runtime API go on during the waits. It decides nothing about when.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;

use super::{Reconciler, RestartOutcome, Steps};
use crate::publish::{Publication, PublishOutcome};
use crate::runtime::ports::unbindable_reason;
use crate::runtime::{RestartResult, Restarter};

/// The next step of a restart whose haproxy.cfg was published.
enum Begun {
    /// HAProxy must be restarted. True if a process that is just starting doesn't count.
    Restart(Restarter, bool),
    Over(RestartOutcome),
}

/// Publishes haproxy.cfg, restarts HAProxy into it, and applies what the file can't say. Blocks for the whole time.
pub fn restart_haproxy(steps: &mut impl Steps, reason: &str) -> anyhow::Result<RestartOutcome> {
    // A restart is the time to drop the shapes that no service has.
    let publication =
        steps.run(|reconciler| Ok(Publication { kept_shapes: BTreeMap::new(), ..reconciler.publication() }))?;
    // Checked even if it is unchanged: the operator may have broken another file since.
    let published = publication.check_and_write()?;
    let written = publication.clone();
    let (restarter, afresh) = match steps.run(move |reconciler| reconciler.begin_restart(&written, published))? {
        Begun::Over(outcome) => return Ok(outcome),
        Begun::Restart(restarter, afresh) => (restarter, afresh),
    };
    tracing::info!(%reason, "restarting HAProxy");
    let result = restarter.restart_into(&publication.generation.id, afresh)?;
    steps.run(move |reconciler| reconciler.end_restart(&publication, result))
}

impl Reconciler {
    fn begin_restart(&mut self, publication: &Publication, published: PublishOutcome) -> anyhow::Result<Begun> {
        self.on_published(publication, &published)?;
        if !matches!(published, PublishOutcome::Unchanged | PublishOutcome::Written) {
            return Ok(Begun::Over(RestartOutcome::Rejected(published)));
        }
        // An operator or a crash may have restarted HAProxy meanwhile, and then no restart is needed any more.
        self.apply_with_backends(&BTreeSet::new())?;
        if self.restart_reason().is_none() {
            // No reconcile follows, and a look for manual changes compares with what was just observed.
            self.haproxy.undo_manual_changes(&self.desired, &self.fingerprints)?;
            self.desired.mark_accepted(&publication.desired);
            return Ok(Begun::Over(RestartOutcome::InSync));
        }
        self.haproxy.invalidate();
        Ok(Begun::Restart(self.haproxy.restarter(), self.files.suspect.is_some()))
    }

    fn end_restart(&mut self, publication: &Publication, result: RestartResult) -> anyhow::Result<RestartOutcome> {
        // A reconcile may have observed either process meanwhile.
        self.haproxy.invalidate();
        match result {
            RestartResult::Taken => self.clear_edit_windows(),
            RestartResult::Stopped => return Ok(RestartOutcome::Stopped),
            RestartResult::Failed(reason) => {
                // `haproxy -c` binds nothing, so a port that another program has shows only at the start.
                let unbindable = self.find_unbindable();
                if unbindable.is_empty() {
                    return Ok(RestartOutcome::NotLive(reason));
                }
                let rejected = PublishOutcome::ServicesRejected(unbindable);
                self.on_published(publication, &rejected)?;
                return Ok(RestartOutcome::Rejected(rejected));
            }
        }
        self.desired.mark_accepted(&publication.desired);
        // Not before: until the restart was taken, HAProxy ran another generation, with maps of its own.
        self.config.state_dir.remove_other_generations(&[&publication.generation.id])?;
        self.apply_with_backends(&BTreeSet::new())?;
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
