//! `handover stop`: ends every HAProxy of a socket, whatever state supervisord's program is in.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::args::Stop;
use crate::processes::Haproxy;
use crate::run_dir::RunDir;
use crate::supervise::ENDING_LIMIT;

/// How often the last one is looked for.
const TICK: Duration = Duration::from_millis(50);

/// Has every HAProxy finish its requests; the rest is cut off, and then killed.
pub(crate) fn stop_all(args: &Stop) -> anyhow::Result<()> {
    let place = RunDir::open(&args.find_socket()?, None)?;
    signal_each(&place, "finishes its requests", Haproxy::finish_requests, args.drain);
    signal_each(&place, "is cut off", Haproxy::terminate, ENDING_LIMIT);
    signal_each(&place, "is killed", Haproxy::kill, ENDING_LIMIT);
    match place.list_haproxys().first() {
        Some(left) => bail!("HAProxy {} is still there, though it was killed", left.pid()),
        None => Ok(()),
    }
}

/// Does it to every HAProxy, and waits until none is left, or the time is over.
fn signal_each(place: &RunDir, what: &str, act: fn(&Haproxy), limit: Duration) {
    for haproxy in place.list_haproxys() {
        tracing::info!("HAProxy {} {what}", haproxy.pid());
        act(&haproxy);
    }
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline && !place.list_haproxys().is_empty() {
        std::thread::sleep(TICK);
    }
}
