//! One stream that many watches share, because etcd pays some 50 kB for each stream.
//!
//! `routes` decides which watch a message is for. The carrier sends it there and never waits for a watch: a watch that
//! doesn't read its messages falls behind, and loses its place on the stream.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchClient, WatchOptions};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};

use crate::stream::messages::{CREATE_TIMEOUT, MAX_SILENCE, MessageStream, StreamEnd};
use crate::stream::routes::{Route, Routes, WatchNumber};

/// The messages that wait for one watch. Tokio keeps 32 in a block, and the first block is always there.
const QUEUE: usize = 64;

type Queue = mpsc::Sender<Result<PbWatchResponse, StreamEnd>>;

/// The shared stream of one connection. Clones share it. It is opened for the first watch, and closed after the last one.
#[derive(Clone)]
pub(crate) struct SharedStream {
    client: WatchClient,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next_number: WatchNumber,
    /// `None` before the first watch.
    carrier: Option<CarrierHandle>,
}

#[derive(Clone)]
struct CarrierHandle {
    requests: mpsc::UnboundedSender<Request>,
    /// True if the stream takes no further watch. Those that it has go on.
    is_retired: Arc<AtomicBool>,
}

/// One watch on the shared stream. Dropping it ends the watch, and not the stream.
pub(crate) struct SharedWatch {
    number: WatchNumber,
    messages: mpsc::Receiver<Result<PbWatchResponse, StreamEnd>>,
    requests: mpsc::UnboundedSender<Request>,
}

/// A request to the carrier.
enum Request {
    Open(WatchNumber, Subscriber),
    Close(WatchNumber),
}

/// A watch as the carrier knows it.
struct Subscriber {
    key: String,
    options: WatchOptions,
    max_silence: Duration,
    queue: Queue,
}

impl SharedStream {
    pub(crate) fn new(client: WatchClient) -> Self {
        Self { client, state: Arc::default() }
    }

    /// Opens a watch. Its first message says that etcd created it. The stream asks for a sign of life after the shortest
    /// `max_silence` of its watches.
    pub(crate) fn open_watch(&self, key: &str, options: WatchOptions, max_silence: Duration) -> SharedWatch {
        let (queue, messages) = mpsc::channel(QUEUE);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next_number;
        state.next_number += 1;
        let request = Request::Open(number, Subscriber { key: key.to_owned(), options, max_silence, queue });
        let unsent = match &state.carrier {
            Some(carrier) if !carrier.is_retired.load(Ordering::Relaxed) => {
                match carrier.requests.send(request) {
                    Ok(()) => return SharedWatch { number, messages, requests: carrier.requests.clone() },
                    // The stream has ended. This connection may still be good for another one.
                    Err(unsent) => unsent.0,
                }
            }
            _ => request,
        };
        // The new stream gets the login of now. The watches of a retired stream go on with theirs.
        let carrier = Carrier::start(self.client.clone(), unsent);
        let requests = carrier.requests.clone();
        state.carrier = Some(carrier);
        SharedWatch { number, messages, requests }
    }
}

impl SharedWatch {
    /// The next message. `None` if the watch has lost its place on the stream: its messages were not read, or the stream
    /// takes no further watch.
    pub(crate) async fn next_message(&mut self) -> Option<Result<PbWatchResponse, StreamEnd>> {
        self.messages.recv().await
    }
}

impl Drop for SharedWatch {
    fn drop(&mut self) {
        // An error says that the carrier has ended, and with it the watch.
        let _ = self.requests.send(Request::Close(self.number));
    }
}

/// The task that has the stream.
struct Carrier {
    client: WatchClient,
    requests: mpsc::UnboundedReceiver<Request>,
    is_retired: Arc<AtomicBool>,
    routes: Routes,
    /// The watches that live or wait for their creation.
    subscribers: HashMap<WatchNumber, Subscriber>,
    /// `None` without a watch.
    stream: Option<MessageStream>,
    /// The time by which etcd must have answered the creation. `None` if none waits for an answer.
    creation_deadline: Option<Instant>,
    /// True if the last creation was the stream's first.
    is_first_creation: bool,
}

impl Carrier {
    /// Starts the task with its first request. It ends with the stream, or with the last sender.
    #[allow(
        clippy::disallowed_methods,
        reason = "a watch sends two requests at most, and the drop of a watch can't wait"
    )]
    fn start(client: WatchClient, first: Request) -> CarrierHandle {
        let (sender, requests) = mpsc::unbounded_channel();
        let _ = sender.send(first);
        let is_retired = Arc::<AtomicBool>::default();
        let carrier = Self {
            client,
            requests,
            is_retired: is_retired.clone(),
            routes: Routes::default(),
            subscribers: HashMap::new(),
            stream: None,
            creation_deadline: None,
            is_first_creation: true,
        };
        tokio::spawn(carrier.run());
        CarrierHandle { requests: sender, is_retired }
    }

    async fn run(mut self) {
        let Err(end) = self.carry_messages().await else { return };
        // A watch that asks from now on gets another stream. The requests before belong to this one's end.
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Open(number, subscriber) = request {
                self.subscribers.insert(number, subscriber);
            }
        }
        for subscriber in self.subscribers.into_values() {
            // A full queue ends without a reason. The watch then finds out for itself.
            let _ = subscriber.queue.try_send(Err(end.clone()));
        }
    }

    /// Runs until the last sender is dropped. The error is the end of the stream.
    async fn carry_messages(&mut self) -> Result<(), StreamEnd> {
        loop {
            self.create_next().await?;
            let max_silence = self.subscribers.values().map(|it| it.max_silence).min().unwrap_or(MAX_SILENCE);
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Open(number, subscriber)) => {
                        self.subscribers.insert(number, subscriber);
                        self.routes.add(number);
                    }
                    Some(Request::Close(number)) => self.remove(number).await?,
                    None => return Ok(()),
                },
                message = next_message(&mut self.stream, max_silence) => self.deliver(message?).await?,
                // `select!` evaluates the expression even if its condition is false.
                () = sleep_until(self.creation_deadline.unwrap_or_else(Instant::now)), if self.creation_deadline.is_some() => {
                    return Err(StreamEnd::Silent(CREATE_TIMEOUT));
                }
            }
        }
    }

    /// Requests the next watch, if no creation waits for its answer.
    async fn create_next(&mut self) -> Result<(), StreamEnd> {
        let Some(number) = self.routes.next_creation() else { return Ok(()) };
        self.creation_deadline = Some(Instant::now() + CREATE_TIMEOUT);
        self.is_first_creation = self.stream.is_none();
        let Some(Subscriber { key, options, .. }) = self.subscribers.get(&number) else { return Ok(()) };
        match &mut self.stream {
            Some(stream) => stream.create_watch(key, options.clone()).await,
            None => {
                self.stream = Some(MessageStream::open(&mut self.client, key, options.clone()).await?);
                Ok(())
            }
        }
    }

    async fn deliver(&mut self, message: PbWatchResponse) -> Result<(), StreamEnd> {
        let route = self.routes.route(&message);
        if !self.routes.is_creating() {
            self.creation_deadline = None;
        }
        match route {
            Route::One(number) => self.send(number, message).await,
            Route::Refused(number) if !self.is_first_creation => self.retire(number).await,
            Route::Refused(number) => {
                self.send(number, message).await?;
                self.remove(number).await
            }
            Route::Last(number) => {
                let id = message.watch_id;
                self.send(number, message).await?;
                self.remove(number).await?;
                // etcd keeps a watch whose revision was compacted away until it is canceled.
                self.cancel(id).await
            }
            Route::All => {
                for number in self.routes.created().collect::<Vec<_>>() {
                    self.send(number, message.clone()).await?;
                }
                Ok(())
            }
            Route::Abandoned(id) => self.cancel(id).await,
            Route::Nowhere => Ok(()),
            Route::Contradiction(what) => Err(StreamEnd::Contradiction(what)),
        }
    }

    /// Sends a message to a watch. A watch that has fallen behind is removed, so that the others go on.
    async fn send(&mut self, number: WatchNumber, message: PbWatchResponse) -> Result<(), StreamEnd> {
        let Some(subscriber) = self.subscribers.get(&number) else { return Ok(()) };
        match subscriber.queue.try_send(Ok(message)) {
            Ok(()) => Ok(()),
            Err(_) => self.remove(number).await,
        }
    }

    /// Takes no further watch after etcd refused this one. The stream has the login of its first watch, and etcd may no
    /// longer know its token (3.4 says "permission denied" then). The watches without a place try again on another stream.
    async fn retire(&mut self, refused: WatchNumber) -> Result<(), StreamEnd> {
        self.is_retired.store(true, Ordering::Relaxed);
        for number in self.routes.take_waiting() {
            self.subscribers.remove(&number);
        }
        self.remove(refused).await
    }

    async fn remove(&mut self, number: WatchNumber) -> Result<(), StreamEnd> {
        self.subscribers.remove(&number);
        let id = self.routes.remove(number);
        if self.subscribers.is_empty() {
            // etcd answers no request for a sign of life on a stream without watches, and it would keep the memory.
            (self.stream, self.routes, self.creation_deadline) = (None, Routes::default(), None);
        }
        match id {
            Some(id) => self.cancel(id).await,
            None => Ok(()),
        }
    }

    async fn cancel(&mut self, id: i64) -> Result<(), StreamEnd> {
        match &mut self.stream {
            Some(stream) => stream.cancel_watch(id).await,
            None => Ok(()),
        }
    }
}

/// The stream's next message. Without a stream there is none.
async fn next_message(stream: &mut Option<MessageStream>, max_silence: Duration) -> Result<PbWatchResponse, StreamEnd> {
    match stream {
        Some(stream) => stream.next_message(max_silence).await,
        None => std::future::pending().await,
    }
}
