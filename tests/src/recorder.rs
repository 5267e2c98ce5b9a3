//! Records what happens in a test's store, and holds it against the protocol's promises when the store ends.
//!
//! A recorder has one watch and one socket, as tasks of the lab's runtime. It reads the store, and never writes it.

mod old_processes;
mod record;
mod stops;
mod watch;

use std::env::var_os;
use std::fs::{OpenOptions, create_dir_all};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{current, panicking};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use trace::{Counts, Observation, explain};

use crate::bins::folder;
use crate::{runtime, write};

pub use stops::report_stop;

use old_processes::HaproxyPlace;
use record::Record;

/// The wait for stops that are being recorded, when a test ends. It is longer than the limits of one stop together.
const STOPS_LIMIT: Duration = Duration::from_secs(10);

/// The wait for the last changes, when a test ends. An etcd that the test has frozen answers never.
const END_LIMIT: Duration = Duration::from_millis(500);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What the tasks of a recorder share.
pub(crate) struct Shared {
    endpoints: Vec<String>,
    record: Mutex<Record>,
    /// Notified after each change of `record`.
    changed: tokio::sync::Notify,
    haproxys: Mutex<Vec<HaproxyPlace>>,
}

impl Shared {
    /// Asks the old processes of this balancer too when an app stops. `socket` is its Runtime API's.
    pub(crate) fn add_haproxy(&self, name: String, socket: PathBuf) {
        self.haproxys.lock().expect("no task panics").push(HaproxyPlace { name, socket });
    }

    /// Changes the record, and wakes the tasks that wait for it.
    fn update<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let changed = change(&mut self.record.lock().expect("no task panics"));
        self.changed.notify_waiters();
        changed
    }

    /// Waits until the record is as `check` wants it. `check` returns `None` until then.
    async fn wait_record<T>(&self, check: impl Fn(&Record) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // A change between the check and the wait counts too.
            changed.as_mut().enable();
            if let Some(found) = check(&self.record.lock().expect("no task panics")) {
                return found;
            }
            changed.await;
        }
    }
}

/// The record of one store. Dropping it fails the test if a promise was broken.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    socket: PathBuf,
    tasks: Vec<JoinHandle<()>>,
    /// The reason why nothing is held against the promises. `None` if it is.
    unchecked: Mutex<Option<String>>,
}

impl Recorder {
    /// Begins to record the store with these endpoints. The socket for stopped apps is in `folder`.
    pub(crate) fn start(endpoints: Vec<String>, folder: &Path) -> Self {
        let shared = Arc::new(Shared {
            endpoints,
            record: Mutex::default(),
            changed: tokio::sync::Notify::new(),
            haproxys: Mutex::default(),
        });
        let socket = folder.join("stops.sock");
        let path = socket.clone();
        // A listener belongs to the runtime that it was made in.
        let listener = runtime::run(async move { UnixListener::bind(path).expect("the socket for stopped apps") });
        let tasks =
            vec![runtime::spawn(stops::serve(shared.clone(), listener)), runtime::spawn(watch::follow(shared.clone()))];
        Self { shared, socket, tasks, unchecked: Mutex::default() }
    }

    /// What a balancer of this store registers with.
    pub(crate) fn share(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Has an app below this command report its stop. The command's output goes to `log`.
    pub(crate) fn follow_stops(&self, command: &mut Command, log: &Path) {
        command.env(stops::SOCKET, &self.socket).env(stops::LOG, log);
    }

    /// Has the next watch begin with a listing: all nodes of the store are down, and begin again with other data.
    pub(crate) fn expect_other_store(&self) {
        self.shared.update(|record| record.must_list = true);
    }

    pub(crate) fn leave_unchecked(&self, reason: &str) {
        *self.unchecked.lock().expect("no task panics") = Some(reason.to_owned());
    }

    /// The trace so far, after the last change and the last stop.
    pub(crate) fn take_trace(&self) -> (Vec<Observation>, usize) {
        let shared = self.shared.clone();
        runtime::run(async move {
            let no_stop = shared.wait_record(|record| (record.stops_under_way == 0).then_some(()));
            let _ = timeout(STOPS_LIMIT, no_stop).await;
            let _ = timeout(END_LIMIT, watch::catch_up(&shared)).await;
            let record = shared.record.lock().expect("no task panics");
            (record.to_trace(), record.left_out)
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // The test has failed already, and its etcd may be in any state.
        let taken = (!panicking()).then(|| self.take_trace());
        self.tasks.iter().for_each(JoinHandle::abort);
        let Some((trace, left_out)) = taken else { return };
        let unchecked = self.unchecked.lock().expect("no task panics").take();
        note_counts(Counts::of_trace(&trace), left_out, unchecked.as_deref());
        if let Some(unexplained) = explain(&trace).err().filter(|_| unchecked.is_none()) {
            let file = keep_trace(&trace);
            let observation = trace.get(unexplained.line - 1).map(ToString::to_string).unwrap_or_default();
            panic!("the trace has no explanation, {unexplained}\n{observation}\nthe whole trace: {}", file.display());
        }
    }
}

/// Prints how much a test has recorded. libtest shows that only if the test fails, so `LAB_TRACES` may name a file too.
fn note_counts(counts: Counts, left_out: usize, unchecked: Option<&str>) {
    let Counts { listings, puts, deletions, stops, questions } = counts;
    let checked = unchecked.unwrap_or("checked");
    println!(
        "trace: {listings} listings, {puts} puts, {deletions} deletions, {stops} stops and {left_out} left out, \
         {questions} questions to old processes; {checked}"
    );
    if let Some(path) = var_os("LAB_TRACES") {
        let name = current().name().unwrap_or_default().to_owned();
        let line = format!("{listings}\t{puts}\t{deletions}\t{stops}\t{left_out}\t{questions}\t{checked}\t{name}\n");
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Writes a trace into `target/debug/traces`, and returns its path.
fn keep_trace(trace: &[Observation]) -> PathBuf {
    let traces = folder().join("traces");
    create_dir_all(&traces).unwrap_or_else(|error| panic!("making {}: {error}", traces.display()));
    let test = current().name().unwrap_or("test").replace("::", ".");
    let file = traces.join(format!("{test}-{}-{}.jsonl", id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    write(&file, trace.iter().map(|observation| format!("{observation}\n")).collect::<String>());
    file
}

#[cfg(test)]
mod tests;
