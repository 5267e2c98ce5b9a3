//! `handover stop`: ends every HAProxy of a socket, whatever state supervisord's program is in.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::args::Stop;
use crate::processes::Haproxy;
use crate::run_dir::RunDir;
use crate::supervise::ENDING_LIMIT;

/// The interval between two scans for a HAProxy that is left.
const TICK: Duration = Duration::from_millis(50);

/// Has every HAProxy finish its requests for at most `--drain`. Then it ends the rest, and at last kills them.
pub(crate) fn stop_all(args: &Stop) -> anyhow::Result<()> {
    let run_dir = RunDir::open(&args.find_socket()?, None)?;
    signal_each(&run_dir, "HAProxy finishes its requests", Haproxy::finish_requests, args.drain);
    signal_each(&run_dir, "ending HAProxy and its connections", Haproxy::terminate, ENDING_LIMIT);
    signal_each(&run_dir, "killing HAProxy", Haproxy::kill, ENDING_LIMIT);
    match run_dir.list_haproxys().first() {
        Some(left) => {
            bail!("HAProxy {} is still there, although it was killed: see if the kernel holds it", left.pid())
        }
        None => Ok(()),
    }
}

/// Signals every HAProxy, and waits until none is left or the limit has passed.
fn signal_each(run_dir: &RunDir, event: &str, act: fn(&Haproxy), limit: Duration) {
    for haproxy in run_dir.list_haproxys() {
        tracing::info!(pid = haproxy.pid(), "{event}");
        act(&haproxy);
    }
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline && !run_dir.list_haproxys().is_empty() {
        std::thread::sleep(TICK);
    }
}
