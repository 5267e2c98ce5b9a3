//! The records in the store: one task writes them, keeps them, changes them and deletes them. It takes orders and
//! publishes how far it came. It doesn't decide which states the records should have.

mod lease_poll;
pub(crate) mod log_changes;
mod own_keys;
pub(crate) mod record_set;
mod restores;
pub(crate) mod transaction;
mod written;

use std::collections::BTreeSet;
use std::sync::Arc;

use discovery::{ServiceId, UpstreamId};
use registry::LeaseId;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep_until, timeout_at},
};

use crate::lease::Lease;
use crate::record::{Record, RecordStatus, Want, claims};
use crate::registrar::log_changes::ChangeLog;
use crate::registrar::own_keys::{KeyNews, OwnKeys};
use crate::registrar::record_set::{Conclusion, KeyObservation, RecordSet};
use crate::registrar::restores::RestorePacer;
use crate::registrar::transaction::WriteRound;
pub use crate::registrar::written::Written;
use crate::retry::{self, StoreError};
use crate::state::Event;
use crate::state::message::Message;

/// Pause before a taken id is tried again while its key can't be followed. A replacement then takes over within about a
/// second after the old lease's end.
const OWNER_CHECK: Duration = Duration::from_secs(1);

/// Time for which a refused write is tried again. A new attempt renews an expired login, and an overloaded member
/// recovers.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// Wanted states, and the lease to write them under.
#[derive(Clone, Debug, Default)]
struct Order {
    sequence: u64,
    lease: Option<LeaseId>,
    wants: Vec<(Arc<Record>, Want)>,
}

/// Result of the last round.
#[derive(Clone, Debug, Default)]
struct Progress {
    sequence: u64,
    /// Everything that could be written was written.
    is_done: bool,
    written: Written,
    statuses: Vec<(Arc<Record>, RecordStatus)>,
    failure: Option<Arc<registry::Error>>,
}

/// Read access to the records' statuses.
#[derive(Clone)]
pub(crate) struct RecordStatuses(watch::Receiver<Progress>);

impl RecordStatuses {
    /// Status of one record. The default before it was ordered.
    pub(crate) fn status_of(&self, service: &ServiceId, id: &UpstreamId) -> RecordStatus {
        let progress = self.0.borrow();
        let found = progress.statuses.iter().find(|(record, _)| record.service_and_id() == (service, id));
        found.map(|(_, status)| status.clone()).unwrap_or_default()
    }

    /// Error of the last round. `None` if it succeeded.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.0.borrow().failure.as_ref().map(ToString::to_string)
    }
}

/// Gives orders. Clones give them to one task.
#[derive(Clone)]
pub(crate) struct Registrar {
    orders: Arc<watch::Sender<Order>>,
    progress: watch::Receiver<Progress>,
}

impl Registrar {
    /// Starts the task. It reports when all of the `count` records are stored for the first time, when one is lost, and
    /// when all are stored again.
    pub(crate) fn start(lease: Lease, count: usize, messages: mpsc::Sender<Message>) -> Self {
        Self::start_with(lease, Some(count), messages)
    }

    /// The same for records that come and go. One request lists the lease's keys every so often, instead of a watch of each
    /// key, so that many hosts cost etcd little. Nothing is reported.
    pub(crate) fn start_for_host(lease: Lease, messages: mpsc::Sender<Message>) -> Self {
        Self::start_with(lease, None, messages)
    }

    fn start_with(lease: Lease, expected_count: Option<usize>, messages: mpsc::Sender<Message>) -> Self {
        let (orders, received) = watch::channel(Order::default());
        let (publisher, progress) = watch::channel(Progress::default());
        let orders = Arc::new(orders);
        tokio::spawn(forward_lease(lease.id.clone(), orders.clone()));
        let task = RegistrarTask {
            own_keys: OwnKeys::new(lease.client.clone()),
            lease,
            orders: received,
            progress: publisher,
            messages,
            expected_count,
            next_poll: expected_count.is_none().then(lease_poll::first_poll),
            records: RecordSet::default(),
            change_log: ChangeLog::default(),
            restores: RestorePacer::default(),
            checked_services: BTreeSet::new(),
            withheld: BTreeSet::new(),
            is_registered: false,
        };
        tokio::spawn(task.run());
        Self { orders, progress }
    }

    /// Replaces the wanted states. Returns the order's sequence number.
    pub(crate) fn set_wants(&self, wants: Vec<(Arc<Record>, Want)>) -> u64 {
        let mut sequence = 0;
        self.orders.send_modify(|order| {
            sequence = order.sequence + 1;
            *order = Order { sequence, wants, lease: order.lease };
        });
        sequence
    }

    /// Sets all known records to one state, and waits until it is written or the deadline is over. A refused write is
    /// tried again for [`REFUSAL_LIMIT`]. If etcd refuses a part, the rest is returned. An error if it refuses
    /// everything.
    pub(crate) async fn set_all_and_wait(&self, want: Want, deadline: Instant) -> Result<Written, StoreError> {
        let records: Vec<_> = self.orders.borrow().wants.iter().map(|(record, _)| (record.clone(), want)).collect();
        let sequence = self.set_wants(records);
        let mut progress = self.progress.clone();
        let mut last = StoreError::OutOfTime;
        let mut refused_since: Option<Instant> = None;
        loop {
            let waited = timeout_at(deadline, progress.wait_for(|progress| progress.sequence >= sequence)).await;
            let Ok(Ok(now)) = waited.map(|found| found.map(|progress| progress.clone())) else { return Err(last) };
            match now.failure {
                None if now.is_done => return Ok(now.written),
                None => {}
                Some(error) => {
                    // An outage is no refusal. It may last until the deadline.
                    let since = refused_since.unwrap_or_else(Instant::now);
                    refused_since = (!error.is_unreachable()).then_some(since);
                    last = StoreError::Store(error);
                }
            }
            let end = refused_since.map_or(deadline, |since| deadline.min(since + REFUSAL_LIMIT));
            if !matches!(timeout_at(end, progress.changed()).await, Ok(Ok(()))) {
                return if now.written.ours.is_empty() { Err(last) } else { Ok(now.written) };
            }
        }
    }

    /// Waits until a round ended, and returns true if all of that order is written. Clones have their own position.
    pub(crate) async fn next_progress(&mut self, sequence: u64) -> bool {
        // The task runs as long as this handle.
        if self.progress.changed().await.is_err() {
            return std::future::pending().await;
        }
        let progress = self.progress.borrow_and_update();
        progress.sequence >= sequence && progress.is_done && progress.failure.is_none()
    }

    /// The records' statuses, always current.
    pub(crate) fn watch_statuses(&self) -> RecordStatuses {
        RecordStatuses(self.progress.clone())
    }

    /// The records as last written.
    pub(crate) fn latest_written(&self) -> Written {
        self.progress.borrow().written.clone()
    }
}

/// Turns each change of the lease into an order.
async fn forward_lease(mut lease: watch::Receiver<Option<LeaseId>>, orders: Arc<watch::Sender<Order>>) {
    loop {
        let now = *lease.borrow_and_update();
        orders.send_modify(|order| order.lease = now);
        if lease.changed().await.is_err() {
            return;
        }
    }
}

/// The earlier of a time and one after a pause from now.
fn earlier(due: Option<Instant>, pause: Option<Duration>) -> Option<Instant> {
    due.into_iter().chain(pause.map(|pause| Instant::now() + pause)).min()
}

struct RegistrarTask {
    lease: Lease,
    orders: watch::Receiver<Order>,
    progress: watch::Sender<Progress>,
    messages: mpsc::Sender<Message>,
    /// Number of configured records. `None` if records come and go.
    expected_count: Option<usize>,
    /// Time of the next listing of the lease's keys. `None` if each key has a watch.
    next_poll: Option<Instant>,
    records: RecordSet,
    own_keys: OwnKeys,
    change_log: ChangeLog,
    restores: RestorePacer,
    /// Services with claims that were checked under this lease.
    checked_services: BTreeSet<ServiceId>,
    /// Keys of settings that claim what another service's keys name.
    withheld: BTreeSet<String>,
    /// True from the report that all records are stored until the report of a loss.
    is_registered: bool,
}

impl RegistrarTask {
    /// Runs until the last [`Registrar`] is dropped. Each round is followed by a bounded wait or by news.
    async fn run(mut self) {
        let mut delays = retry::store_delays();
        loop {
            let order = self.orders.borrow_and_update().clone();
            if self.records.set_wants(order.lease, &order.wants) {
                tracing::warn!(records = order.wants.len(), "the lease has ended, registering again");
                self.checked_services.clear();
                self.withheld.clear();
                self.report_loss().await;
            }
            if self.next_poll.is_none() {
                self.own_keys.follow_keys(order.wants.iter().map(|(record, _)| record.key()));
            }
            self.withhold_claimed_settings(&order).await;
            let round = transaction::write_round(&self.lease.client, &mut self.records).await;
            self.change_log.log_round(&round);
            // etcd may have ended the lease since the last renewal. A renewal at once finds out.
            if round.failure.as_ref().is_some_and(registry::Error::is_lease_not_found) {
                self.lease.renew_now.notify_one();
            }
            // After a success the delays start anew, so that the next outage begins with short ones.
            let delay = if round.failure.is_some() || round.contended {
                delays.next()
            } else {
                delays = retry::store_delays();
                // Without a watch, only a new attempt notices that the other owner has gone.
                let is_blind = round.taken.iter().any(|(record, _)| !self.own_keys.is_following(&record.key()));
                is_blind.then_some(OWNER_CHECK)
            };
            self.publish_round(order.sequence, round).await;
            if self.wait_for_work(order.sequence, delay).await.is_err() {
                return;
            }
        }
    }

    /// Withholds settings that claim what another service's keys name. Each service is checked once for each lease.
    async fn withhold_claimed_settings(&mut self, order: &Order) {
        let all = order.wants.iter().map(|(record, _)| record);
        let new: Vec<_> =
            all.filter(|record| !self.checked_services.contains(record.service_and_id().0)).cloned().collect();
        if order.lease.is_none() || new.is_empty() {
            return;
        }
        // An unreachable etcd is asked again in the next round.
        if let Some(withheld) = claims::find_withheld_settings(&self.lease.client, &new).await {
            self.checked_services.extend(new.iter().map(|record| record.service_and_id().0.clone()));
            self.withheld.extend(withheld);
        }
        self.records.withhold_settings(self.withheld.clone());
    }

    /// Waits for a new order, the end of the delay, or a change of our keys by another writer. An error if the last
    /// registrar was dropped.
    async fn wait_for_work(&mut self, sequence: u64, delay: Option<Duration>) -> Result<(), watch::error::RecvError> {
        let mut due = delay.map(|delay| Instant::now() + delay);
        loop {
            tokio::select! {
                changed = self.orders.changed() => return changed,
                // `select!` evaluates the expression even if its condition is false.
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return Ok(()),
                news = self.own_keys.next_news() => {
                    due = earlier(due, self.apply_news(sequence, &news).await);
                }
                () = sleep_until(self.next_poll.unwrap_or_else(Instant::now)), if self.next_poll.is_some() => {
                    due = earlier(due, self.poll_lease(sequence).await);
                }
            }
        }
    }

    /// Applies news of our keys. Returns the pause before the next round, or `None` if none is needed.
    async fn apply_news(&mut self, sequence: u64, news: &KeyNews) -> Option<Duration> {
        // All keys are restored in one round, at the pace of the slowest.
        let pause = news.observations().filter_map(|(key, seen)| self.observe_key(key, seen)).max();
        self.finish_observations(sequence, pause).await
    }

    /// Applies one observation. Returns the pause before the next round, or `None` if none is needed.
    fn observe_key(&mut self, key: &str, seen: KeyObservation<'_>) -> Option<Duration> {
        match self.records.observe_key(key, seen) {
            Conclusion::Nothing => None,
            Conclusion::MayBeFree => Some(Duration::ZERO),
            Conclusion::Lost(loss) => {
                tracing::debug!(key, ?loss, "another writer changed the record");
                // The deletion may be the lease's end. A renewal at once tells that from a deletion by another writer.
                self.lease.renew_now.notify_one();
                Some(self.restores.next_pause(Instant::now().into_std()))
            }
        }
    }

    async fn finish_observations(&mut self, sequence: u64, pause: Option<Duration>) -> Option<Duration> {
        if pause.is_none() {
            self.publish_later_revision();
        }
        pause?;
        // Before the next round: `/ready` must not claim a record that is gone.
        self.publish_current(sequence);
        if self.is_registered && !self.records.is_complete() {
            self.report_loss().await;
        }
        pause
    }

    /// Reports that a record was lost.
    async fn report_loss(&mut self) {
        self.is_registered = false;
        let _ = self.messages.send(Message::Event(Event::RecordsLost)).await;
    }

    /// Publishes the current knowledge between two rounds. The failure of the last round stays.
    fn publish_current(&self, sequence: u64) {
        let (written, statuses) = (self.collect_written(), self.records.record_statuses());
        self.progress.send_modify(|progress| {
            *progress = Progress { sequence, is_done: false, written, statuses, failure: progress.failure.clone() };
        });
    }

    /// Publishes the revision of a write that was carried out as wanted, and not by the last round: its answer was lost, or another
    /// announcer with this lease wrote the same.
    fn publish_later_revision(&self) {
        let written = self.collect_written();
        self.progress.send_if_modified(|progress| {
            let is_later = written.revision > progress.written.revision;
            if is_later {
                progress.written = written;
            }
            is_later
        });
    }

    fn collect_written(&self) -> Written {
        Written::from_set(&self.records)
    }

    async fn publish_round(&mut self, sequence: u64, round: WriteRound) {
        let (written, statuses) = (self.collect_written(), self.records.record_statuses());
        let (is_done, failure) = (!round.contended, round.failure.map(Arc::new));
        self.progress.send_replace(Progress { sequence, is_done, written, statuses, failure });
        // The first order may have only the upstreams that work already.
        let are_all_stored =
            Some(self.orders.borrow().wants.len()) == self.expected_count && self.records.is_complete();
        if are_all_stored && !std::mem::replace(&mut self.is_registered, true) {
            let _ = self.messages.send(Message::Event(Event::Registered)).await;
        }
    }
}
