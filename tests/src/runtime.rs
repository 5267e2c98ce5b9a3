//! The lab's own asynchronous runtime, so that its blocking functions work inside anybody else's.

use std::future::Future;
use std::sync::{LazyLock, mpsc};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // Two threads: the load of HTTP/1.1 and HTTP/2 may run side by side, and the machine we aim at has two cores.
    Builder::new_multi_thread().worker_threads(2).thread_name("lab").enable_all().build().expect("a runtime")
});

/// Starts a task in the background.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    RUNTIME.spawn(task)
}

/// Runs a future to its end and returns what it yields, from inside or outside of a runtime.
///
/// # Panics
/// When the future panics.
pub fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    RUNTIME.spawn(async move { sender.send(future.await) });
    receiver.recv().expect("the future panicked; see above")
}
