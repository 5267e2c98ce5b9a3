//! One watch on one connection.

use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchOptions, WatchStream};
use tokio::time::timeout;

use crate::classification::{Context, Failure};
use crate::client::Client;
use crate::entry::Range;
use crate::error::Operation;

/// A watch may be quiet for long. After this the member is asked for a sign of life on the very stream of the watch,
/// and has [`GRACE`] to answer: a frozen or unplugged member is noticed within the sum of both.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The creation of a watch; a member that lives does that alone and at once.
const CREATE_TIMEOUT: Duration = Duration::from_secs(3);

/// One watch on one connection, which is given up with it.
pub(crate) struct Watch {
    client: Client,
    operation: Operation,
    turn: usize,
    /// The silence after which the member is asked for a sign of life.
    max_silence: Duration,
    stream: WatchStream,
}

impl Watch {
    /// Watches all keys of the range from this revision on.
    pub(crate) async fn open(client: Client, range: &Range, revision: i64, quiet: Duration) -> Result<Self, Failure> {
        let act = Operation::Watch(range.start().to_owned());
        let (turn, mut connection) = client.current_connection().await?;
        // Fragments keep each message near etcd's request limit, however much there is to catch up with.
        let mut options =
            WatchOptions::new().with_start_revision(revision).with_fragment().with_progress_notify().with_prev_key();
        if let Some(end) = range.end() {
            options = options.with_range(end);
        }
        let opened = timeout(CREATE_TIMEOUT, connection.watch.watch(range.start(), Some(options))).await;
        let failure = match opened {
            Ok(Ok(stream)) => return Ok(Self { client, operation: act, turn, max_silence: quiet, stream }),
            Ok(Err(error)) => client.record_failure(turn, &act, |context| context.classify_error(&error)),
            Err(_) => client.record_failure(turn, &act, |context| context.no_answer(CREATE_TIMEOUT)),
        };
        Err(failure)
    }

    /// The next message, with a question for a sign of life when there is none. Nothing is lost when it is dropped.
    pub(crate) async fn next_message(&mut self) -> Result<PbWatchResponse, Failure> {
        self.message_within(self.max_silence).await
    }

    /// The next message, which is asked for at once where none is there.
    pub(crate) async fn request_message(&mut self) -> Result<PbWatchResponse, Failure> {
        self.message_within(Duration::ZERO).await
    }

    async fn message_within(&mut self, quiet: Duration) -> Result<PbWatchResponse, Failure> {
        let answer = match timeout(quiet, self.stream.message()).await {
            Ok(answer) => Ok(answer),
            Err(_) => timeout(ANSWER_TIMEOUT, self.request_progress()).await,
        };
        match answer {
            Ok(Ok(Some(message))) => Ok(message.0),
            Ok(Ok(None)) => Err(self.record_failure(|context| context.stream_ended())),
            Ok(Err(error)) => Err(self.record_failure(|context| context.classify_error(&error))),
            Err(_) => Err(self.record_failure(|context| context.no_answer(self.max_silence + ANSWER_TIMEOUT))),
        }
    }

    /// A progress request is answered on this stream at once. On etcd 3.4 the revision in the answer may be ahead of
    /// events still to come, so it is only a sign of life.
    async fn request_progress(&mut self) -> Result<Option<etcd_client::WatchResponse>, etcd_client::Error> {
        self.stream.request_progress().await?;
        self.stream.message().await
    }

    /// etcd ended the watch, with these words.
    pub(crate) fn cancel_failure(&self, reason: &str) -> Failure {
        self.record_failure(|context| context.watch_canceled(reason))
    }

    fn record_failure(&self, what: impl FnOnce(Context<'_>) -> Failure) -> Failure {
        self.client.record_failure(self.turn, &self.operation, what)
    }
}
