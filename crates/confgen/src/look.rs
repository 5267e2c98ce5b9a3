//! What is outside of the store, looked at four times a second: files, the day, the running HAProxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use haproxy::runtime::{Info, Socket};
use haproxy::{masters, process};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::activity::Activities;
use crate::expiry;
use crate::file_stamps::FileStamps;
use crate::outside::Places;
use crate::proxy;
use crate::report::Running;

/// How often the files and the running generation are looked at. A restart or a crash of HAProxy is mended as soon as it
/// is seen; four questions a second are nothing to it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a look at the world outside of the store sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The files.
    pub files: Arc<FileStamps>,
    /// What HAProxy runs.
    pub running: Option<Running>,
    /// A new day: certificates that expire are named once a day.
    pub day: i64,
    /// The process, and when it was last seen to be another one.
    pub process: Option<(u32, Instant)>,
    /// Another process listens too, and may have answered what was asked after this look.
    pub shared: bool,
    /// Which files it was started with, where they are not those that confgen checks.
    pub strange: Option<String>,
}

/// A start takes handover less than this from HAProxy's first breath to the last of the old process: what was running
/// before confgen may be a restart under way.
const START: Duration = Duration::from_secs(5);

/// Looks every so often; the receiver is told when something is different. `checked` are the files that confgen checks, as
/// HAProxy is to be started with them.
pub fn look(
    places: Places,
    checked: Vec<PathBuf>,
    socket: Socket,
    activities: Activities,
    shutdown: CancellationToken,
) -> watch::Receiver<Look> {
    let checked: Arc<[PathBuf]> = checked.into();
    let (sender, receiver) = watch::channel(Look::default());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let (mut process, mut shared): (Option<(u32, Instant)>, bool) = (None, false);
        let mut files: Arc<FileStamps> = Arc::default();
        loop {
            ticks.tick().await;
            let (places, checked, socket, last) = (places.clone(), Arc::clone(&checked), socket.clone(), process);
            let (before, activities) = (Arc::clone(&files), activities.clone());
            let glance = move || {
                let _activity = activities.begin("look", "files and the running HAProxy");
                let info = socket.info().ok();
                let process = info.as_ref().map_or(last, |info| Some(since(last, info.pid, info.uptime)));
                // A process that was found alone stays so until it is another one.
                let shared = (shared || process != last) && masters::share(&socket);
                let strange = info.as_ref().and_then(|info| strange(info.pid, &checked));
                let generation = || proxy::running(&socket);
                let running = |info: Info| Running { pid: info.pid, version: info.version, generation: generation() };
                let files = Arc::new(places.glance(&before, SystemTime::now()));
                let day = expiry::day(expiry::now());
                Look { files, running: info.map(running), process, shared, day, strange }
            };
            if let Ok(seen) = tokio::task::spawn_blocking(glance).await {
                (process, shared, files) = (seen.process, seen.shared, Arc::clone(&seen.files));
                sender.send_if_modified(|last| std::mem::replace(last, seen.clone()) != seen);
            }
        }
    }));
    receiver
}

/// Says how the files differ that a process was started with; where they can't be told, they count as the same.
fn strange(pid: u32, checked: &[PathBuf]) -> Option<String> {
    let running = process::config_files(pid).filter(|running| !process::are_same(running, checked))?;
    let words = |files: &[PathBuf]| {
        let words: Vec<String> = files.iter().map(|file: &PathBuf| format!("-f {}", Path::display(file))).collect();
        words.join(" ")
    };
    Some(format!("HAProxy was started with {}, and confgen checks {}", words(&running), words(checked)))
}

/// The process that answers, and when it was last seen to be another one.
fn since(last: Option<(u32, Instant)>, pid: u32, uptime: Duration) -> (u32, Instant) {
    let now = Instant::now();
    match last {
        Some((known, since)) if known == pid => (pid, since),
        Some(_) => (pid, now),
        None => (pid, now.checked_sub(uptime.saturating_sub(START)).unwrap_or(now)),
    }
}
