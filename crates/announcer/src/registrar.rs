//! The records in the store: put them there, keep them there, change them while they are ours, take them out. One task
//! writes; what is wanted is an order that it is given, and how far it came is what it publishes.

pub(crate) mod log_changes;
mod own_keys;
pub(crate) mod record_set;
mod restores;
pub(crate) mod transaction;

use std::sync::Arc;

use discovery::{ServiceId, UpstreamId};
use registry::LeaseId;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep_until, timeout_at},
};

use crate::lease::Lease;
use crate::message::Message;
use crate::record::RecordStatus;
use crate::record::Want;
use crate::record::{Record, claims};
use crate::registrar::log_changes::ChangeLog;
use crate::registrar::own_keys::{KeyNews, OwnKeys};
use crate::registrar::record_set::{Conclusion, RecordSet};
use crate::registrar::restores::RestorePacer;
use crate::registrar::transaction::WriteRound;
use crate::retry;
use crate::retry::StoreError;
use crate::state::Event;

/// How often a taken id is looked at while its key can't be followed: a replacement takes over within about a second
/// after the old lease's end.
const OWNER_CHECK: Duration = Duration::from_secs(1);

/// The time that a refused write is tried again. A login that no longer holds is mended by the next attempt, and a member that is
/// asked too much recovers.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// What is wanted of each record, and under which lease.
#[derive(Clone, Debug, Default)]
struct Order {
    sequence: u64,
    lease: Option<LeaseId>,
    wants: Vec<(Arc<Record>, Want)>,
}

/// How far an order was carried out.
#[derive(Clone, Debug, Default)]
struct Progress {
    sequence: u64,
    /// All that could be written was.
    is_done: bool,
    written: Written,
    statuses: Vec<(Arc<Record>, RecordStatus)>,
    failure: Option<Arc<registry::Error>>,
}

/// An order that was carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    /// The revision of the last write: balancers that run it run all of ours.
    pub(crate) revision: i64,
    /// The records that stand under our lease and say what was ordered.
    pub(crate) ours: Vec<Arc<Record>>,
    /// The records that stood once and are no longer in the store: balancers may not know that yet.
    pub(crate) gone: Vec<Arc<Record>>,
    /// It isn't known at which revision one of those went.
    pub(crate) has_unknown_removal: bool,
    /// The number of records that could not be written as ordered.
    pub(crate) unwritten_count: usize,
}

impl Written {
    /// Whose records stand, and their names.
    pub(crate) fn our_names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().map(|record| record.service_and_id())
    }

    /// The same with those that are gone.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().chain(&self.gone).map(|record| record.service_and_id())
    }
}

/// What is known of the records, for looking at.
pub(crate) struct RecordStatuses(watch::Receiver<Progress>);

impl RecordStatuses {
    /// What is known of one; nothing before it was ordered.
    pub(crate) fn status_of(&self, service: &ServiceId, id: &UpstreamId) -> RecordStatus {
        let progress = self.0.borrow();
        let found = progress.statuses.iter().find(|(record, _)| record.service_and_id() == (service, id));
        found.map(|(_, stand)| stand.clone()).unwrap_or_default()
    }

    /// Why the last attempt to write failed, None if it didn't.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.0.borrow().failure.as_ref().map(ToString::to_string)
    }
}

/// What gives the orders. Clones give them to the same task.
#[derive(Clone)]
pub(crate) struct Registrar {
    orders: Arc<watch::Sender<Order>>,
    progress: watch::Receiver<Progress>,
}

impl Registrar {
    /// Starts the task. It reports when all of the `count` records stand for the first time, and when they are lost and
    /// stand again.
    pub(crate) fn start(lease: Lease, count: usize, reports: mpsc::Sender<Message>) -> Self {
        let (orders, received) = watch::channel(Order::default());
        let (publish, progress) = watch::channel(Progress::default());
        let orders = Arc::new(orders);
        tokio::spawn(forward_lease(lease.id.clone(), orders.clone()));
        let keeper = RegistrarTask {
            own_keys: OwnKeys::new(lease.client.clone()),
            lease,
            orders: received,
            progress: publish,
            messages: reports,
            expected_count: count,
            records: RecordSet::default(),
            change_log: ChangeLog::default(),
            restores: RestorePacer::default(),
            has_checked_claims: false,
            is_registered: false,
        };
        tokio::spawn(keeper.run());
        Self { orders, progress }
    }

    /// Wants this from now on, instead of what was wanted before. Returns its turn.
    pub(crate) fn set_wants(&self, wants: Vec<(Arc<Record>, Want)>) -> u64 {
        let mut turn = 0;
        self.orders.send_modify(|order| {
            turn = order.sequence + 1;
            *order = Order { sequence: turn, wants, lease: order.lease };
        });
        turn
    }

    /// The same of every record that is known, until it is so, or the time is over; a refusal is tried against for
    /// [`REFUSED`]. Where etcd refuses some of it, the rest counts; an error if it refuses all.
    pub(crate) async fn set_all_and_wait(&self, want: Want, deadline: Instant) -> Result<Written, StoreError> {
        let records: Vec<_> = self.orders.borrow().wants.iter().map(|(record, _)| (record.clone(), want)).collect();
        let turn = self.set_wants(records);
        let mut progress = self.progress.clone();
        let mut last = StoreError::OutOfTime;
        let mut refused: Option<Instant> = None;
        loop {
            let told = timeout_at(deadline, progress.wait_for(|progress| progress.sequence >= turn)).await;
            let Ok(Ok(now)) = told.map(|told| told.map(|progress| progress.clone())) else { return Err(last) };
            match now.failure {
                None if now.is_done => return Ok(now.written),
                None => {}
                Some(error) => {
                    refused = if error.is_unreachable() { None } else { Some(refused.unwrap_or_else(Instant::now)) };
                    last = StoreError::Store(error);
                }
            }
            let end = refused.map_or(deadline, |since| deadline.min(since + REFUSAL_LIMIT));
            if !matches!(timeout_at(end, progress.changed()).await, Ok(Ok(()))) {
                return if now.written.ours.is_empty() { Err(last) } else { Ok(now.written) };
            }
        }
    }

    /// What is known of the records, kept fresh.
    pub(crate) fn watch_statuses(&self) -> RecordStatuses {
        RecordStatuses(self.progress.clone())
    }

    /// What stands now.
    pub(crate) fn latest_written(&self) -> Written {
        self.progress.borrow().written.clone()
    }
}

/// A change of the lease is one more order.
async fn forward_lease(mut lease: watch::Receiver<Option<LeaseId>>, orders: Arc<watch::Sender<Order>>) {
    loop {
        let now = *lease.borrow_and_update();
        orders.send_modify(|order| order.lease = now);
        if lease.changed().await.is_err() {
            return;
        }
    }
}

struct RegistrarTask {
    lease: Lease,
    orders: watch::Receiver<Order>,
    progress: watch::Sender<Progress>,
    messages: mpsc::Sender<Message>,
    /// How many records there are to be.
    expected_count: usize,
    records: RecordSet,
    own_keys: OwnKeys,
    change_log: ChangeLog,
    restores: RestorePacer,
    /// It was looked who else names what our settings claim.
    has_checked_claims: bool,
    /// It was reported that all stand.
    is_registered: bool,
}

impl RegistrarTask {
    /// Ends with its last [`Registrar`]; until then, every round is followed by a bounded wait or by news.
    async fn run(mut self) {
        let mut delays = retry::store_delays();
        loop {
            let order = self.orders.borrow_and_update().clone();
            if self.records.set_wants(order.lease, &order.wants) {
                tracing::warn!("the lease has ended, and the records with it; registering again");
                self.has_checked_claims = false;
                self.report_loss().await;
            }
            self.own_keys.follow_keys(order.wants.iter().map(|(record, _)| record.key()));
            self.withhold_claimed_settings(&order).await;
            let round = transaction::write_round(&self.lease.client, &mut self.records).await;
            self.change_log.log_round(&round);
            if round.failure.as_ref().is_some_and(registry::Error::is_lease_not_found) {
                self.lease.renew_now.notify_one();
            }
            let delay = if round.failure.is_some() || round.contended {
                delays.next()
            } else {
                delays = retry::store_delays();
                let is_blind = round.taken.iter().any(|(record, _)| !self.own_keys.is_following(&record.key()));
                is_blind.then_some(OWNER_CHECK)
            };
            self.publish_round(order.sequence, round).await;
            if self.wait_for_work(order.sequence, delay).await.is_err() {
                return;
            }
        }
    }

    /// Withholds the settings that would claim what another service's keys name, once for each lease.
    async fn withhold_claimed_settings(&mut self, order: &Order) {
        if order.lease.is_none() || self.has_checked_claims {
            return;
        }
        let records: Vec<_> = order.wants.iter().map(|(record, _)| record.clone()).collect();
        let withheld = claims::find_withheld_settings(&self.lease.client, &records).await;
        self.has_checked_claims = withheld.is_some() && !records.is_empty();
        self.records.withhold_settings(withheld.unwrap_or_default());
    }

    /// Waits until there is something to do: a new order, the end of the delay, or another hand at one of our keys. An
    /// error if the last registrar is gone.
    async fn wait_for_work(&mut self, turn: u64, delay: Option<Duration>) -> Result<(), watch::error::RecvError> {
        let mut due = delay.map(|delay| Instant::now() + delay);
        loop {
            tokio::select! {
                changed = self.orders.changed() => return changed,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return Ok(()),
                news = self.own_keys.next_news() => if let Some(pause) = self.apply_news(turn, &news).await {
                    let earliest = Instant::now() + pause;
                    due = Some(due.map_or(earliest, |due| due.min(earliest)));
                }
            }
        }
    }

    /// Takes news of our keys in. Returns the pause before the next round, where one follows from it.
    async fn apply_news(&mut self, turn: u64, news: &KeyNews) -> Option<Duration> {
        let mut pause: Option<Duration> = None;
        for (key, seen) in news.observations() {
            let next = match self.records.observe_key(key, seen) {
                Conclusion::Nothing => continue,
                Conclusion::MayBeFree => Duration::ZERO,
                Conclusion::Lost(loss) => {
                    tracing::debug!(key, ?loss, "another hand was at the record");
                    // What was deleted may have gone with its lease: then that is lost, and no hand was there.
                    self.lease.renew_now.notify_one();
                    self.restores.next_pause(Instant::now().into_std())
                }
            };
            pause = Some(pause.map_or(next, |pause| pause.max(next)));
        }
        pause?;
        self.publish_current(turn);
        if self.is_registered && !self.records.is_complete() {
            self.report_loss().await;
        }
        pause
    }

    /// Tells the loop that not all records stand any more.
    async fn report_loss(&mut self) {
        self.is_registered = false;
        let _ = self.messages.send(Message::Event(Event::RecordsLost)).await;
    }

    /// Shows what is known now, where no round has been.
    fn publish_current(&self, turn: u64) {
        let (reached, stands) = (self.collect_written(), self.records.record_statuses());
        self.progress.send_modify(|progress| {
            *progress = Progress {
                sequence: turn,
                is_done: false,
                written: reached,
                statuses: stands,
                failure: progress.failure.clone(),
            };
        });
    }

    fn collect_written(&self) -> Written {
        Written {
            revision: self.records.last_revision(),
            ours: self.records.present_records(),
            gone: self.records.removed_records(),
            has_unknown_removal: self.records.has_unknown_removal(),
            unwritten_count: self.records.plan_parts().iter().map(Vec::len).sum(),
        }
    }

    async fn publish_round(&mut self, turn: u64, round: WriteRound) {
        let (reached, stands) = (self.collect_written(), self.records.record_statuses());
        let (is_done, failure) = (!round.contended, round.failure.map(Arc::new));
        self.progress.send_replace(Progress { sequence: turn, is_done, written: reached, statuses: stands, failure });
        let is_whole = self.orders.borrow().wants.len() == self.expected_count && self.records.is_complete();
        if is_whole && !std::mem::replace(&mut self.is_registered, true) {
            let _ = self.messages.send(Message::Event(Event::Registered)).await;
        }
    }
}
