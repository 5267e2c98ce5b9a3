//! The records in the store: put them there, keep them there, change them while they are ours, take them out. One task
//! writes; what is wanted is an order that it is given, and how far it came is what it publishes.

use std::sync::Arc;

use discovery::{ServiceId, UpstreamId};
use registry::{Client, LeaseId};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, timeout, timeout_at},
};

use crate::{
    claims,
    group::{Group, Want},
    record::Record,
    report::Report,
    retry::{self, StoreError},
    said::Said,
    standing::Stand,
    state::Event,
    writer::{self, Round},
};

/// How often a taken id is looked at: a replacement takes over within about a second after the old lease's end.
const OWNER_CHECK: Duration = Duration::from_secs(1);

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
    reached: Reached,
    stands: Vec<(Arc<Record>, Stand)>,
    failure: Option<Arc<registry::Error>>,
}

/// An order that was carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached {
    /// The revision of the last write: balancers that run it run all of ours.
    pub(crate) revision: i64,
    /// The records that stand under our lease and say what was ordered.
    pub(crate) ours: Vec<Arc<Record>>,
}

impl Reached {
    /// Whose records they are, and their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&ServiceId, &UpstreamId)> {
        self.ours.iter().map(|record| record.name())
    }
}

/// What is known of the records, for looking at.
pub(crate) struct Stands(watch::Receiver<Progress>);

impl Stands {
    /// What is known of one; nothing before it was ordered.
    pub(crate) fn of(&self, service: &ServiceId, id: &UpstreamId) -> Stand {
        let progress = self.0.borrow();
        let found = progress.stands.iter().find(|(record, _)| record.name() == (service, id));
        found.map(|(_, stand)| *stand).unwrap_or_default()
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
    pub(crate) fn start(
        client: Client,
        lease: watch::Receiver<Option<LeaseId>>,
        count: usize,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (orders, received) = watch::channel(Order::default());
        let (publish, progress) = watch::channel(Progress::default());
        let (group, said) = (Group::default(), Said::default());
        let keeper = Keeper {
            client,
            orders: received,
            publish,
            reports,
            count,
            group,
            said,
            revision: 0,
            is_looked: false,
            stands: false,
        };
        tokio::spawn(keeper.keep());
        let orders = Arc::new(orders);
        tokio::spawn(pass_on(lease, orders.clone()));
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

    /// The same of every record that is known, until it is so, or the time is over. Where etcd refuses some of it, the
    /// rest counts; an error if it refuses all.
    pub(crate) async fn reach(&self, want: Want, deadline: Instant) -> Result<Reached, StoreError> {
        let records: Vec<_> = self.orders.borrow().wants.iter().map(|(record, _)| (record.clone(), want)).collect();
        let turn = self.order(records);
        let mut progress = self.progress.clone();
        let mut last = StoreError::OutOfTime;
        loop {
            let told = timeout_at(deadline, progress.wait_for(|progress| progress.turn >= turn)).await;
            let Ok(Ok(now)) = told.map(|told| told.map(|progress| progress.clone())) else { return Err(last) };
            match now.failure {
                None if now.is_done => return Ok(now.reached),
                None => {}
                Some(error) if error.is_unreachable() => last = StoreError::Store(error),
                Some(_) if !now.reached.ours.is_empty() => return Ok(now.reached),
                Some(error) => return Err(StoreError::Store(error)),
            }
            if !matches!(timeout_at(deadline, progress.changed()).await, Ok(Ok(()))) {
                return Err(last);
            }
        }
    }

    /// What is known of the records, kept fresh.
    pub(crate) fn stands(&self) -> Stands {
        Stands(self.progress.clone())
    }

    /// What stands now.
    pub(crate) fn reached(&self) -> Reached {
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
    client: Client,
    orders: watch::Receiver<Order>,
    publish: watch::Sender<Progress>,
    reports: mpsc::Sender<Report>,
    /// How many records there are to be.
    count: usize,
    group: Group,
    said: Said,
    revision: i64,
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
                self.lost().await;
            }
            if order.lease.is_some() && !self.is_looked {
                let records: Vec<_> = order.wants.iter().map(|(record, _)| record.clone()).collect();
                let withheld = claims::withheld(&self.client, &records).await;
                self.is_looked = withheld.is_some() && !records.is_empty();
                self.group.withhold(withheld.unwrap_or_default());
            }
            let round = writer::round(&self.client, &mut self.group).await;
            self.said.say(&round);
            let delay = if round.failure.is_some() || round.contended {
                delays.next()
            } else {
                delays = retry::store_delays();
                (!round.taken.is_empty()).then_some(OWNER_CHECK)
            };
            self.tell(order.turn, round).await;
            let news = match delay {
                None => self.orders.changed().await,
                Some(delay) => timeout(delay, self.orders.changed()).await.unwrap_or(Ok(())),
            };
            if news.is_err() {
                return;
            }
        }
    }

    async fn lost(&mut self) {
        tracing::warn!("the lease has ended, and the records with it; registering again");
        (self.stands, self.is_looked) = (false, false);
        let _ = self.reports.send(Report::Event(Event::Lost)).await;
    }

    async fn tell(&mut self, turn: u64, round: Round) {
        self.revision = self.revision.max(round.revision);
        let reached = Reached { revision: self.revision, ours: self.group.ours() };
        let (is_done, failure) = (!round.contended, round.failure.map(Arc::new));
        let stands = self.group.standing();
        self.publish.send_replace(Progress { turn, is_done, reached, stands, failure });
        let is_whole = self.orders.borrow().wants.len() == self.count && self.group.stands();
        if is_whole && !std::mem::replace(&mut self.stands, true) {
            let _ = self.reports.send(Report::Event(Event::Registered)).await;
        }
    }
}
