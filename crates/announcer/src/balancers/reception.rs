//! Reads how balancers take the records, and if another hand has changed the settings that this announcer was given. It
//! writes nothing.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery::{BalancerRecords, Key, QuarantinedKey};
use registry::{Client, Error};
use tokio::{sync::watch, time::sleep};

use crate::record::{Difference, Record};
use crate::registrar::{Registrar, Written};
use crate::status::KeyStatus;

/// The first look. A balancer writes its key at most once a second.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest time between two looks. What makes a balancer refuse a record that it took is a change by an operator.
/// Each look is one read for the balancers and one for each setting: a watch would bring each announcer all that each
/// balancer writes with every change in the store.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The same while a balancer refuses a record: the operator waits for the end of that.
const LONGEST_PAUSE_WHILE_REFUSED: Duration = Duration::from_secs(5);

/// The keys that matter to an announcer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnnouncedKeys {
    /// Our records.
    pub(crate) records: Vec<String>,
    /// The settings that we were given, and the folder that stands for a service as a whole.
    pub(crate) services: Vec<String>,
}

impl AnnouncedKeys {
    pub(crate) fn from_written(reached: &Written) -> Self {
        let records = reached.our_names().map(|(service, id)| Key::for_upstream(service, id).to_string()).collect();
        let folders = reached.our_names().map(|(service, _)| service.folder_path());
        let settings = reached.ours.iter().flat_map(|record| record.setting_keys());
        let services: BTreeSet<_> = settings.chain(folders).collect();
        Self { records, services: services.into_iter().collect() }
    }
}

/// The refusals that stand in the log: each is said once. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalLog(Arc<Mutex<BTreeSet<QuarantinedKey>>>);

impl RefusalLog {
    /// Says what was not said before, and what is over. A setting is no obstacle: its last good value may serve, or the
    /// rest of it; nor is a service that HAProxy refuses: its last good form may.
    pub(crate) fn log_refusals(&self, refused: BTreeSet<QuarantinedKey>, keys: &AnnouncedKeys) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for QuarantinedKey { node, key, reason } in refused.difference(&said) {
            if keys.records.contains(key) {
                tracing::warn!(balancer = %node, key, reason, "a balancer refuses the record and sends nothing to it");
            } else {
                tracing::warn!(balancer = %node, key, reason, "a balancer doesn't follow this key as it stands");
            }
        }
        for QuarantinedKey { node, key, .. } in said.difference(&refused) {
            if !refused.iter().any(|now| now.node == *node && now.key == *key) {
                tracing::info!(balancer = %node, key, "a balancer no longer refuses this key");
            }
        }
        *said = refused;
    }
}

/// The task that looks.
pub(crate) struct KeyStatusPoller {
    pub(crate) registrar: Registrar,
    pub(crate) client: Client,
    pub(crate) log: RefusalLog,
    pub(crate) publish: watch::Sender<KeyStatus>,
}

/// The result of one look.
struct KeyStatusReading {
    key_status: KeyStatus,
    differences: Vec<Difference>,
}

impl KeyStatusPoller {
    /// Looks for ever, ever more seldom while nothing changes.
    pub(crate) async fn poll_forever(self) {
        let (mut revision, mut rest, mut before) = (0, FIRST_PAUSE, None);
        let mut is_said = false;
        loop {
            sleep(rest.mul_f64(1.0 - 0.2 * fastrand::f64())).await;
            let reached = self.registrar.latest_written();
            if reached.ours.is_empty() {
                self.publish.send_replace(KeyStatus::default());
                rest = next_pause(rest, false, true);
                continue;
            }
            let is_new = std::mem::replace(&mut revision, reached.revision) != reached.revision;
            match self.read_key_status(&reached).await {
                Ok(KeyStatusReading { key_status: reception, differences: differing }) => {
                    if let Some(before) = before.replace(differing.clone()).filter(|_| !is_new) {
                        log_setting_changes(&before, &differing);
                    }
                    rest = next_pause(rest, is_new, !reception.refused_records.is_empty());
                    self.publish.send_replace(reception);
                }
                // What was known last is the best that is known.
                Err(error) if error.is_unreachable() => {
                    tracing::debug!(%error, "whether balancers refuse the record isn't known for now");
                    rest = next_pause(rest, is_new, false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_said, true) {
                        tracing::info!(%error, "whether balancers refuse the record can't be known");
                    }
                    self.publish.send_replace(KeyStatus::default());
                    rest = next_pause(rest, is_new, false);
                }
            }
        }
    }

    /// The keys that balancers refuse, which the log hears of, and the settings that say otherwise.
    async fn read_key_status(&self, reached: &Written) -> Result<KeyStatusReading, Error> {
        let balancers = BalancerRecords::from_snapshot(&self.client.read_snapshot("balancers").await?);
        let keys = AnnouncedKeys::from_written(reached);
        let refused: BTreeSet<_> = balancers.quarantined_keys(&keys.records).collect();
        let not_followed: BTreeSet<_> = balancers.quarantined_keys(&keys.services).collect();
        self.log.log_refusals(refused.union(&not_followed).cloned().collect(), &keys);
        let mut differing = Vec::new();
        for record in &reached.ours {
            differing.extend(self.read_differences(record).await);
        }
        differing.sort_by(|one, other| one.key.cmp(&other.key));
        differing.dedup();
        let differing_keys = differing.iter().map(|difference| difference.key.clone()).collect();
        Ok(KeyStatusReading {
            key_status: KeyStatus {
                refused_records: refused,
                refused_service_keys: not_followed,
                differing_settings: differing_keys,
            },
            differences: differing,
        })
    }

    /// Nothing where the settings can't be read.
    async fn read_differences(&self, record: &Record) -> Vec<Difference> {
        let mut found = Vec::new();
        for key in record.setting_keys() {
            match self.client.get(&key).await {
                Ok(entry) => found.extend(entry),
                Err(_) => return Vec::new(),
            }
        }
        record.list_differences(&found)
    }
}

/// Settings belong to the service, so that none of its announcers has the last word: what another hand does to them stays.
fn log_setting_changes(before: &[Difference], now: &[Difference]) {
    for Difference { key, stored: stands, given } in now.iter().filter(|difference| !before.contains(difference)) {
        match stands {
            Some(stands) => tracing::warn!(
                key,
                stands,
                given,
                "another hand has changed a setting: left as it is, since it is the whole service's"
            ),
            None => tracing::warn!(
                key,
                given,
                "another hand has deleted a setting: left so, since it is the whole service's; it is written again when an \
                 announcer of the service starts"
            ),
        }
    }
}

/// The time until the next look.
fn next_pause(rest: Duration, is_new: bool, is_refused: bool) -> Duration {
    let longest = if is_refused { LONGEST_PAUSE_WHILE_REFUSED } else { LONGEST_PAUSE };
    if is_new { FIRST_PAUSE } else { rest.saturating_mul(2).min(longest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_grow_rare_unless_something_is_refused_or_new() {
        let rests = |is_refused| -> Vec<_> {
            std::iter::successors(Some(FIRST_PAUSE), |rest| Some(next_pause(*rest, false, is_refused)))
                .take(20)
                .collect()
        };
        let (fine, refused) = (rests(false), rests(true));
        assert_eq!((fine[1], fine[19], refused[19]), (FIRST_PAUSE * 2, LONGEST_PAUSE, LONGEST_PAUSE_WHILE_REFUSED));
        assert_eq!(next_pause(LONGEST_PAUSE, true, false), FIRST_PAUSE);
    }
}
