//! One pass: resolve, observe if stale, plan, apply. The order of calls is that of `confgen/src/reconcile.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use confgen::decisions::{
    Changed, ConfigFingerprint, DesiredState, Generation, GuardPolicy, HaproxyControl, LastKnownGood, Pending, Policy,
    ReconcileStatus, RemovalGuard, Retained, RetainedKeys, Retainer, ServiceTexts, Site, StoreRevision, StoreUpdate,
    fingerprint,
};
use discovery::{ServiceId, UpstreamId};
use haproxy::runtime::Socket;
use haproxy::supervisor::Control;

use super::{Context, Disk};
use crate::bugs::Bug;
use crate::clock::{Clock, Millis};
use crate::haproxy::SharedHaproxy;

/// `--guard` and `--guard-window` as they are by default.
const GUARD: GuardPolicy = GuardPolicy { share: 50, window: std::time::Duration::from_secs(10), hold: None };

/// The state of all reconciles.
pub struct Reconciler {
    pub desired: DesiredState,
    pub fingerprints: Arc<ConfigFingerprint>,
    pub(super) generation: Arc<Generation>,
    pub control: HaproxyControl,
    pub guard: RemovalGuard,
    pub retained_keys: Arc<RetainedKeys>,
    pub(super) health_asked_at: Millis,
    pub(super) last_acceptance: Option<(u64, i64)>,
    pub status: ReconcileStatus,
    pub store_revision: StoreRevision,
    pub(super) newest_revision: i64,
    pub(super) old_process_listens: bool,
    pub(super) accepted: Option<(String, DesiredState)>,
    pub(super) site: Rc<Site>,
    pub(super) texts: ServiceTexts,
    pub(super) disk: Disk,
    pub haproxy: SharedHaproxy,
    /// All keys that changed since the last reconcile have values that no confgen applies.
    pub(super) has_only_rejected_keys: bool,
    /// What a reconcile did wrong.
    pub violations: Vec<String>,
}

/// An error in words.
pub(super) fn words(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

impl Reconciler {
    pub(super) fn new(haproxy: &SharedHaproxy, disk: &Disk, site: &Rc<Site>, good: LastKnownGood) -> Self {
        // No step of the simulation restarts HAProxy by supervisord, so this command is never run.
        let control = "true".parse().map(|command| Control::new(command, None));
        #[expect(clippy::expect_used, reason = "a word is a command line")]
        let control = control.expect("a word is a command line");
        let socket = Socket::of_model(Arc::new(haproxy.clone()));
        Self {
            desired: DesiredState::from_last_known_good(good),
            fingerprints: Arc::default(),
            generation: Arc::default(),
            control: HaproxyControl::new(socket, control, "/nonexistent/restarting".into()),
            guard: RemovalGuard::new(GUARD),
            retained_keys: Arc::default(),
            health_asked_at: 0,
            last_acceptance: None,
            status: ReconcileStatus::default(),
            store_revision: StoreRevision::default(),
            newest_revision: 0,
            old_process_listens: false,
            accepted: None,
            site: Rc::clone(site),
            texts: ServiceTexts::default(),
            disk: disk.clone(),
            haproxy: haproxy.clone(),
            has_only_rejected_keys: false,
            violations: Vec::new(),
        }
    }

    fn resolve_desired(&mut self, update: &StoreUpdate) -> BTreeSet<ServiceId> {
        if update.changed == Changed::All {
            self.desired.set_policy(Policy::default());
        }
        let before = self.desired.clone();
        let touched = self.desired.update_services(&update.topology, &update.changed);
        self.check_rejected_keys(update, &before);
        touched
    }

    /// A key that isn't applied must not change another service.
    fn check_rejected_keys(&mut self, update: &StoreUpdate, before: &DesiredState) {
        let Changed::Services(services) = &update.changed else { return };
        if !self.has_only_rejected_keys {
            return;
        }
        let others = self.desired.changes_since(before).filter(|(id, _, _)| !services.contains(id));
        let found: Vec<String> =
            others.map(|(id, _, _)| format!("{id} changed with a rejected key of {services:?}")).collect();
        self.violations.extend(found);
    }

    pub(super) fn update_fingerprints(&mut self, touched: &BTreeSet<ServiceId>, mut whole: bool) -> Result<(), String> {
        for id in touched {
            if whole {
                break;
            }
            let desired = self.desired.service(id).map(|desired| &**desired);
            whole = !self.fingerprints.update_service(id, desired, &self.site).map_err(words)?;
        }
        if whole {
            let fingerprints = fingerprint(&self.desired, &self.site)?;
            if *self.fingerprints != fingerprints {
                self.fingerprints = Arc::new(fingerprints);
            }
        }
        Ok(())
    }

    pub(super) fn apply_runtime(&mut self, update: &StoreUpdate, context: Context<'_>) -> Result<Pending, String> {
        let mut touched = self.resolve_desired(update);
        touched.extend(self.retain_removed(update, context));
        touched.extend(self.desired.drop_removed());
        let is_stale = self.control.generation_id().is_none();
        let keys = std::mem::replace(&mut self.retained_keys, Arc::clone(&update.retained));
        let is_retention_changed = !Arc::ptr_eq(&keys, &update.retained);
        (self.store_revision, self.newest_revision) = (update.store_revision, update.newest_revision);
        let changes = self.apply_to_haproxy(&touched, update.changed == Changed::All)?;
        let running = self.control.generation_id().map(str::to_owned);
        if let Some((_, desired)) = self.accepted.take_if(|(id, _)| running.as_ref() == Some(id)) {
            self.desired.mark_accepted(&desired);
        }
        let restart = self.restart_reason(context);
        if restart.is_none() {
            if is_stale {
                touched.extend(self.desired.services().map(|(id, _)| id.clone()));
            }
            self.desired.mark_running(touched.iter());
        }
        Ok(Pending {
            changes,
            file: is_stale || is_retention_changed || update.changed == Changed::All || !touched.is_empty(),
            restart,
            unreachable: self.control.is_unreachable(),
            removals: self.try_removals()?,
        })
    }

    pub(super) fn apply_to_haproxy(&mut self, touched: &BTreeSet<ServiceId>, whole: bool) -> Result<usize, String> {
        if !self.control.may_add_backends(&self.desired, touched) {
            let applied = self.control.apply_desired(&self.desired, None, touched.iter(), &self.disk).map_err(words);
            self.update_fingerprints(touched, whole)?;
            let changes = applied?;
            if !self.control.is_observed_without_additions() {
                return Ok(changes + self.undo_manual_changes()?);
            }
            self.control.invalidate();
        } else {
            self.update_fingerprints(touched, whole)?;
        }
        let changes = self.apply_with_backends(touched)?;
        Ok(changes + self.undo_manual_changes()?)
    }

    pub(super) fn undo_manual_changes(&mut self) -> Result<usize, String> {
        self.control.undo_manual_changes(&self.desired, &self.fingerprints).map_err(words)
    }

    pub(super) fn apply_with_backends(&mut self, touched: &BTreeSet<ServiceId>) -> Result<usize, String> {
        let wanted = Some(&*self.fingerprints);
        self.control.apply_desired(&self.desired, wanted, touched.iter(), &self.disk).map_err(words)
    }

    pub(super) fn restart_reason(&mut self, context: Context<'_>) -> Option<String> {
        let reason = self.control.restart_reason(&self.fingerprints);
        if self.control.is_synced() {
            let pending = reason.as_ref().map(|reason| reason.services.clone()).unwrap_or_default();
            self.update_pending(if context.has(Bug::ForgetPending) { BTreeSet::new() } else { pending });
        }
        reason.map(|reason| reason.reason)
    }

    fn update_pending(&mut self, mut pending: BTreeSet<ServiceId>) {
        let is_another_listening = self.haproxy.lock().is_another_listening();
        let status = &mut self.status;
        status.applied = Some(self.store_revision);
        pending.extend(self.desired.services_with_rejected_servers().cloned());
        pending.retain(|id| self.desired.service(id).is_some());
        let mut before = std::mem::replace(&mut status.pending, pending);
        before.retain(|id| self.desired.service(id).is_some());
        let ends_pending = !before.is_subset(&status.pending);
        self.old_process_listens = ends_pending && is_another_listening;
        if self.old_process_listens {
            status.pending.append(&mut before);
        }
        status.unrouted = self.control.find_unrouted(&self.desired, &status.pending);
        status.reached_until_restart = self.control.services_reached_until_restart();
    }

    pub(super) fn remove_servers(&mut self, context: Context<'_>) -> Result<Pending, String> {
        let mut pending = Pending::default();
        if !self.guard.services_with_retained().is_empty() && self.is_release_due(context.clock) {
            let mut released = self.release_retained(&BTreeSet::new(), context.clock);
            released.extend(self.desired.drop_removed());
            pending.changes = self.apply_to_haproxy(&released, false)?;
            pending.file = !released.is_empty();
        }
        pending.restart = self.restart_reason(context);
        pending.removals = self.try_removals()?;
        Ok(pending)
    }

    fn try_removals(&mut self) -> Result<bool, String> {
        let is_leaving = self.control.remove_leaving(&self.disk).map_err(words)?;
        let has_retained = !self.guard.services_with_retained().is_empty();
        Ok(is_leaving || has_retained || self.old_process_listens)
    }

    /// True if HAProxy is known to run all of the store's revision.
    pub fn is_current(&self) -> bool {
        self.control.is_synced() && self.status.applied == Some(self.store_revision)
    }

    /// The status for the balancer record.
    pub(super) fn to_status(&self) -> ReconcileStatus {
        ReconcileStatus {
            desired: Arc::new(self.desired.clone()),
            retained: self.retained_upstreams(),
            reset_lost: self.retained_keys.summarize_loss(),
            quarantined: self.desired.quarantined_keys().into(),
            ..self.status.clone()
        }
    }

    /// The upstreams that are served without a key, and the mechanism that retains each.
    pub fn retained_upstreams(&self) -> BTreeMap<(ServiceId, UpstreamId), Retained> {
        let reset = Retained { by: Retainer::Reset, since: self.retained_keys.retained_since() };
        let lost = self.retained_keys.served_upstreams(|service, id| self.desired.record_key(service, id));
        let by_reset = lost.into_iter().map(|name| (name, reset));
        let by_guard = self.guard.retained_since().map(|(name, since)| (name, Retained { by: Retainer::Guard, since }));
        by_reset.chain(by_guard).collect()
    }

    /// The upstreams that are no longer desired, and that still have connections.
    pub(super) fn leaving_upstreams(&self) -> Vec<(ServiceId, UpstreamId)> {
        let names = self.control.leaving_servers();
        let parse = |section: &str, server: &str| {
            let known = self.fingerprints.services().chain(self.desired.services().map(|(id, _)| id.clone()));
            let own = section.split_once(":preview-").map_or(section, |(own, _)| own);
            let mut services = known.filter(|id| own == id.to_string());
            Some((services.next()?, server.parse().ok()?))
        };
        names.iter().filter_map(|name| parse(name.backend.as_str(), name.server.as_str())).collect()
    }

    /// True if HAProxy may be asked again about retained upstreams.
    pub(super) fn is_release_due(&self, clock: Clock) -> bool {
        let services = self.guard.services_with_retained().len() as u64;
        clock.millis() - self.health_asked_at >= 1_000.max(20 * services)
    }
}
