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
use crate::error::{Act, Error};
use crate::resync::Resync;
use crate::retry::Retry;
use crate::revisions::{Position, ResyncReason, Revisions, Verdict};
use crate::watch::{QUIET, Watch};

/// Events kept for a consumer that is busy; beyond that etcd keeps them.
const BUFFER: usize = 16;

/// The read before a watch is resumed. An election takes one to two seconds.
const CHECK: Duration = Duration::from_secs(3);

/// How to follow the store.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// The folder that is followed, relative to the prefix: `balancers`. "" is every key.
    pub below: &'static str,
    /// All keys are listed anew every so often, in case that something was missed nevertheless.
    pub resync: Duration,
    /// The silence after which etcd is asked for a sign of life, and the watch is given up if none comes. Raise it where
    /// something else notices a dead connection soon enough: each question costs etcd a message.
    pub quiet: Duration,
}

impl Default for Follow {
    fn default() -> Self {
        Self { below: "", resync: Duration::from_secs(300), quiet: QUIET }
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
    pub fn follow(&self, options: Follow, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        let range = Range::below(&self.config().prefix, options.below);
        self.follow_range(range, options, shutdown)
    }

    /// Follows one key, relative to the prefix, as [`Client::follow`] follows a folder; [`Follow::below`] is not read. A
    /// role needs no more than the permission to read that key.
    pub fn follow_key(&self, key: &str, options: Follow, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        self.follow_range(Range::of_key(&self.config().prefix, key), options, shutdown)
    }

    fn follow_range(&self, range: Range, options: Follow, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
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
enum End {
    /// What is known can't be continued.
    Resync(ResyncReason),
    /// etcd ended it, or can't be reached.
    Failed(Error),
    /// Nobody listens any more.
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure.error)
    }
}

struct Follower {
    client: Client,
    range: Range,
    options: Follow,
    events: mpsc::Sender<Event>,
    /// None when everything must be listed.
    position: Option<Position>,
    /// The revision that a watch was last resumed at while the store was ahead of it.
    behind_at: Option<i64>,
    listed: Instant,
    heard: Instant,
    connected: bool,
    retry: Retry,
}

impl Follower {
    fn new(client: Client, range: Range, options: Follow, events: mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        let retry = Retry::new(client.config().endpoints().len());
        Self {
            client,
            range,
            options,
            events,
            position: None,
            behind_at: None,
            listed: now,
            heard: now,
            connected: true,
            retry,
        }
    }

    async fn run(mut self) {
        loop {
            let delay = match self.session().await {
                End::Closed => return,
                End::Resync(why) => {
                    tracing::warn!(%why, "listing all keys anew");
                    self.position = None;
                    self.retry.next_delay_but_first()
                }
                End::Failed(error) => {
                    self.connected = false;
                    if self.events.send(Event::Disconnected { error, since: self.heard }).await.is_err() {
                        return;
                    }
                    self.retry.next_delay()
                }
            };
            sleep(delay).await;
        }
    }

    /// From the listing, or from where the last session stood, to the end of one watch.
    async fn session(&mut self) -> End {
        let Err(end) = self.try_session().await;
        end
    }

    async fn try_session(&mut self) -> Result<Infallible, End> {
        let mut position = match self.position {
            Some(position) => self.check(position).await?,
            None => self.list().await?,
        };
        self.position = Some(position);
        let mut watch =
            Watch::open(self.client.clone(), &self.range, position.revision + 1, self.options.quiet).await?;
        let mut revisions = Revisions::new(self.client.config().prefix.clone(), position);
        let mut resync = self.resync(position);
        loop {
            let message = tokio::select! {
                message = watch.message() => message?,
                snapshot = resync.snapshot() => {
                    let snapshot = resync.bring_forward(snapshot.map_err(End::Failed)?).map_err(End::Resync)?;
                    position = Position::of(&snapshot);
                    self.position = Some(position);
                    revisions.skip_to(position.revision);
                    self.listed = Instant::now();
                    resync = self.resync(position);
                    self.send(Event::Snapshot(snapshot)).await?;
                    continue;
                }
            };
            self.heard = Instant::now();
            match revisions.accept(message) {
                Verdict::Created => self.created(position.revision).await?,
                Verdict::Alive => self.retry.reset(),
                Verdict::Deliver { revision, changes } => {
                    self.retry.reset();
                    resync.note(&changes);
                    self.send(Event::Changes { revision, changes }).await?;
                    position.revision = revision;
                    self.position = Some(position);
                }
                Verdict::Resync(why) => return Err(End::Resync(why)),
                Verdict::Canceled(reason) => {
                    // A token that has expired is told as a missing permission; the listing finds out which it is.
                    self.position = None;
                    return Err(watch.canceled(&reason).into());
                }
            }
        }
    }

    async fn list(&mut self) -> Result<Position, End> {
        let snapshot = self.client.snapshot_of(&self.range).await.map_err(End::Failed)?;
        let position = Position::of(&snapshot);
        self.listed = Instant::now();
        self.heard = self.listed;
        self.connected = true;
        self.send(Event::Snapshot(snapshot)).await?;
        Ok(position)
    }

    /// Asks whether the store is still the one known, before a watch is resumed there; and whether it can be: it is
    /// resumed once at the same revision, if there is more to come.
    async fn check(&mut self, position: Position) -> Result<Position, End> {
        let run = |mut connection: Connection| {
            let key = self.range.start().to_owned();
            async move { connection.kv.get(key, None).await }
        };
        let answer = self.client.once(&Act::Get(self.range.start().to_owned()), CHECK, run).await?;
        let now = Position::at(&answer.0.header.unwrap_or_default());
        let position = position.check(&now).map_err(End::Resync)?;
        // etcd says nothing, not even that it lives, while it puts the events of one revision together: tens of
        // thousands of deletions with their previous values take longer than a silence may last. A listing has pages.
        let stuck =
            now.revision > position.revision && self.behind_at.replace(position.revision) == Some(position.revision);
        if stuck { Err(End::Resync(ResyncReason::Stuck)) } else { Ok(position) }
    }

    /// The watch stands: says so if it was lost before.
    async fn created(&mut self, revision: i64) -> Result<(), End> {
        match std::mem::replace(&mut self.connected, true) {
            true => Ok(()),
            false => self.send(Event::Changes { revision, changes: Vec::new() }).await,
        }
    }

    fn resync(&self, position: Position) -> Resync {
        let delay = self.options.resync.saturating_sub(self.listed.elapsed());
        Resync::after(self.client.clone(), self.range.clone(), delay, position)
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Closed)
    }
}
