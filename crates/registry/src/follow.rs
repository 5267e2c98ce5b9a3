//! Following the store: list, watch from there, resume or list again, for ever.
//!
//! `revisions` decides what a message means and where a watch may resume, `backoff` how long to wait. This module carries
//! the decisions out.

mod resync;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use discovery::{Change, Snapshot};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backoff::EndpointDelays;
use crate::classification::Failure;
use crate::client::Client;
use crate::entry::{KeepEntry, Range};
use crate::error::{Error, Operation};
use crate::follow::resync::Resync;
use crate::revisions::{Decision, Position, ResyncReason, Revisions, decide_resume, position_of_header};
use crate::stream::messages::MAX_SILENCE;
use crate::watch::{Watch, WatchEnd};

/// The events that wait for a busy consumer. etcd keeps the rest.
const BUFFER: usize = 16;

/// The read before a watch resumes. An election takes one to two seconds.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// The options of [`Client::follow_folder`] and [`Client::follow_key`].
#[derive(Clone, Copy, Debug)]
pub struct FollowOptions {
    /// The folder, relative to the prefix: `balancers`. The empty folder has every key.
    pub folder: &'static str,
    /// The interval in which all keys are listed again, in case that the watch missed something.
    pub resync_interval: Duration,
    /// The silence after which etcd is asked for a sign of life. If none comes, the watch is given up. A larger value saves
    /// etcd messages. It is safe if the program notices a dead connection in another way.
    pub max_silence: Duration,
    /// The part of each entry that a listing keeps. Changes come whole.
    pub keep: KeepEntry,
    /// True if the watch shares one stream with the client's other watches of this kind. etcd pays some 50 kB for each
    /// stream. A consumer that is slow for long makes the watch begin anew instead of slowing it down, so this suits
    /// ranges with few changes.
    pub shares_stream: bool,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            folder: "",
            resync_interval: Duration::from_secs(300),
            max_silence: MAX_SILENCE,
            keep: Some,
            shares_stream: false,
        }
    }
}

/// An event of a follower. Applied in order, the events give the store's state at each event's revision.
#[derive(Debug)]
pub enum Event {
    /// All keys: at first, after every [`FollowOptions::resync_interval`], after a compaction, and after the store was
    /// replaced by another one or an older one. Cluster, revision and raft term tell.
    Snapshot(Snapshot),
    /// The changes of whole revisions, in order, so that the keys of one transaction come together. Without changes it says
    /// that the connection is back and nothing was missed.
    Changes {
        /// The newest revision among the changes.
        revision: i64,
        /// The changes of one or several revisions.
        changes: Vec<Change>,
    },
    /// The store can't be followed. The event comes again with each failed attempt, until a snapshot or changes follow.
    Disconnected {
        /// The error of the last attempt.
        error: Error,
        /// The time of the last message or listing.
        since: Instant,
    },
}

impl Client {
    /// Follows all keys below [`FollowOptions::folder`] until `shutdown`, or until the receiver is dropped. Every change is
    /// delivered exactly once, over all failures of etcd. A slow consumer slows the follower down.
    pub fn follow_folder(&self, options: FollowOptions, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        let range = Range::of_folder(&self.config().prefix, options.folder);
        self.follow_range(range, options, shutdown)
    }

    /// Follows all keys from the first folder to the end of the last one, in the order of their names, as
    /// [`Client::follow_folder`] follows a folder. One watch gives both folders at one revision. [`FollowOptions::folder`] is
    /// ignored. A role needs the permission to read the whole range.
    pub fn follow_folders(
        &self,
        first: &str,
        last: &str,
        options: FollowOptions,
        shutdown: CancellationToken,
    ) -> mpsc::Receiver<Event> {
        self.follow_range(Range::of_folders(&self.config().prefix, first, last), options, shutdown)
    }

    /// Follows one key, relative to the prefix, as [`Client::follow_folder`] follows a folder. [`FollowOptions::folder`] is
    /// ignored. A role needs only the permission to read that key.
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

/// The end of a watch.
enum SessionEnd {
    /// The known keys can't be continued.
    Resync(ResyncReason),
    /// etcd ended the watch, or can't be reached.
    Failed(Error),
    /// The watch lost its place on the shared stream. Another one resumes at its position.
    LostPlace,
    /// The receiver was dropped.
    ReceiverClosed,
}

impl From<WatchEnd> for SessionEnd {
    fn from(end: WatchEnd) -> Self {
        match end {
            WatchEnd::Failed(failure) => (*failure).into(),
            WatchEnd::LostPlace(_) => Self::LostPlace,
        }
    }
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
    /// `None` if everything must be listed.
    position: Option<Position>,
    /// The revision at which a watch was last resumed while the store was ahead.
    resumed_behind_at: Option<i64>,
    listed_at: Instant,
    last_contact: Instant,
    is_connected: bool,
    delays: EndpointDelays,
}

impl Follower {
    fn new(client: Client, range: Range, options: FollowOptions, events: mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        let delays = EndpointDelays::new(client.config().endpoints().len());
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
            delays,
        }
    }

    async fn run(mut self) {
        loop {
            let delay = match self.run_session().await {
                SessionEnd::ReceiverClosed => return,
                SessionEnd::LostPlace => self.delays.next_delay_but_first(),
                SessionEnd::Resync(reason) => {
                    tracing::warn!(%reason, "listing all keys again");
                    self.position = None;
                    self.delays.next_delay_but_first()
                }
                SessionEnd::Failed(error) => {
                    self.is_connected = false;
                    if self.events.send(Event::Disconnected { error, since: self.last_contact }).await.is_err() {
                        return;
                    }
                    self.delays.next_delay()
                }
            };
            sleep(delay).await;
        }
    }

    /// Runs from the listing, or from the last session's position, to the end of one watch.
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
        let mut watch = self.open_watch(position).await?;
        let mut revisions = Revisions::new(self.client.config().prefix.clone(), position);
        let mut resync = self.schedule_resync(position);
        loop {
            let message = tokio::select! {
                message = watch.next_message() => message?,
                snapshot = resync.await_snapshot() => {
                    let snapshot = snapshot.map_err(SessionEnd::Failed)?;
                    let snapshot = resync.catch_up_snapshot(snapshot).map_err(SessionEnd::Resync)?;
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
                // The delays go on: etcd may create a watch and end it before it delivers anything
                // (`ResyncReason::Stuck`).
                Decision::Created => self.on_watch_created(position.revision).await?,
                Decision::Alive => self.delays.reset(),
                Decision::Deliver { revision, changes } => {
                    self.delays.reset();
                    resync.record_changes(&changes);
                    self.send_event(Event::Changes { revision, changes }).await?;
                    position.revision = revision;
                    self.position = Some(position);
                }
                Decision::Resync(reason) => return Err(SessionEnd::Resync(reason)),
                Decision::Canceled(reason) => {
                    // etcd reports an expired token as a missing permission. The listing finds out which it is.
                    self.position = None;
                    return Err(watch.cancel_failure(&reason).into());
                }
            }
        }
    }

    async fn open_watch(&self, position: Position) -> Result<Watch, Failure> {
        // A watch delivers the revision that it begins at, and the listing has this one already.
        let (client, revision, max_silence) = (self.client.clone(), position.revision + 1, self.options.max_silence);
        Watch::open(client, &self.range, revision, max_silence, self.options.shares_stream).await
    }

    async fn list_all_keys(&mut self) -> Result<Position, SessionEnd> {
        let snapshot = self.client.read_range(&self.range, self.options.keep).await.map_err(SessionEnd::Failed)?;
        let position = Position::from_snapshot(&snapshot);
        self.listed_at = Instant::now();
        self.last_contact = self.listed_at;
        self.is_connected = true;
        self.send_event(Event::Snapshot(snapshot)).await?;
        Ok(position)
    }

    /// Checks that the store is still the known one, and that a watch may resume at its position.
    async fn check_position(&mut self, position: Position) -> Result<Position, SessionEnd> {
        // A linearizable read, because a member's own revision may lag behind.
        let key = self.range.start();
        let operation = Operation::Get(key.to_owned());
        let answer = self.client.call_once(&operation, CHECK_TIMEOUT, |mut connection| {
            let key = key.to_owned();
            async move { connection.kv.get(key, None).await }
        });
        let now = position_of_header(&answer.await?.0.header.unwrap_or_default());
        decide_resume(position, now, &mut self.resumed_behind_at).map_err(SessionEnd::Resync)
    }

    /// Tells the consumer that the connection is back, if it was lost.
    async fn on_watch_created(&mut self, revision: i64) -> Result<(), SessionEnd> {
        if std::mem::replace(&mut self.is_connected, true) {
            return Ok(());
        }
        self.send_event(Event::Changes { revision, changes: Vec::new() }).await
    }

    fn schedule_resync(&self, position: Position) -> Resync {
        // From the last listing, also over several sessions: a watch that breaks often must not put it off for ever.
        let delay = self.options.resync_interval.saturating_sub(self.listed_at.elapsed());
        Resync::start_after(self.client.clone(), self.range.clone(), self.options.keep, delay, position)
    }

    async fn send_event(&self, event: Event) -> Result<(), SessionEnd> {
        self.events.send(event).await.map_err(|_| SessionEnd::ReceiverClosed)
    }
}
