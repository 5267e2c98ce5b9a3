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
use crate::registrar::log_changes::Said;
use crate::registrar::own_keys::{News, OwnKeys};
use crate::registrar::record_set::{Group, Sight};
use crate::registrar::restores::Restores;
use crate::registrar::transaction::Round;
use crate::retry;
use crate::retry::StoreError;
use crate::state::Event;

/// How often a taken id is looked at while its key can't be followed: a replacement takes over within about a second
/// after the old lease's end.
const OWNER_CHECK: Duration = Duration::from_secs(1);

/// The time that a refused write is tried again. A login that no longer holds is mended by the next attempt, and a member that is
/// asked too much recovers.
const REFUSED: Duration = Duration::from_secs(1);

/// What is wanted of each record, and under which lease.
#[derive(Clone, Debug, Default)]
struct Order {
    turn: u64,
    lease: Option<LeaseId>,
    wants: Vec<(Arc<Record>, Want)>,
}

/// How far an order was carried out.
#[derive(Clone, Debug, Default)]
struct Progress {
    turn: u64,
    /// All that could be written was.
    is_done: bool,
    reached: Written,
    stands: Vec<(Arc<Record>, RecordStatus)>,
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
    pub(crate) has_gone_unseen: bool,
    /// The number of records that could not be written as ordered.
    pub(crate) unwritten: usize,
}

impl Written {
    /// Whose records stand, and their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().map(|record| record.name())
    }

    /// The same with those that are gone.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().chain(&self.gone).map(|record| record.name())
    }
}

/// What is known of the records, for looking at.
pub(crate) struct Stands(watch::Receiver<Progress>);

impl Stands {
    /// What is known of one; nothing before it was ordered.
    pub(crate) fn of(&self, service: &ServiceId, id: &UpstreamId) -> RecordStatus {
        let progress = self.0.borrow();
        let found = progress.stands.iter().find(|(record, _)| record.name() == (service, id));
        found.map(|(_, stand)| stand.clone()).unwrap_or_default()
    }

    /// Why the last attempt to write failed, None if it didn't.
    pub(crate) fn failure(&self) -> Option<String> {
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
        tokio::spawn(pass_on(lease.held.clone(), orders.clone()));
        let keeper = Keeper {
            own_keys: OwnKeys::new(lease.client.clone()),
            lease,
            orders: received,
            publish,
            reports,
            count,
            group: Group::default(),
            said: Said::default(),
            restores: Restores::default(),
            is_looked: false,
            stands: false,
        };
        tokio::spawn(keeper.keep());
        Self { orders, progress }
    }

    /// Wants this from now on, instead of what was wanted before. Returns its turn.
    pub(crate) fn order(&self, wants: Vec<(Arc<Record>, Want)>) -> u64 {
        let mut turn = 0;
        self.orders.send_modify(|order| {
            turn = order.turn + 1;
            *order = Order { turn, wants, lease: order.lease };
        });
        turn
    }

    /// The same of every record that is known, until it is so, or the time is over; a refusal is tried against for
    /// [`REFUSED`]. Where etcd refuses some of it, the rest counts; an error if it refuses all.
    pub(crate) async fn reach(&self, want: Want, deadline: Instant) -> Result<Written, StoreError> {
        let records: Vec<_> = self.orders.borrow().wants.iter().map(|(record, _)| (record.clone(), want)).collect();
        let turn = self.order(records);
        let mut progress = self.progress.clone();
        let mut last = StoreError::OutOfTime;
        let mut refused: Option<Instant> = None;
        loop {
            let told = timeout_at(deadline, progress.wait_for(|progress| progress.turn >= turn)).await;
            let Ok(Ok(now)) = told.map(|told| told.map(|progress| progress.clone())) else { return Err(last) };
            match now.failure {
                None if now.is_done => return Ok(now.reached),
                None => {}
                Some(error) => {
                    refused = if error.is_unreachable() { None } else { Some(refused.unwrap_or_else(Instant::now)) };
                    last = StoreError::Store(error);
                }
            }
            let end = refused.map_or(deadline, |since| deadline.min(since + REFUSED));
            if !matches!(timeout_at(end, progress.changed()).await, Ok(Ok(()))) {
                return if now.reached.ours.is_empty() { Err(last) } else { Ok(now.reached) };
            }
        }
    }

    /// What is known of the records, kept fresh.
    pub(crate) fn stands(&self) -> Stands {
        Stands(self.progress.clone())
    }

    /// What stands now.
    pub(crate) fn reached(&self) -> Written {
        self.progress.borrow().reached.clone()
    }
}

/// A change of the lease is one more order.
async fn pass_on(mut lease: watch::Receiver<Option<LeaseId>>, orders: Arc<watch::Sender<Order>>) {
    loop {
        let now = *lease.borrow_and_update();
        orders.send_modify(|order| order.lease = now);
        if lease.changed().await.is_err() {
            return;
        }
    }
}

struct Keeper {
    lease: Lease,
    orders: watch::Receiver<Order>,
    publish: watch::Sender<Progress>,
    reports: mpsc::Sender<Message>,
    /// How many records there are to be.
    count: usize,
    group: Group,
    own_keys: OwnKeys,
    said: Said,
    restores: Restores,
    /// It was looked who else names what our settings claim.
    is_looked: bool,
    /// It was reported that all stand.
    stands: bool,
}

impl Keeper {
    /// Ends with its last [`Registrar`]; until then, every round is followed by a bounded wait or by news.
    async fn keep(mut self) {
        let mut delays = retry::store_delays();
        loop {
            let order = self.orders.borrow_and_update().clone();
            if self.group.set(order.lease, &order.wants) {
                tracing::warn!("the lease has ended, and the records with it; registering again");
                self.is_looked = false;
                self.report_loss().await;
            }
            self.own_keys.follow(order.wants.iter().map(|(record, _)| record.key()));
            self.look_for_claims(&order).await;
            let round = transaction::round(&self.lease.client, &mut self.group).await;
            self.said.say(&round);
            if round.failure.as_ref().is_some_and(registry::Error::is_lease_not_found) {
                self.lease.doubt.notify_one();
            }
            let delay = if round.failure.is_some() || round.contended {
                delays.next()
            } else {
                delays = retry::store_delays();
                let is_blind = round.taken.iter().any(|(record, _)| !self.own_keys.sees(&record.key()));
                is_blind.then_some(OWNER_CHECK)
            };
            self.tell(order.turn, round).await;
            if self.wait(order.turn, delay).await.is_err() {
                return;
            }
        }
    }

    /// Withholds the settings that would claim what another service's keys name, once for each lease.
    async fn look_for_claims(&mut self, order: &Order) {
        if order.lease.is_none() || self.is_looked {
            return;
        }
        let records: Vec<_> = order.wants.iter().map(|(record, _)| record.clone()).collect();
        let withheld = claims::withheld(&self.lease.client, &records).await;
        self.is_looked = withheld.is_some() && !records.is_empty();
        self.group.withhold(withheld.unwrap_or_default());
    }

    /// Waits until there is something to do: a new order, the end of the delay, or another hand at one of our keys. An
    /// error if the last registrar is gone.
    async fn wait(&mut self, turn: u64, delay: Option<Duration>) -> Result<(), watch::error::RecvError> {
        let mut due = delay.map(|delay| Instant::now() + delay);
        loop {
            tokio::select! {
                changed = self.orders.changed() => return changed,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return Ok(()),
                news = self.own_keys.next() => if let Some(pause) = self.look_at(turn, &news).await {
                    let earliest = Instant::now() + pause;
                    due = Some(due.map_or(earliest, |due| due.min(earliest)));
                }
            }
        }
    }

    /// Takes news of our keys in. Returns the pause before the next round, where one follows from it.
    async fn look_at(&mut self, turn: u64, news: &News) -> Option<Duration> {
        let mut pause: Option<Duration> = None;
        for (key, seen) in news.seen() {
            let next = match self.group.see(key, seen) {
                Sight::Nothing => continue,
                Sight::MayBeFree => Duration::ZERO,
                Sight::Lost(loss) => {
                    tracing::debug!(key, ?loss, "another hand was at the record");
                    // What was deleted may have gone with its lease: then that is lost, and no hand was there.
                    self.lease.doubt.notify_one();
                    self.restores.pause(Instant::now().into_std())
                }
            };
            pause = Some(pause.map_or(next, |pause| pause.max(next)));
        }
        pause?;
        self.publish_now(turn);
        if self.stands && !self.group.stands() {
            self.report_loss().await;
        }
        pause
    }

    /// Tells the loop that not all records stand any more.
    async fn report_loss(&mut self) {
        self.stands = false;
        let _ = self.reports.send(Message::Event(Event::Lost)).await;
    }

    /// Shows what is known now, where no round has been.
    fn publish_now(&self, turn: u64) {
        let (reached, stands) = (self.reached(), self.group.standing());
        self.publish.send_modify(|progress| {
            *progress = Progress { turn, is_done: false, reached, stands, failure: progress.failure.clone() };
        });
    }

    fn reached(&self) -> Written {
        Written {
            revision: self.group.revision(),
            ours: self.group.ours(),
            gone: self.group.gone(),
            has_gone_unseen: self.group.has_gone_unseen(),
            unwritten: self.group.open().iter().map(Vec::len).sum(),
        }
    }

    async fn tell(&mut self, turn: u64, round: Round) {
        let (reached, stands) = (self.reached(), self.group.standing());
        let (is_done, failure) = (!round.contended, round.failure.map(Arc::new));
        self.publish.send_replace(Progress { turn, is_done, reached, stands, failure });
        let is_whole = self.orders.borrow().wants.len() == self.count && self.group.stands();
        if is_whole && !std::mem::replace(&mut self.stands, true) {
            let _ = self.reports.send(Message::Event(Event::Registered)).await;
        }
    }
}
