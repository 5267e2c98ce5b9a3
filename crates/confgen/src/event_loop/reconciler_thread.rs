//! The thread that owns the reconciler: requests go in, replies come out, one at a time. It decides nothing, and waits for no other
//! program but HAProxy on its Runtime API.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::event_loop::task::{Task, TaskResult};
use crate::publish::{Publication, PublishOutcome};
use crate::reconcile::{Progress, Reconciler, Steps};
use crate::status::ActionKind;
use crate::status::activity::Activities;

/// At most five requests wait: a task, the next publish, the end of the last one, a step of an action beside them, and a look for manual
/// changes. So sending never blocks the event loop.
const MOST_WAITING: usize = 6;

/// A request to the reconciler. The thread takes them in the order in which they were sent.
pub enum Request {
    Run {
        task: Task,
        /// The store revision, for the history.
        revision: i64,
    },
    /// Say what has to be published now.
    Publish,
    /// Take in how publishing went. The next task fails if this fails.
    Published(Box<Publication>, PublishOutcome),
    /// A step of an action that runs beside the tasks.
    Step(Box<dyn FnOnce(&mut Reconciler) + Send>),
    /// An action that ran beside the tasks has ended. Its reply has the status of now, behind those of earlier tasks.
    Ended(Box<Ended>),
}

/// The end of an action, before the reconciler added its progress.
pub struct Ended {
    pub kind: ActionKind,
    pub reason: String,
    pub revision: i64,
    pub result: anyhow::Result<TaskResult>,
    pub began_at: SystemTime,
    pub took: Duration,
}

/// A reply to a request.
pub enum Reply {
    Finished(Box<Finished>),
    Publish(Box<Publication>),
}

pub struct Finished {
    pub ended: Ended,
    pub progress: Progress,
}

/// Sends steps of actions that run beside the tasks.
#[derive(Clone)]
pub struct StepSender(mpsc::SyncSender<Request>);

impl Steps for StepSender {
    fn run<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&mut Reconciler) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (sender, result) = mpsc::sync_channel(1);
        self.send(Request::Step(Box::new(move |reconciler| drop(sender.send(step(reconciler))))));
        result.recv().context("confgen is ending")?
    }
}

impl StepSender {
    /// Sends a request. It is lost if the thread has ended.
    pub fn send(&self, request: Request) {
        drop(self.0.send(request));
    }
}

pub struct ReconcilerThread {
    requests: StepSender,
    replies: Receiver<Reply>,
    thread: Option<JoinHandle<()>>,
}

impl ReconcilerThread {
    /// Starts the thread. It ends when this is dropped, after the request in progress.
    pub fn spawn(reconciler: Reconciler, activities: Activities) -> std::io::Result<Self> {
        let (requests, received) = mpsc::sync_channel(MOST_WAITING);
        let (sender, replies) = channel(MOST_WAITING);
        let thread = std::thread::Builder::new().name("reconciler".into());
        let thread = thread.spawn(move || serve_requests(reconciler, &received, &sender, &activities))?;
        Ok(Self { requests: StepSender(requests), replies, thread: Some(thread) })
    }

    /// Sends a request. It is lost if the thread panicked, and then [`Self::next_reply`] panics too.
    pub fn send(&self, request: Request) {
        self.requests.send(request);
    }

    /// A sender for an action that runs beside the tasks.
    pub fn step_sender(&self) -> StepSender {
        self.requests.clone()
    }

    /// The next reply. Nothing is lost when this is dropped.
    pub async fn next_reply(&mut self) -> Reply {
        if let Some(reply) = self.replies.recv().await {
            return reply;
        }
        // The thread ends before the channel only by a panic, which is a bug of confgen: systemd starts confgen again.
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(())) | None => std::future::pending().await,
        }
    }
}

fn serve_requests(
    mut reconciler: Reconciler,
    requests: &mpsc::Receiver<Request>,
    replies: &Sender<Reply>,
    activities: &Activities,
) {
    let mut published = Ok(());
    for request in requests {
        let reply = match request {
            Request::Publish => Reply::Publish(Box::new(reconciler.publication())),
            Request::Published(publication, outcome) => {
                published = published.and(reconciler.on_published(&publication, &outcome));
                reconciler.log_quarantine();
                continue;
            }
            Request::Step(step) => {
                step(&mut reconciler);
                continue;
            }
            Request::Run { task, revision } => {
                let (kind, reason) = (ActionKind::Runtime, task.describe_reason());
                let _activity = activities.begin(kind.name(), reason.clone());
                let (began_at, began) = (SystemTime::now(), Instant::now());
                let result = std::mem::replace(&mut published, Ok(())).and_then(|()| task.run(&mut reconciler));
                finish(Ended { kind, reason, revision, result, began_at, took: began.elapsed() }, &mut reconciler)
            }
            Request::Ended(ended) => finish(*ended, &mut reconciler),
        };
        if replies.blocking_send(reply).is_err() {
            return;
        }
    }
}

fn finish(ended: Ended, reconciler: &mut Reconciler) -> Reply {
    reconciler.log_quarantine();
    Reply::Finished(Box::new(Finished { ended, progress: reconciler.progress() }))
}
