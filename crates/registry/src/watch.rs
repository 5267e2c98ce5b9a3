//! Following the store: list, watch from there, resume or list anew, for ever. `revisions` decides what a message
//! means, `retry` how long to wait; this carries it out.

use std::time::{Duration, Instant};

use discovery::{Change, Snapshot};
use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchOptions, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::connect::Connection;
use crate::entry::range_end;
use crate::error::{Act, Context, Error, Failure};
use crate::retry::Retry;
use crate::revisions::{Anew, Position, Revisions, Verdict};

/// Events kept for a consumer that is busy; beyond that etcd keeps them.
const BUFFER: usize = 16;

/// A watch may be quiet for long. After this the member is asked for a sign of life on the very stream of the watch,
/// and has [`GRACE`] to answer: a frozen or unplugged member is noticed within the sum of both.
const QUIET: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(3);

/// The read before a watch is resumed, and its creation. An election takes one to two seconds.
const STEP: Duration = Duration::from_secs(3);

/// How to follow the store.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// All keys are listed anew every so often, in case that something was missed nevertheless.
    pub resync: Duration,
}

impl Default for Follow {
    fn default() -> Self {
        Self { resync: Duration::from_secs(300) }
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
    /// Follows all keys below the prefix until `shutdown`, or until the receiver is dropped. No change is missed and
    /// none comes twice, whatever happens to etcd. A slow consumer slows it down.
    pub fn follow(&self, options: Follow, shutdown: CancellationToken) -> mpsc::Receiver<Event> {
        let (events, received) = mpsc::channel(BUFFER);
        let follower = Follower::new(self.clone(), options, events.clone());
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
    /// It is time to list anew.
    Resync,
    /// What is known can't be continued.
    Anew(Anew),
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
    range: String,
    options: Follow,
    events: mpsc::Sender<Event>,
    /// None when everything must be listed.
    position: Option<Position>,
    listed: Instant,
    heard: Instant,
    connected: bool,
    retry: Retry,
}

impl Follower {
    fn new(client: Client, options: Follow, events: mpsc::Sender<Event>) -> Self {
        let now = Instant::now();
        let range = client.config().prefix.below("");
        let retry = Retry::new(client.config().endpoints().len());
        Self { client, range, options, events, position: None, listed: now, heard: now, connected: true, retry }
    }

    async fn run(mut self) {
        loop {
            let delay = match self.session().await {
                End::Closed => return,
                End::Resync => {
                    self.position = None;
                    Duration::ZERO
                }
                End::Anew(why) => {
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

    async fn try_session(&mut self) -> Result<std::convert::Infallible, End> {
        let position = match self.position {
            Some(position) => self.check(position).await?,
            None => self.list().await?,
        };
        self.position = Some(position);
        let mut watch = Watch::open(self.client.clone(), &self.range, position.revision + 1).await?;
        let mut revisions = Revisions::new(self.client.config().prefix.clone(), position);
        let resync = self.options.resync.saturating_sub(self.listed.elapsed());
        let resync = sleep(resync);
        tokio::pin!(resync);
        loop {
            let message = tokio::select! {
                () = &mut resync => return Err(End::Resync),
                message = watch.message() => message?,
            };
            self.heard = Instant::now();
            match revisions.accept(message) {
                Verdict::Created => self.created(position.revision).await?,
                Verdict::Alive => self.retry.reset(),
                Verdict::Deliver { revision, changes } => {
                    self.retry.reset();
                    self.send(Event::Changes { revision, changes }).await?;
                    self.position = Some(Position { revision, ..position });
                }
                Verdict::Anew(why) => return Err(End::Anew(why)),
                Verdict::Canceled(reason) => {
                    // A token that has expired is told as a missing permission; the listing finds out which it is.
                    self.position = None;
                    return Err(watch.canceled(&reason).into());
                }
            }
        }
    }

    async fn list(&mut self) -> Result<Position, End> {
        let snapshot = self.client.snapshot("").await.map_err(End::Failed)?;
        let position = Position::of(&snapshot);
        self.listed = Instant::now();
        self.heard = self.listed;
        self.connected = true;
        self.send(Event::Snapshot(snapshot)).await?;
        Ok(position)
    }

    /// Asks whether the store is still the one known, before a watch is resumed there.
    async fn check(&self, position: Position) -> Result<Position, End> {
        let run = |mut connection: Connection| {
            let key = self.range.clone();
            async move { connection.kv.get(key, None).await }
        };
        let answer = self.client.once(&Act::Get(self.range.clone()), STEP, run).await?;
        position.check(&answer.0.header.unwrap_or_default()).map_err(End::Anew)
    }

    /// The watch stands: says so if it was lost before.
    async fn created(&mut self, revision: i64) -> Result<(), End> {
        match std::mem::replace(&mut self.connected, true) {
            true => Ok(()),
            false => self.send(Event::Changes { revision, changes: Vec::new() }).await,
        }
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Closed)
    }
}

/// One watch on one connection, which is given up with it.
struct Watch {
    client: Client,
    act: Act,
    turn: usize,
    stream: WatchStream,
}

impl Watch {
    async fn open(client: Client, range: &str, revision: i64) -> Result<Self, Failure> {
        let act = Act::Watch(range.to_owned());
        let (turn, mut connection) = client.connection().await?;
        // Without fragments an answer larger than etcd's request limit ends the stream.
        let options = WatchOptions::new()
            .with_range(range_end(range))
            .with_start_revision(revision)
            .with_fragment()
            .with_progress_notify()
            .with_prev_key();
        let opened = timeout(STEP, connection.watch.watch(range, Some(options))).await;
        let failure = match opened {
            Ok(Ok(stream)) => return Ok(Self { client, act, turn, stream }),
            Ok(Err(error)) => client.fail(turn, &act, |context| context.failure(&error)),
            Err(_) => client.fail(turn, &act, |context| context.silent(STEP)),
        };
        Err(failure)
    }

    /// The next message, with a question for a sign of life when there is none.
    async fn message(&mut self) -> Result<PbWatchResponse, Failure> {
        let answer = match timeout(QUIET, self.stream.message()).await {
            Ok(answer) => Ok(answer),
            Err(_) => timeout(GRACE, self.ask()).await,
        };
        match answer {
            Ok(Ok(Some(message))) => Ok(message.0),
            Ok(Ok(None)) => Err(self.fail(|context| context.ended())),
            Ok(Err(error)) => Err(self.fail(|context| context.failure(&error))),
            Err(_) => Err(self.fail(|context| context.silent(QUIET + GRACE))),
        }
    }

    /// A progress request is answered on this stream at once. On etcd 3.4 the revision in the answer may be ahead of
    /// events still to come, so it is only a sign of life.
    async fn ask(&mut self) -> Result<Option<etcd_client::WatchResponse>, etcd_client::Error> {
        self.stream.request_progress().await?;
        self.stream.message().await
    }

    fn canceled(&self, reason: &str) -> Failure {
        self.fail(|context| context.canceled(reason))
    }

    fn fail(&self, what: impl FnOnce(Context<'_>) -> Failure) -> Failure {
        self.client.fail(self.turn, &self.act, what)
    }
}
