//! One watch on one connection.
//!
//! It reads messages and notices silence. `revisions` decides what a message means.

use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchOptions, WatchStream};
use tokio::time::timeout;

use crate::classification::{Context, Failure};
use crate::client::Client;
use crate::entry::Range;
use crate::error::Operation;

/// The silence after which the watch asks the member for a sign of life, on the same stream. The member has
/// [`ANSWER_TIMEOUT`] to answer, so a frozen or unplugged member is noticed within the sum of both.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The creation of a watch. A living member does that at once, without the others.
const CREATE_TIMEOUT: Duration = Duration::from_secs(3);

/// One watch on one connection. If the connection is given up, so is the watch.
pub(crate) struct Watch {
    client: Client,
    operation: Operation,
    turn: usize,
    max_silence: Duration,
    stream: WatchStream,
}

impl Watch {
    /// Watches all keys of the range from this revision on. After `max_silence` without a message it asks for a sign of life.
    pub(crate) async fn open(
        client: Client,
        range: &Range,
        revision: i64,
        max_silence: Duration,
    ) -> Result<Self, Failure> {
        let operation = Operation::Watch(range.start().to_owned());
        let (turn, mut connection) = client.current_connection().await?;
        // Fragments keep each message near etcd's request limit, however many events there are to catch up with.
        let mut options =
            WatchOptions::new().with_start_revision(revision).with_fragment().with_progress_notify().with_prev_key();
        if let Some(end) = range.end() {
            options = options.with_range(end);
        }
        let opened = timeout(CREATE_TIMEOUT, connection.watch.watch(range.start(), Some(options))).await;
        let failure = match opened {
            Ok(Ok(stream)) => return Ok(Self { client, operation, turn, max_silence, stream }),
            Ok(Err(error)) => client.record_failure(turn, &operation, |context| context.classify_error(&error)),
            Err(_) => client.record_failure(turn, &operation, |context| context.no_answer(CREATE_TIMEOUT)),
        };
        Err(failure)
    }

    /// The next message. After the longest silence it is the answer to a request for a sign of life. Dropping the future
    /// loses no message.
    pub(crate) async fn next_message(&mut self) -> Result<PbWatchResponse, Failure> {
        self.message_within(self.max_silence).await
    }

    /// The next message. If none has arrived yet, the watch asks for a sign of life at once.
    pub(crate) async fn request_message(&mut self) -> Result<PbWatchResponse, Failure> {
        self.message_within(Duration::ZERO).await
    }

    async fn message_within(&mut self, max_silence: Duration) -> Result<PbWatchResponse, Failure> {
        let answer = match timeout(max_silence, self.stream.message()).await {
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

    async fn request_progress(&mut self) -> Result<Option<etcd_client::WatchResponse>, etcd_client::Error> {
        // etcd answers on this stream at once. On etcd 3.4 the revision in the answer may be ahead of events still to come
        // (etcd-io/etcd#15220), so it is only a sign of life.
        self.stream.request_progress().await?;
        self.stream.message().await
    }

    /// The failure of this watch after etcd ended it for this reason.
    pub(crate) fn cancel_failure(&self, reason: &str) -> Failure {
        self.record_failure(|context| context.watch_canceled(reason))
    }

    fn record_failure(&self, classify: impl FnOnce(Context<'_>) -> Failure) -> Failure {
        self.client.record_failure(self.turn, &self.operation, classify)
    }
}
