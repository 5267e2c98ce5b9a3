//! Following the store: list, watch from there, resume or list anew, for ever. `revisions` decides what a message
//! means, `retry` how long to wait; this carries it out.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use discovery::{Change, Snapshot};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::classification::Failure;
use crate::client::Client;
use crate::connect::Connection;
use crate::entry::Range;
use crate::error::{Error, Operation};
use crate::resync::Resync;
use crate::retry::Retry;
use crate::revisions::{Decision, Position, ResyncReason, Revisions, check_same_store, position_of_header};
use crate::watch::{MAX_SILENCE, Watch};

/// Events kept for a consumer that is busy; beyond that etcd keeps them.
const BUFFER: usize = 16;

/// The read before a watch is resumed. An election takes one to two seconds.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// How to follow the store.
#[derive(Clone, Copy, Debug)]
pub struct FollowOptions {
    /// The folder that is followed, relative to the prefix: `balancers`. "" is every key.
    pub folder: &'static str,
    /// All keys are listed anew every so often, in case that something was missed nevertheless.
    pub resync_interval: Duration,
    /// The silence after which etcd is asked for a sign of life, and the watch is given up if none comes. Raise it where
    /// something else notices a dead connection soon enough: each question costs etcd a message.
    pub max_silence: Duration,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self { folder: "", resync_interval: Duration::from_secs(300), max_silence: MAX_SILENCE }
    }
}

/// What a follower is told. Applied in order, the events give the store's state at each event's revision.
#[derive(Debug)]
pub enum Event {
    /// Everything anew: at first, every [`Follow::resync`], after a compaction, and when the store is another one or
    /// an older one (compare cluster, revision and raft term).
    Snapshot(Snapshot),
    /// What has changed, in order, whole revisions only: the keys of one transaction come together. Without changes
    /// it says that the connection is back and nothing was missed.
    Changes {
        /// The newest revision among the changes.
        revision: i64,
        /// The changes of one or several revisions.
        changes: Vec<Change>,
    },
    /// The store can't be followed for now; comes again with each failed attempt. A snapshot or changes follow when
    /// it is back.
    Disconnected {
        /// Why the last attempt failed.
        error: Error,
        /// When the store was last heard of.
        since: Instant,
    },
}

impl Client {
    /// Follows all keys below [`Follow::below`] until `shutdown`, or until the receiver is dropped. No change is missed and
    /// none comes twice, whatever happens to etcd. A slow consumer slows it down.
    pub fn follow_folder(&self, options: FollowOptions, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        let range = Range::of_folder(&self.config().prefix, options.folder);
        self.follow_range(range, options, shutdown)
    }

    /// Follows one key, relative to the prefix, as [`Client::follow`] follows a folder; [`Follow::below`] is not read. A
    /// role needs no more than the permission to read that key.
    pub fn follow_key(&self, key: &str, options: FollowOptions, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        self.follow_range(Range::of_key(&self.config().prefix, key), options, shutdown)
    }

    fn follow_range(&self, range: Range, options: FollowOptions, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        let (events, received) = mpsc::channel(BUFFER);
        let follower = Follower::new(self.clone(), range, options, events.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = events.closed() => {}
                () = follower.run() => {}
            }
        });
        received
    }
}

/// Why a watch came to its end.
enum SessionEnd {
    /// What is known can't be continued.
    Resync(ResyncReason),
    /// etcd ended it, or can't be reached.
    Failed(Error),
    /// Nobody listens any more.
    ReceiverClosed,
}

impl From<Failure> for SessionEnd {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.error)
    }
}

struct Follower {
    client: Client,
    range: Range,
    options: FollowOptions,
    events: mpsc::Sender<Event>,
    /// None when everything must be listed.
    position: Option<Position>,
    /// The revision that a watch was last resumed at while the store was ahead of it.
    resumed_behind_at: Option<i64>,
    listed_at: Instant,
    last_contact: Instant,
    is_connected: bool,
    retry: Retry,
}

impl Follower {
    fn new(client: Client, range: Range, options: FollowOptions, events: mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        let retry = Retry::new(client.config().endpoints().len());
        Self {
            client,
            range,
            options,
            events,
            position: None,
            resumed_behind_at: None,
            listed_at: now,
            last_contact: now,
            is_connected: true,
            retry,
        }
    }

    async fn run(mut self) {
        loop {
            let delay = match self.run_session().await {
                SessionEnd::ReceiverClosed => return,
                SessionEnd::Resync(why) => {
                    tracing::warn!(%why, "listing all keys anew");
                    self.position = None;
                    self.retry.next_delay_but_first()
                }
                SessionEnd::Failed(error) => {
                    self.is_connected = false;
                    if self.events.send(Event::Disconnected { error, since: self.last_contact }).await.is_err() {
                        return;
                    }
                    self.retry.next_delay()
                }
            };
            sleep(delay).await;
        }
    }

    /// From the listing, or from where the last session stood, to the end of one watch.
    async fn run_session(&mut self) -> SessionEnd {
        let Err(end) = self.try_session().await;
        end
    }

    async fn try_session(&mut self) -> Result<Infallible, SessionEnd> {
        let mut position = match self.position {
            Some(position) => self.check_position(position).await?,
            None => self.list_all_keys().await?,
        };
        self.position = Some(position);
        let mut watch =
            Watch::open(self.client.clone(), &self.range, position.revision + 1, self.options.max_silence).await?;
        let mut revisions = Revisions::new(self.client.config().prefix.clone(), position);
        let mut resync = self.schedule_resync(position);
        loop {
            let message = tokio::select! {
                message = watch.next_message() => message?,
                snapshot = resync.await_snapshot() => {
                    let snapshot = resync.catch_up_snapshot(snapshot.map_err(SessionEnd::Failed)?).map_err(SessionEnd::Resync)?;
                    position = Position::from_snapshot(&snapshot);
                    self.position = Some(position);
                    revisions.skip_to(position.revision);
                    self.listed_at = Instant::now();
                    resync = self.schedule_resync(position);
                    self.send_event(Event::Snapshot(snapshot)).await?;
                    continue;
                }
            };
            self.last_contact = Instant::now();
            match revisions.accept_message(message) {
                Decision::Created => self.on_watch_created(position.revision).await?,
                Decision::Alive => self.retry.reset(),
                Decision::Deliver { revision, changes } => {
                    self.retry.reset();
                    resync.record_changes(&changes);
                    self.send_event(Event::Changes { revision, changes }).await?;
                    position.revision = revision;
                    self.position = Some(position);
                }
                Decision::Resync(why) => return Err(SessionEnd::Resync(why)),
                Decision::Canceled(reason) => {
                    // A token that has expired is told as a missing permission; the listing finds out which it is.
                    self.position = None;
                    return Err(watch.cancel_failure(&reason).into());
                }
            }
        }
    }

    async fn list_all_keys(&mut self) -> Result<Position, SessionEnd> {
        let snapshot = self.client.read_range(&self.range).await.map_err(SessionEnd::Failed)?;
        let position = Position::from_snapshot(&snapshot);
        self.listed_at = Instant::now();
        self.last_contact = self.listed_at;
        self.is_connected = true;
        self.send_event(Event::Snapshot(snapshot)).await?;
        Ok(position)
    }

    /// Asks whether the store is still the one known, before a watch is resumed there; and whether it can be: it is
    /// resumed once at the same revision, if there is more to come.
    async fn check_position(&mut self, position: Position) -> Result<Position, SessionEnd> {
        let run = |mut connection: Connection| {
            let key = self.range.start().to_owned();
            async move { connection.kv.get(key, None).await }
        };
        let answer = self.client.call_once(&Operation::Get(self.range.start().to_owned()), CHECK_TIMEOUT, run).await?;
        let now = position_of_header(&answer.0.header.unwrap_or_default());
        let position = check_same_store(position, now).map_err(SessionEnd::Resync)?;
        // etcd says nothing, not even that it lives, while it puts the events of one revision together: tens of
        // thousands of deletions with their previous values take longer than a silence may last. A listing has pages.
        let stuck = now.revision > position.revision
            && self.resumed_behind_at.replace(position.revision) == Some(position.revision);
        if stuck { Err(SessionEnd::Resync(ResyncReason::Stuck)) } else { Ok(position) }
    }

    /// The watch stands: says so if it was lost before.
    async fn on_watch_created(&mut self, revision: i64) -> Result<(), SessionEnd> {
        match std::mem::replace(&mut self.is_connected, true) {
            true => Ok(()),
            false => self.send_event(Event::Changes { revision, changes: Vec::new() }).await,
        }
    }

    fn schedule_resync(&self, position: Position) -> Resync {
        let delay = self.options.resync_interval.saturating_sub(self.listed_at.elapsed());
        Resync::start_after(self.client.clone(), self.range.clone(), delay, position)
    }

    async fn send_event(&self, event: Event) -> Result<(), SessionEnd> {
        self.events.send(event).await.map_err(|_| SessionEnd::ReceiverClosed)
    }
}
