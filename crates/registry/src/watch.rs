//! One watch on one connection, with a stream of its own or on the connection's shared one.
//!
//! It opens the watch and classifies its end. `revisions` decides what a message means.

use std::time::Duration;

use etcd_client::WatchOptions;
use etcd_client::proto::PbWatchResponse;

use crate::classification::{Context, Failure};
use crate::client::Client;
use crate::entry::Range;
use crate::error::{Error, Operation};
use crate::stream::messages::{MessageStream, StreamEnd};
use crate::stream::shared::SharedWatch;

/// One watch on one connection. If the connection is given up, so is the watch.
pub(crate) struct Watch {
    client: Client,
    operation: Operation,
    turn: usize,
    source: Source,
}

/// The end of a watch without a message of etcd.
#[derive(Debug)]
pub(crate) enum WatchEnd {
    Failed(Box<Failure>),
    /// The watch lost its place on the shared stream, and can be opened again. The connection is good.
    LostPlace(Box<Failure>),
}

impl WatchEnd {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(failure) | Self::LostPlace(failure) => failure.error,
        }
    }
}

enum Source {
    Own { stream: Box<MessageStream>, max_silence: Duration },
    Shared(SharedWatch),
}

impl Watch {
    /// Watches all keys of the range from this revision on, with a stream of its own or on the one that the connection's watches
    /// share. After `max_silence` without a message it asks for a sign of life.
    pub(crate) async fn open(
        client: Client,
        range: &Range,
        revision: i64,
        max_silence: Duration,
        shares_stream: bool,
    ) -> Result<Self, Failure> {
        let operation = Operation::Watch(range.start().to_owned());
        let (turn, mut connection) = client.current_connection().await?;
        let (key, options) = (range.start(), options(range, revision));
        // The shared stream's carrier creates the watch later, and tells a refusal in the first message.
        let source = if shares_stream {
            Source::Shared(connection.shared_stream.open_watch(key, options, max_silence))
        } else {
            match MessageStream::open(&mut connection.watch, key, options).await {
                Ok(stream) => Source::Own { stream: Box::new(stream), max_silence },
                Err(end) => {
                    return Err(client.record_failure(turn, &operation, |context| classify_end(&context, &end)));
                }
            }
        };
        Ok(Self { client, operation, turn, source })
    }

    /// The next message. After the longest silence it is the answer to a request for a sign of life. Dropping the future
    /// loses no message.
    pub(crate) async fn next_message(&mut self) -> Result<PbWatchResponse, WatchEnd> {
        let answer = match &mut self.source {
            Source::Own { stream, max_silence } => Some(stream.next_message(*max_silence).await),
            Source::Shared(watch) => watch.next_message().await,
        };
        self.accept_answer(answer)
    }

    /// The next message. If none has arrived yet, a watch with a stream of its own asks for a sign of life at once.
    pub(crate) async fn request_message(&mut self) -> Result<PbWatchResponse, WatchEnd> {
        let answer = match &mut self.source {
            Source::Own { stream, .. } => Some(stream.next_message(Duration::ZERO).await),
            Source::Shared(watch) => watch.next_message().await,
        };
        self.accept_answer(answer)
    }

    fn accept_answer(&self, answer: Option<Result<PbWatchResponse, StreamEnd>>) -> Result<PbWatchResponse, WatchEnd> {
        match answer {
            Some(Ok(message)) => Ok(message),
            Some(Err(end)) => Err(WatchEnd::Failed(self.record_failure(|context| classify_end(&context, &end)).into())),
            None => Err(WatchEnd::LostPlace(self.cancel_failure("the watch lost its place on a shared stream").into())),
        }
    }

    /// The failure of this watch after etcd ended it for this reason.
    pub(crate) fn cancel_failure(&self, reason: &str) -> Failure {
        self.record_failure(|context| context.watch_canceled(reason))
    }

    fn record_failure(&self, classify: impl FnOnce(Context<'_>) -> Failure) -> Failure {
        self.client.record_failure(self.turn, &self.operation, classify)
    }
}

fn options(range: &Range, revision: i64) -> WatchOptions {
    // Fragments keep each message near etcd's request limit, however many events there are to catch up with.
    let options =
        WatchOptions::new().with_start_revision(revision).with_fragment().with_progress_notify().with_prev_key();
    match range.end() {
        Some(end) => options.with_range(end),
        None => options,
    }
}

fn classify_end(context: &Context<'_>, end: &StreamEnd) -> Failure {
    match end {
        StreamEnd::Closed => context.stream_ended("the stream has ended"),
        StreamEnd::Failed(error) => context.classify_error(error),
        StreamEnd::Silent(limit) => context.no_answer(*limit),
        StreamEnd::Contradiction(what) => context.stream_ended(what),
    }
}
