//! The watchdog that a stopped handover leaves behind: without a successor, HAProxy is ended.

use std::time::{Duration, Instant};

use crate::args::Linger;
use crate::haproxys::Haproxy;
use crate::place::Place;

/// How often it looks for a successor, and afterwards for the end.
const TICK: Duration = Duration::from_millis(100);

/// How long a start that is handing over may keep the watchdog from looking; by then it is a successor anyway.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Waits for a successor of that start, ends HAProxy if none appears, and stays until it has ended.
pub(crate) fn run(args: &Linger) -> anyhow::Result<()> {
    let place = Place::open(&args.socket()?, None)?;
    let deadline = Instant::now() + args.linger;
    while Instant::now() < deadline {
        if !place.is_latest(&args.start) {
            return Ok(());
        }
        std::thread::sleep(TICK.min(deadline.saturating_duration_since(Instant::now())));
    }
    let lock = place.lock(LOCK_PATIENCE)?;
    if !place.is_latest(&args.start) {
        return Ok(());
    }
    tracing::info!("no successor within {}: HAProxy finishes its requests", humantime::format_duration(args.linger));
    place.haproxys().iter().for_each(Haproxy::finish);
    drop(lock);
    // Each look removes the sockets of masters that have ended.
    while place.is_latest(&args.start) && !place.haproxys().is_empty() {
        std::thread::sleep(TICK);
    }
    Ok(())
}
