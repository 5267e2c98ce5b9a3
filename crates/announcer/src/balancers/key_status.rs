//! Polls the balancers' verdict on our keys, and the settings that this announcer was given. It writes nothing.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery::{BalancerRecords, Key, QuarantinedKey};
use registry::{Client, Error};
use tokio::{sync::watch, time::sleep};

use crate::record::Record;
use crate::record::difference::{Difference, list_differences};
use crate::registrar::{Registrar, Written};
use crate::status::KeyStatus;

/// Pause after a write. A balancer writes its key at most once a second.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause. Only an operator's change makes a balancer refuse a record that it accepted. A poll is one read for
/// the balancers and one for each setting. A watch would send each announcer everything that each balancer writes with
/// every change in the store.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Longest pause while a balancer refuses a record: the operator waits for the end of that.
const LONGEST_PAUSE_WHILE_REFUSED: Duration = Duration::from_secs(5);

/// Keys that balancers may refuse and that concern this announcer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnnouncedKeys {
    /// Keys of our records. A balancer that refuses one sends nothing to that upstream.
    pub(crate) records: Vec<String>,
    /// Keys of the settings that we were given, and the services' folders. A folder stands for a service that HAProxy
    /// rejected as a whole.
    pub(crate) services: Vec<String>,
}

impl AnnouncedKeys {
    pub(crate) fn from_written(written: &Written) -> Self {
        let records = written.our_names().map(|(service, id)| Key::for_upstream(service, id).to_string()).collect();
        let folders = written.our_names().map(|(service, _)| service.folder_path());
        let settings = written.ours.iter().flat_map(|record| record.setting_keys());
        let services: BTreeSet<_> = settings.chain(folders).collect();
        Self { records, services: services.into_iter().collect() }
    }
}

/// Refusals that were logged, so that each is logged once. Clones share the set.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalLog(Arc<Mutex<BTreeSet<QuarantinedKey>>>);

impl RefusalLog {
    /// Logs new refusals and cleared ones. A refused setting doesn't block: its last good value may serve. Neither does
    /// a service that HAProxy rejects: its last good form may serve.
    pub(crate) fn log_refusals(&self, refused: BTreeSet<QuarantinedKey>, keys: &AnnouncedKeys) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for QuarantinedKey { node, key, reason } in refused.difference(&logged) {
            if keys.records.contains(key) {
                tracing::warn!(balancer = %node, key, reason, "a balancer refuses the record and sends nothing to it");
            } else {
                tracing::warn!(balancer = %node, key, reason, "a balancer quarantines this key");
            }
        }
        for QuarantinedKey { node, key, .. } in logged.difference(&refused) {
            // The same key with a new reason was logged above as a refusal, and isn't cleared.
            if !refused.iter().any(|now| now.node == *node && now.key == *key) {
                tracing::info!(balancer = %node, key, "a balancer no longer refuses this key");
            }
        }
        *logged = refused;
    }
}

/// Task that polls until it is aborted at the drain.
pub(crate) struct KeyStatusPoller {
    pub(crate) registrar: Registrar,
    pub(crate) client: Client,
    pub(crate) log: RefusalLog,
    pub(crate) publish: watch::Sender<KeyStatus>,
}

struct KeyStatusReading {
    key_status: KeyStatus,
    differences: Vec<Difference>,
}

impl KeyStatusPoller {
    /// Polls for ever. The pause doubles while nothing changes.
    pub(crate) async fn poll_forever(self) {
        let (mut revision, mut pause, mut before) = (0, FIRST_PAUSE, None);
        let mut is_refusal_logged = false;
        loop {
            // 20 % of jitter: announcers that were deployed together must not read in one instant.
            sleep(pause.mul_f64(1.0 - 0.2 * fastrand::f64())).await;
            let written = self.registrar.latest_written();
            if written.ours.is_empty() {
                self.publish.send_replace(KeyStatus::default());
                // The shorter bound: the registration may come at any moment.
                pause = next_pause(pause, false, true);
                continue;
            }
            // After a write of ours the differences may be our own, so they are not logged as another writer's change.
            let is_new = std::mem::replace(&mut revision, written.revision) != written.revision;
            match self.read_key_status(&written).await {
                Ok(KeyStatusReading { key_status, differences }) => {
                    if let Some(before) = before.replace(differences.clone()).filter(|_| !is_new) {
                        log_setting_changes(&before, &differences);
                    }
                    pause = next_pause(pause, is_new, !key_status.refused_records.is_empty());
                    self.publish.send_replace(key_status);
                }
                // The last known status stays: an outage of etcd changes no balancer's verdict.
                Err(error) if error.is_unreachable() => {
                    tracing::debug!(%error, "can't read the balancers' refusals for now");
                    pause = next_pause(pause, is_new, false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_refusal_logged, true) {
                        tracing::info!(%error, "can't read the balancers' refusals");
                    }
                    self.publish.send_replace(KeyStatus::default());
                    pause = next_pause(pause, is_new, false);
                }
            }
        }
    }

    /// Reads the refusals, logs them, and compares the settings.
    async fn read_key_status(&self, written: &Written) -> Result<KeyStatusReading, Error> {
        let balancers = BalancerRecords::from_snapshot(&self.client.read_snapshot("balancers").await?);
        let keys = AnnouncedKeys::from_written(written);
        let refused_records: BTreeSet<_> = balancers.quarantined_keys(&keys.records).collect();
        let refused_service_keys: BTreeSet<_> = balancers.quarantined_keys(&keys.services).collect();
        self.log.log_refusals(refused_records.union(&refused_service_keys).cloned().collect(), &keys);
        let mut differences = Vec::new();
        for record in &written.ours {
            differences.extend(self.read_differences(record).await);
        }
        differences.sort_by(|one, other| one.key.cmp(&other.key));
        // Records of one service share its settings.
        differences.dedup();
        let differing_settings = differences.iter().map(|difference| difference.key.clone()).collect();
        let key_status = KeyStatus { refused_records, refused_service_keys, differing_settings };
        Ok(KeyStatusReading { key_status, differences })
    }

    /// Differences of one record. Empty if a setting can't be read: etcd's role may allow records only.
    async fn read_differences(&self, record: &Record) -> Vec<Difference> {
        let mut found = Vec::new();
        for key in record.setting_keys() {
            match self.client.get(&key).await {
                Ok(entry) => found.extend(entry),
                Err(_) => return Vec::new(),
            }
        }
        list_differences(record, &found)
    }
}

/// Logs settings that another writer changed since the last poll. They are left alone: settings belong to the service,
/// and none of its announcers overrules the operator.
fn log_setting_changes(before: &[Difference], now: &[Difference]) {
    for Difference { key, stored, given } in now.iter().filter(|difference| !before.contains(difference)) {
        match stored {
            Some(stored) => tracing::warn!(key, stored, given, "another writer changed a setting, leaving it"),
            None => {
                let hint = "the next announcer of the service that starts writes it again";
                tracing::warn!(key, given, hint, "another writer deleted a setting, leaving it deleted");
            }
        }
    }
}

/// Pause before the next poll. A new write starts with the shortest again.
fn next_pause(pause: Duration, is_new: bool, is_refused: bool) -> Duration {
    let longest = if is_refused { LONGEST_PAUSE_WHILE_REFUSED } else { LONGEST_PAUSE };
    if is_new { FIRST_PAUSE } else { pause.saturating_mul(2).min(longest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_rare_unless_something_is_refused_or_new() {
        let rests = |is_refused| -> Vec<_> {
            std::iter::successors(Some(FIRST_PAUSE), |pause| Some(next_pause(*pause, false, is_refused)))
                .take(20)
                .collect()
        };
        let (fine, refused) = (rests(false), rests(true));
        assert_eq!((fine[1], fine[19], refused[19]), (FIRST_PAUSE * 2, LONGEST_PAUSE, LONGEST_PAUSE_WHILE_REFUSED));
        assert_eq!(next_pause(LONGEST_PAUSE, true, false), FIRST_PAUSE);
    }
}
