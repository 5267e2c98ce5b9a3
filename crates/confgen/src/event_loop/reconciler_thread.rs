//! The thread that owns the reconciler: requests go in, replies come out, one at a time. It decides nothing.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::event_loop::task::{Task, TaskResult};
use crate::publish::{Publication, PublishOutcome};
use crate::reconcile::{Progress, Reconciler};
use crate::status::ActionKind;
use crate::status::activity::Activities;

/// At most three requests wait: a task, the next publish, and the end of the last one. So sending never blocks the event loop.
const MOST_WAITING: usize = 4;

/// A request to the reconciler. The thread takes them in the order in which they were sent.
pub enum Request {
    Run(Task),
    /// Say what has to be published now.
    Publish,
    /// Take in how publishing went. The next task fails if this fails.
    Published(Box<Publication>, PublishOutcome),
}

/// A reply to a request.
pub enum Reply {
    Finished(Box<Finished>),
    Publish(Box<Publication>),
}

pub struct Finished {
    pub kind: ActionKind,
    pub reason: String,
    pub result: anyhow::Result<TaskResult>,
    pub began_at: SystemTime,
    pub took: Duration,
    pub progress: Progress,
}

pub struct ReconcilerThread {
    requests: mpsc::SyncSender<Request>,
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
        Ok(Self { requests, replies, thread: Some(thread) })
    }

    /// Sends a request. It is lost if the thread panicked, and then [`Self::next_reply`] panics too.
    pub fn send(&self, request: Request) {
        drop(self.requests.send(request));
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
            Request::Run(task) => {
                let (kind, reason) = (task.kind(), task.describe_reason());
                let _activity = activities.begin(kind.name(), reason.clone());
                let (began_at, began) = (SystemTime::now(), Instant::now());
                let result = std::mem::replace(&mut published, Ok(())).and_then(|()| task.run(&mut reconciler));
                let took = began.elapsed();
                reconciler.log_quarantine();
                let progress = reconciler.progress();
                Reply::Finished(Box::new(Finished { kind, reason, result, began_at, took, progress }))
            }
        };
        if replies.blocking_send(reply).is_err() {
            return;
        }
    }
}
