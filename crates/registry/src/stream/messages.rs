//! The messages of one watch stream, and the requests for signs of life.
//!
//! It doesn't know what a message means or which watch it is for.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::PbWatchResponse;
use etcd_client::{Error, WatchClient, WatchOptions, WatchRequestSender, WatchResponseStream};
use tokio::time::{Instant, timeout, timeout_at};

/// The silence after which the member is asked for a sign of life, on the same stream. The member has [`ANSWER_TIMEOUT`] to
/// answer, so a frozen or unplugged member is noticed within the sum of both.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The creation of a watch. A living member does that at once, without the others.
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(3);

/// The end of a stream.
#[derive(Clone, Debug)]
pub(crate) enum StreamEnd {
    /// etcd ended the stream without an error.
    Closed,
    /// The stream failed. Many watches may share the error.
    Failed(Arc<Error>),
    /// No message came for this time, although the stream asked for one.
    Silent(Duration),
    /// etcd's messages contradict each other.
    Contradiction(&'static str),
}

impl From<Error> for StreamEnd {
    fn from(error: Error) -> Self {
        Self::Failed(Arc::new(error))
    }
}

/// One stream on one connection. Dropping it ends all its watches.
pub(crate) struct MessageStream {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    /// The time of the last message.
    heard_at: Instant,
    /// The time of the request for a sign of life. `None` if a message came since.
    asked_at: Option<Instant>,
}

impl MessageStream {
    /// Opens a stream with its first watch.
    pub(crate) async fn open(client: &mut WatchClient, key: &str, options: WatchOptions) -> Result<Self, StreamEnd> {
        let opened = timeout(CREATE_TIMEOUT, client.watch(key, Some(options))).await;
        let (requests, responses) = opened.map_err(|_| StreamEnd::Silent(CREATE_TIMEOUT))??.split();
        Ok(Self { requests, responses, heard_at: Instant::now(), asked_at: None })
    }

    /// Requests a further watch. The answer is a message.
    pub(crate) async fn create_watch(&mut self, key: &str, options: WatchOptions) -> Result<(), StreamEnd> {
        send_within(CREATE_TIMEOUT, self.requests.watch(key, Some(options))).await
    }

    /// Requests the end of the watch with this id. The others go on.
    pub(crate) async fn cancel_watch(&mut self, id: i64) -> Result<(), StreamEnd> {
        send_within(ANSWER_TIMEOUT, self.requests.cancel(id)).await
    }

    /// The next message. After `max_silence` it is the answer to a request for a sign of life. Dropping the future loses no
    /// message.
    pub(crate) async fn next_message(&mut self, max_silence: Duration) -> Result<PbWatchResponse, StreamEnd> {
        loop {
            let deadline = match self.asked_at {
                Some(asked_at) => asked_at + ANSWER_TIMEOUT,
                None => self.heard_at + max_silence,
            };
            match timeout_at(deadline, self.responses.message()).await {
                Ok(answer) => {
                    let message = answer?.ok_or(StreamEnd::Closed)?;
                    (self.heard_at, self.asked_at) = (Instant::now(), None);
                    return Ok(message.0);
                }
                Err(_) if self.asked_at.is_some() => return Err(StreamEnd::Silent(max_silence + ANSWER_TIMEOUT)),
                Err(_) => {
                    // etcd answers on this stream at once. On etcd 3.4 the revision in the answer may be ahead of events
                    // still to come (etcd-io/etcd#15220), so it is only a sign of life.
                    send_within(ANSWER_TIMEOUT, self.requests.request_progress()).await?;
                    self.asked_at = Some(Instant::now());
                }
            }
        }
    }
}

/// Sends a request. The library's queue of requests is full only if the connection takes none.
async fn send_within(limit: Duration, sending: impl Future<Output = Result<(), Error>>) -> Result<(), StreamEnd> {
    Ok(timeout(limit, sending).await.map_err(|_| StreamEnd::Silent(limit))??)
}
