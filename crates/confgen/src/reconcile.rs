//! One pass: resolve the desired state, observe HAProxy if its state is stale, plan, apply. The rest is left to publish and to
//! restart. Everything here blocks, and runs on the reconciler's thread, except that restarts and the reading of local files wait
//! for other programs beside it. It decides nothing about when.

pub(crate) mod applied;
mod log;
pub(crate) mod mass_removal;
mod operator_files;
mod outcome;
mod release;
mod restart;
mod startup;
pub(crate) mod state;
mod steps;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use discovery::ServiceId;

use crate::desired::upstream_bound::{self, SpareRoom, UpstreamBound};
use crate::desired::{DesiredState, Policy};
use crate::publish::{Publication, PublishOutcome};
use crate::render::restart_needed::{ConfigFingerprint, Generation, RestartReason};
use crate::render::view::View;
use crate::runtime::HaproxyControl;
pub use crate::runtime::{DriftAnswers, DriftCheck, DriftLook};
use crate::store::{Changed, StoreUpdate};
pub use log::Progress;
pub use operator_files::reload_local_files;
pub use outcome::{Pending, RestartOutcome, leaves_part_out};
pub use restart::restart_haproxy;
pub use state::LeaseLookup;
use state::{Config, Files, Logged, Retention, Standing};
pub use steps::Steps;

/// The state of all reconciles: what is desired, and what confgen knows of files and HAProxy. One thread owns it.
pub struct Reconciler {
    config: Config,
    files: Files,
    desired: DesiredState,
    /// The fingerprints of the needed generation.
    fingerprints: Arc<ConfigFingerprint>,
    /// The generation of the last publication.
    generation: Arc<Generation>,
    spare_room: SpareRoom,
    haproxy: HaproxyControl,
    retained: Retention,
    status: Standing,
    logged: Logged,
}

impl Reconciler {
    /// Has HAProxy observed before the next change. A restart or a manual change may have changed what it runs.
    pub fn observe_again(&mut self) {
        self.haproxy.observe_again();
    }

    /// Begins a look for manual changes. `None` if the next reconcile observes HAProxy anyway.
    pub fn begin_drift_look(&self) -> Option<DriftLook> {
        self.haproxy.begin_drift_look()
    }

    /// Judges HAProxy's answers. `None` if confgen has changed or observed HAProxy since the look began.
    pub fn judge_drift(&mut self, answers: DriftAnswers) -> Option<DriftCheck> {
        self.haproxy.judge_drift(answers)
    }

    /// Resolves the desired state, and the fingerprints of the generation that it needs.
    pub fn update_desired(&mut self, update: &StoreUpdate) -> anyhow::Result<()> {
        let mut touched = self.resolve_desired(update);
        touched.extend(self.desired.drop_removed());
        self.update_fingerprints(&touched, update.changed == Changed::All)
    }

    fn resolve_desired(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        let maxconn = self.files.local.operator_files.config.maxconn;
        let most = self.haproxy.max_open_files().and_then(|files| upstream_bound::max_upstreams(files, maxconn));
        let bound = most.and_then(|most| self.bound_upstreams(update, most));
        // The bound is for all services together, so one that grows may take upstreams from another.
        let is_rebound = bound.as_ref() != self.desired.upstream_bound();
        let changed = if is_rebound { &Changed::All } else { &update.changed };
        if *changed == Changed::All {
            self.desired.set_policy(Policy { upstream_bound: bound, ..self.current_policy() });
        }
        self.desired.update_services(&update.topology, changed)
    }

    /// The bound on upstreams if HAProxy has room for `most` of them. `None` if all have room.
    fn bound_upstreams(&mut self, update: &StoreUpdate, most: usize) -> Option<UpstreamBound> {
        let services = update.topology.services();
        if let Changed::Services(changed) = &update.changed {
            let changed = changed.iter().filter_map(|id| Some((id, services.get(id)?)));
            let growth: usize = changed.map(|(id, service)| self.desired.count_servers(id, service)).sum();
            if self.spare_room.take_part(most, growth) {
                return None;
            }
        }
        let counts: Vec<(&ServiceId, usize)> =
            services.iter().map(|(id, service)| (id, self.desired.count_servers(id, service))).collect();
        let total = counts.iter().map(|(_, count)| count).sum::<usize>();
        self.spare_room = SpareRoom::new(most, total);
        if total <= most {
            // The next shortage begins from the upstreams that HAProxy serves then.
            self.haproxy.forget_served_upstreams();
            return None;
        }
        UpstreamBound::from_counts(counts.into_iter(), most, &self.haproxy.served_upstreams())
    }

    /// Updates the fingerprints of these services, or of the `whole` generation.
    fn update_fingerprints(&mut self, touched: &BTreeSet<ServiceId>, mut whole: bool) -> anyhow::Result<()> {
        whole |= self.retry_filled_files(touched);
        for id in touched {
            if whole {
                break;
            }
            let desired = self.desired.service(id).map(|desired| &**desired);
            whole = !self.fingerprints.update_service(id, desired, &self.files.site).context("render haproxy.cfg")?;
        }
        let operator_files = &self.files.local.operator_files;
        if whole {
            let view = View::new(&self.desired, &self.files.site, &operator_files.config);
            // A view has no filled files. Their fingerprints are computed below.
            let fills = self.fingerprints.fills.clone();
            let fingerprints = ConfigFingerprint::from_view(&view, &operator_files.fingerprints);
            let fingerprints = ConfigFingerprint { fills, ..fingerprints.context("render haproxy.cfg")? };
            if *self.fingerprints != fingerprints {
                self.fingerprints = Arc::new(fingerprints);
            }
        }
        if whole || operator_files.filled.mentions_any(touched.iter()) {
            let fills = operator_files.filled.fingerprint_blocks(&self.desired);
            if self.fingerprints.fills != fills {
                Arc::make_mut(&mut self.fingerprints).fills = fills;
            }
        }
        Ok(())
    }

    /// Applies the store to HAProxy as far as HAProxy takes it while it runs. Returns the rest.
    pub fn apply_runtime(&mut self, update: &StoreUpdate) -> anyhow::Result<Pending> {
        let mut touched = self.resolve_desired(update);
        let retained = self.retain_removed(update);
        if !retained.is_empty() {
            // A retained upstream takes room that the last count may not have had.
            self.spare_room = SpareRoom::default();
        }
        touched.extend(retained);
        touched.extend(self.desired.drop_removed());
        let is_stale = self.haproxy.generation_id().is_none();
        if is_stale || update.changed == Changed::All {
            self.files.suspect = self.may_run_edited_file();
        }
        // The state directory must have each retained key, even if that makes no difference to HAProxy.
        let keys = std::mem::replace(&mut self.retained.keys, Arc::clone(&update.retained));
        let is_retention_changed = !Arc::ptr_eq(&keys, &update.retained);
        self.status.store_revision = update.store_revision;
        self.status.newest_revision = update.newest_revision;
        let changes = self.apply_to_haproxy(&touched, update.changed == Changed::All)?;
        self.log_expiring_certificates();
        let running = self.haproxy.generation_id();
        if let Some((generation, desired)) = self.files.accepted.take_if(|(id, _)| running == Some(id.as_str())) {
            tracing::trace!(generation, "HAProxy runs the published file");
            self.desired.mark_accepted(&desired);
        }
        let restart = self.restart_reason();
        if restart.is_none() {
            if is_stale {
                // Nothing was known of HAProxy until now, so this proves that it runs every service.
                touched.extend(self.desired.services().map(|(id, _)| id.clone()));
            }
            self.desired.mark_running(touched.iter());
        }
        Ok(Pending {
            changes,
            file: is_stale || is_retention_changed || update.changed == Changed::All || !touched.is_empty(),
            // HAProxy would not start with rejected operator files. It serves on with what it has.
            restart: restart.filter(|_| self.files.rejection.is_none()),
            unreachable: self.haproxy.is_unreachable(),
            removals: self.try_removals()?,
        })
    }

    /// Makes HAProxy serve these services as desired, as far as it can without a restart, and updates their fingerprints, or those of
    /// the `whole` generation. Returns the number of changes.
    fn apply_to_haproxy(&mut self, touched: &BTreeSet<ServiceId>, whole: bool) -> anyhow::Result<usize> {
        let disk = &self.config.state_dir;
        if !self.haproxy.may_add_backends(&self.desired, touched) {
            // The commands depend on the running generation only, and rendering takes time. So they come first.
            let applied = self.haproxy.apply_desired(&self.desired, None, touched.iter(), disk);
            // Also after a failure, because a publish must not take the fingerprints of another desired state.
            self.update_fingerprints(touched, whole)?;
            let changes = applied?;
            if !self.haproxy.is_observed_without_additions() {
                return Ok(changes + self.haproxy.undo_manual_changes(&self.desired, &self.fingerprints)?);
            }
            // HAProxy was observed anew meanwhile, and may lack backends that it can add.
            self.haproxy.invalidate();
        } else {
            // HAProxy can add a backend only if it has the shape, and the fingerprint tells which shape is wanted.
            self.update_fingerprints(touched, whole)?;
        }
        let changes = self.apply_with_backends(touched)?;
        Ok(changes + self.haproxy.undo_manual_changes(&self.desired, &self.fingerprints)?)
    }

    /// Makes HAProxy serve these services as desired. The fingerprints have to be those of the desired state.
    fn apply_with_backends(&mut self, touched: &BTreeSet<ServiceId>) -> anyhow::Result<usize> {
        self.haproxy.apply_desired(&self.desired, Some(&self.fingerprints), touched.iter(), &self.config.state_dir)
    }

    /// Returns the reason for a restart, and updates what is pending. `None` if HAProxy runs the needed generation.
    fn restart_reason(&mut self) -> Option<String> {
        let suspected = self.files.suspect.as_ref().map(|path| self.suspected_file_reason(path));
        let reason = self.haproxy.restart_reason(&self.fingerprints).or(suspected);
        if self.haproxy.is_synced() {
            self.update_pending(reason.as_ref().map(|reason| reason.services.clone()).unwrap_or_default());
        }
        reason.map(|reason| reason.reason)
    }

    fn suspected_file_reason(&self, path: &Path) -> RestartReason {
        let reason = format!("{} was edited by hand, and HAProxy may have been started with it", path.display());
        RestartReason { reason, services: self.files.local.operator_files.filled.services_in(path) }
    }

    fn update_pending(&mut self, mut pending: BTreeSet<ServiceId>) {
        let status = &mut self.status.reconcile;
        pending.extend(self.desired.services_with_rejected_servers().cloned());
        pending.extend(self.files.local.operator_files.filled.unfilled_services(&self.desired));
        let (desired, haproxy) = (&self.desired, &self.haproxy);
        self.status.old_process_listens = applied::note_applied(
            status,
            self.status.store_revision,
            pending,
            |id| desired.service(id).is_some(),
            || haproxy.is_another_listening(),
        );
        status.unrouted = self.haproxy.find_unrouted(&self.desired, &status.pending);
        status.reached_until_restart = self.haproxy.services_reached_until_restart();
    }

    /// Removes servers that waited for their last connection, and releases retained upstreams that are no longer up. Returns
    /// the rest.
    pub fn remove_servers(&mut self) -> anyhow::Result<Pending> {
        let mut pending = Pending::default();
        if !self.retained.guard.services_with_retained().is_empty() && self.is_release_due() {
            let mut released = self.release_retained(&BTreeSet::new());
            released.extend(self.desired.drop_removed());
            pending.changes = self.apply_to_haproxy(&released, false)?;
            pending.file = !released.is_empty();
        }
        pending.restart = self.restart_reason();
        pending.removals = self.try_removals()?;
        Ok(pending)
    }

    /// Returns true if something is left that only time ends: connections, retained upstreams, an old process that listens.
    fn try_removals(&mut self) -> anyhow::Result<bool> {
        let is_leaving = self.haproxy.remove_leaving(&self.config.state_dir)?;
        let has_retained = !self.retained.guard.services_with_retained().is_empty();
        Ok(is_leaving || has_retained || self.status.old_process_listens)
    }

    /// Gives the servers of these sections their turns again. Returns false if HAProxy complained.
    pub fn requeue_servers(&mut self, sections: &BTreeSet<String>) -> anyhow::Result<bool> {
        self.haproxy.requeue_sections(sections)
    }

    /// Takes in how a publish went.
    pub fn on_published(&mut self, publication: &Publication, outcome: &PublishOutcome) -> anyhow::Result<()> {
        let (mut touched, whole) = match outcome {
            // HAProxy may still fail to start with the file. The services count as accepted once HAProxy runs it.
            PublishOutcome::Unchanged | PublishOutcome::Written => {
                let generation = &publication.generation.id;
                self.remove_old_generations(generation);
                self.files.accepted = Some((generation.clone(), publication.desired.clone()));
                self.status.reconcile.published = publication.store_revision.revision;
                let operator_files = &mut Arc::make_mut(&mut self.files.local).operator_files;
                operator_files.filled.mark_written(&publication.pending_edits());
                return Ok(());
            }
            PublishOutcome::FilledFilesRejected(rejected) => {
                Arc::make_mut(&mut self.files.local).operator_files.filled.mark_rejected(rejected);
                (BTreeSet::new(), true)
            }
            PublishOutcome::ServicesRejected(rejected) => {
                (self.desired.reject_services(rejected, &publication.desired), false)
            }
            PublishOutcome::Rejected(_)
            | PublishOutcome::OperatorFilesRejected(_)
            | PublishOutcome::EditedMeanwhile(_)
            | PublishOutcome::Blocked => return Ok(()),
        };
        // Only an observation of everything shows which services HAProxy runs without what it rejected.
        self.haproxy.invalidate();
        // At once: a restart would otherwise take the rejected generation's id for the needed one.
        touched.extend(self.desired.drop_removed());
        self.update_fingerprints(&touched, whole)
    }

    /// Removes the folders of generations that no HAProxy reads any more. Without restarts, each new service makes one.
    fn remove_old_generations(&mut self, published: &str) {
        let [last, before] = &mut self.files.published_generations;
        if last.as_str() != published {
            *before = std::mem::replace(last, published.to_owned());
        }
        // The one before: a HAProxy that starts just now may have read its file, and not yet its maps.
        let Some(running) = self.haproxy.generation_id() else { return };
        if let Err(error) = self.config.state_dir.remove_other_generations(&[running, last.as_str(), before.as_str()]) {
            tracing::warn!(%error, "can't remove an old generation's folder");
        }
    }

    /// Everything that a publish needs. It runs beside other actions, so it has copies.
    pub fn publication(&mut self) -> Publication {
        let now = Instant::now();
        if !Arc::ptr_eq(&self.generation.fingerprint, &self.fingerprints) {
            self.generation = Arc::new(Generation::new(Arc::clone(&self.fingerprints)));
        }
        Publication {
            site: self.files.site.clone(),
            local_files: Arc::clone(&self.files.local),
            desired: self.desired.clone(),
            generation: Arc::clone(&self.generation),
            texts: Arc::clone(&self.files.texts),
            written: Arc::clone(&self.files.written),
            passed_through: self.haproxy.passes_through(),
            kept_shapes: self.haproxy.running_shapes(&self.fingerprints),
            store_revision: self.status.store_revision,
            newest_revision: self.status.newest_revision,
            retained_keys: Arc::clone(&self.retained.keys),
            retained_upstreams: self.retained.guard.persist_retained(now),
            removed_upstreams: self.retained.guard.persist_losses(now),
            logged_warnings: Arc::clone(&self.logged.warnings),
            edit_windows: Arc::clone(&self.files.edit_windows),
            difference: Arc::default(),
            is_blocked: self.files.rejection.is_some(),
            options: self.config.options.clone(),
            state_dir: self.config.state_dir.clone(),
            checker: self.config.checker.clone(),
        }
    }
}
