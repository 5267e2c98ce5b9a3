//! The removal guard's part of `state.json`. Pure: the caller tells the time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use discovery::{ServiceId, Upstream, UpstreamId};
use serde::{Deserialize, Serialize};

use super::{ClusterRevision, Elapsed, Loss, MAX_LOSSES, RemovalGuard, Retention, UpstreamRemoval};
use crate::store::address_owners::UpstreamRef;

/// An upstream that is retained, or that was lost, as `state.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistedUpstream {
    service: ServiceId,
    id: UpstreamId,
    upstream: Upstream,
    #[serde(default, rename = "bore")]
    previous_owners: BTreeSet<UpstreamRef>,
    /// The seconds from the event to the last write of the file.
    #[serde(default)]
    seconds: u64,
    /// The time of the event, by this host's clock. `None` if an older confgen wrote it.
    #[serde(default)]
    since: Option<SystemTime>,
    #[serde(default)]
    noticed: ClusterRevision,
    #[serde(default)]
    is_unproven: bool,
}

impl PersistedUpstream {
    fn from_retention(service: &ServiceId, id: &UpstreamId, retention: &Retention, now: Instant) -> Self {
        Self {
            service: service.clone(),
            id: id.clone(),
            upstream: retention.upstream.clone(),
            previous_owners: retention.previous_owners.clone(),
            seconds: retention.elapsed.age_at(now).as_secs(),
            since: retention.elapsed.since,
            noticed: retention.noticed,
            is_unproven: retention.is_unproven,
        }
    }

    fn from_loss(loss: &Loss, now: Instant) -> Self {
        Self {
            service: loss.removal.service.clone(),
            id: loss.removal.id.clone(),
            upstream: loss.removal.upstream.clone(),
            previous_owners: loss.removal.previous_owners.clone(),
            seconds: loss.elapsed.age_at(now).as_secs(),
            since: loss.elapsed.since,
            noticed: loss.noticed,
            is_unproven: false,
        }
    }

    /// The time since the event. `now` and `wall_clock` are the same moment.
    fn restore_elapsed(&self, now: Instant, wall_clock: SystemTime) -> Elapsed {
        // The time without confgen counts too. A clock that was set back takes nothing away.
        let by_clock = self.since.and_then(|since| wall_clock.duration_since(since).ok()).unwrap_or_default();
        Elapsed { from: now, before: by_clock.max(Duration::from_secs(self.seconds)), since: self.since }
    }
}

impl RemovalGuard {
    /// The retained upstreams, to be restored by the next confgen.
    pub fn persist_retained(&self, now: Instant) -> Vec<PersistedUpstream> {
        self.iter_retained().map(|(service, id, it)| PersistedUpstream::from_retention(service, id, it, now)).collect()
    }

    /// The losses, to be restored by the next confgen.
    pub fn persist_losses(&self, now: Instant) -> Vec<PersistedUpstream> {
        self.losses.iter().map(|loss| PersistedUpstream::from_loss(loss, now)).collect()
    }

    /// Restores what the previous confgen persisted. `now` and `wall_clock` are the same moment.
    pub fn restore_persisted(
        &mut self,
        now: Instant,
        wall_clock: SystemTime,
        retained: Vec<PersistedUpstream>,
        losses: Vec<PersistedUpstream>,
    ) {
        for it in retained {
            let elapsed = it.restore_elapsed(now, wall_clock);
            let PersistedUpstream { service, id, upstream, previous_owners, noticed, is_unproven, .. } = it;
            let retention = Retention { elapsed, noticed, upstream, previous_owners, is_unproven };
            self.retained.entry(service).or_default().insert(id, retention);
        }
        // An edited file may name an upstream twice.
        let mut known: BTreeSet<UpstreamRef> = self.retained_since().map(|(upstream, _)| upstream).collect();
        for it in losses.into_iter().take(MAX_LOSSES) {
            if !known.insert((it.service.clone(), it.id.clone())) {
                continue;
            }
            let elapsed = it.restore_elapsed(now, wall_clock);
            let PersistedUpstream { service, id, upstream, previous_owners, noticed, .. } = it;
            // The guard asked for the lease before it recorded the loss, and does not ask again.
            let removal = UpstreamRemoval { service, id, upstream, previous_owners, lease: 0 };
            self.losses.push(Loss { elapsed, noticed, removal });
        }
    }
}
