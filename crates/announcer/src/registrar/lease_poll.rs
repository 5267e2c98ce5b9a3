//! Lists the lease's keys every so often, which shows records that another writer deleted or overwrote. It costs etcd one
//! request for all records of a host, and no more memory than a watch of each key on one stream.

use tokio::time::{Duration, Instant};

use crate::registrar::RegistrarTask;
use crate::registrar::record_set::KeyObservation;

/// Time between two listings. A record that a person deleted is back after it.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time of the first listing. It is spread, so that hosts which started together don't ask together.
pub(super) fn first_poll() -> Instant {
    Instant::now() + INTERVAL.mul_f64(0.5 + 0.5 * fastrand::f64())
}

impl RegistrarTask {
    /// Lists the keys, and applies what is missing. Returns the pause before the next round, or `None` if none is needed.
    pub(super) async fn poll_lease(&mut self, sequence: u64) -> Option<Duration> {
        self.next_poll = Some(Instant::now() + INTERVAL);
        let stored = self.records.stored_keys();
        let lease = self.orders.borrow().lease.filter(|_| !stored.is_empty())?;
        let keys = match self.lease.client.lease_keys(lease).await {
            Ok(Some(keys)) => keys,
            Ok(None) => {
                self.lease.renew_now.notify_one();
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "can't list the lease's keys for now");
                return None;
            }
        };
        let mut pause: Option<Duration> = None;
        for key in stored.iter().filter(|key| !keys.contains(key)) {
            // The key may have another owner, or a value without a lease.
            let Ok(entry) = self.lease.client.get(key).await else { continue };
            let revision = self.records.last_revision();
            // The listing is newer than every write of ours, whatever the revisions say: this task has none under way.
            let seen = KeyObservation { entry: entry.as_ref(), revision, is_other_store: true };
            pause = pause.max(self.observe_key(key, seen));
        }
        self.finish_observations(sequence, pause).await
    }
}
