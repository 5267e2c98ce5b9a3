//! Publishes and restarts, in the order of `confgen/src/publish.rs` and `confgen/src/reconcile/restart.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use confgen::decisions::{
    DesiredService, DesiredState, Generation, PersistedStore, PersistedUpstream, Rendered, RetainedKeys, StoreRevision,
    render_generation,
};
use discovery::ServiceId;

use super::{Context, Reconciler};
use crate::bugs::Bug;
use crate::owners::Owners;

/// The model of `haproxy -c` rejects services whose checks ask for this path.
const REJECTED_PATH: &str = "/refused";
/// It rejects a file with a server of this address, although HAProxy takes such a server while it runs.
const REJECTED_ADDRESS: &str = "10.0.0.9:80";

/// The whole input of a publication.
#[derive(Clone)]
pub struct Publication {
    desired: DesiredState,
    generation: Arc<Generation>,
    passed_through: bool,
    kept_shapes: BTreeMap<String, String>,
    pub(super) store_revision: StoreRevision,
    newest_revision: i64,
    retained_keys: Arc<RetainedKeys>,
    kept: Vec<PersistedUpstream>,
    lost: Vec<PersistedUpstream>,
}

/// The outcome of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// haproxy.cfg is as it should be.
    Written,
    /// HAProxy rejects these services.
    ServicesRejected(BTreeMap<ServiceId, String>),
}

/// The outcome of a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartOutcome {
    /// HAProxy needed none.
    InSync,
    /// HAProxy runs the wanted generation.
    Restarted,
    /// HAProxy rejected services.
    Rejected,
    /// HAProxy doesn't run the wanted generation.
    NotLive,
}

impl Reconciler {
    pub(super) fn publication(&mut self, context: Context<'_>) -> Publication {
        if !Arc::ptr_eq(&self.generation.fingerprint, &self.fingerprints) {
            self.generation = Arc::new(Generation::new(Arc::clone(&self.fingerprints)));
        }
        let now = context.clock.now();
        Publication {
            desired: self.desired.clone(),
            generation: Arc::clone(&self.generation),
            passed_through: self.control.passes_through(),
            kept_shapes: self.control.running_shapes(&self.fingerprints),
            store_revision: self.store_revision,
            newest_revision: self.newest_revision,
            retained_keys: Arc::clone(&self.retained_keys),
            kept: self.guard.persist_retained(now),
            lost: self.guard.persist_losses(now),
        }
    }

    /// The publication for a restart, which drops the shapes that no service has.
    pub(super) fn publication_for_restart(&mut self, context: Context<'_>) -> Publication {
        Publication { kept_shapes: BTreeMap::new(), ..self.publication(context) }
    }

    /// Saves the state, renders, has HAProxy judge, and puts haproxy.cfg in place.
    pub(super) fn write(&mut self, publication: &Publication) -> Result<Outcome, String> {
        let rendered = self.render(publication)?;
        self.save(publication);
        let rejected = rejected_services(&publication.desired);
        if !rejected.is_empty() {
            return Ok(Outcome::ServicesRejected(rejected));
        }
        self.disk.write_generation(&rendered);
        self.haproxy.lock().file = Some(rendered);
        Ok(Outcome::Written)
    }

    fn render(&mut self, publication: &Publication) -> Result<Arc<Rendered>, String> {
        let Publication { desired, generation, passed_through, kept_shapes, .. } = publication;
        render_generation(desired, &self.site, &mut self.texts, generation, *passed_through, kept_shapes).map(Arc::new)
    }

    fn save(&self, publication: &Publication) {
        let position = publication.store_revision;
        let position = StoreRevision { revision: publication.newest_revision.max(position.revision), ..position };
        let mut store = PersistedStore::from_entries(publication.desired.entries(), position)
            .with_retained_keys(RetainedKeys::clone(&publication.retained_keys));
        (store.kept, store.lost) = (publication.kept.clone(), publication.lost.clone());
        let mut files = self.disk.lock();
        files.state = Some((publication.desired.to_last_known_good(), store));
        files.owners = Owners::of(&publication.desired);
    }

    pub(super) fn on_published(&mut self, publication: &Publication, outcome: &Outcome) -> Result<(), String> {
        let mut touched = match outcome {
            Outcome::Written => {
                self.accepted = Some((publication.generation.id.clone(), publication.desired.clone()));
                self.status.published = publication.store_revision.revision;
                return Ok(());
            }
            Outcome::ServicesRejected(rejected) => self.desired.reject_services(rejected, &publication.desired),
        };
        self.control.invalidate();
        touched.extend(self.desired.drop_removed());
        self.update_fingerprints(&touched, false)
    }

    /// `None` if HAProxy must be restarted now.
    pub(super) fn begin_restart(
        &mut self,
        publication: &Publication,
        published: &Outcome,
        context: Context<'_>,
    ) -> Result<Option<RestartOutcome>, String> {
        self.on_published(publication, published)?;
        if *published != Outcome::Written {
            return Ok(Some(RestartOutcome::Rejected));
        }
        self.apply_with_backends(&BTreeSet::new())?;
        if self.restart_reason(context).is_none() {
            self.undo_manual_changes()?;
            self.desired.mark_accepted(&publication.desired);
            return Ok(Some(RestartOutcome::InSync));
        }
        self.invalidate_for_restart(context);
        Ok(None)
    }

    pub(super) fn end_restart(
        &mut self,
        publication: &Publication,
        is_taken: bool,
        context: Context<'_>,
    ) -> Result<RestartOutcome, String> {
        self.invalidate_for_restart(context);
        if !is_taken {
            return Ok(RestartOutcome::NotLive);
        }
        self.desired.mark_accepted(&publication.desired);
        self.apply_with_backends(&BTreeSet::new())?;
        self.restart_reason(context);
        Ok(match self.control.refused_change() {
            None => RestartOutcome::Restarted,
            Some(_) => RestartOutcome::NotLive,
        })
    }

    fn invalidate_for_restart(&mut self, context: Context<'_>) {
        if !context.has(Bug::KeepObservedState) {
            self.control.invalidate();
        }
    }
}

fn rejected_services(desired: &DesiredState) -> BTreeMap<ServiceId, String> {
    let is_rejected = |service: &DesiredService| {
        format!("{:?}", service.settings.check).contains(REJECTED_PATH)
            || service.servers.iter().any(|server| server.address.to_string() == REJECTED_ADDRESS)
    };
    let services = desired.services().filter(|(_, it)| is_rejected(it));
    services.map(|(id, _)| (id.clone(), "the model rejects it".to_owned())).collect()
}
