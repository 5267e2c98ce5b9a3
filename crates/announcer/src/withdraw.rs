//! Takes the records out of the store: `drain` and the wait for the balancers, then the last writes. It never stops the
//! app.

use std::time::Duration;

use discovery::UpstreamState;
use registry::Client;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::balancers::{BalancerWatch, Question};
use crate::lease::Lease;
use crate::record::Want;
use crate::registrar::{Registrar, Written};
use crate::state::Action;

/// Limit for writing `drain`. An election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
pub(crate) const DRAIN_WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Wait after `drain` if the balancers' records can't be read: 2 s for confgen's `--restart-interval`, which a restart
/// waits for if it follows three others at once; 1 s for the restart; 4 s for HAProxy's `timeout http-keep-alive`, in
/// which an old process sends an idle client's next request to any upstream that it knew.
const UNHEARD_WAIT: Duration = Duration::from_secs(7);

/// Limit for each of the other ways out of the store if `drain` can't be written.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// Limit for the last writes together. The second one applies after a second stop signal.
pub(crate) const WITHDRAW_LIMIT: Duration = Duration::from_secs(5);
pub(crate) const HASTY_WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// Writes `drain`, and waits until every balancer has acknowledged it, at most for `limit`. If etcd refuses `drain`,
/// the records are deleted. If etcd refuses that too, the lease ends. Either way the wait gives balancers the time that
/// they usually need, because an app that stops earlier loses requests. True if every balancer has acknowledged it.
pub(crate) async fn drain_records(registrar: &Registrar, lease: &Lease, limit: Duration) -> bool {
    let end = Instant::now() + DRAIN_WRITE_LIMIT + limit;
    match registrar.set_all_and_wait(Want::IfPresent(UpstreamState::Drain), Instant::now() + DRAIN_WRITE_LIMIT).await {
        Ok(written) if written.unwritten_count > 0 => {
            let records = written.unwritten_count;
            tracing::warn!(records, "can't write `drain` for all records, deleting them");
            delete_instead(registrar, lease, limit, end).await;
            false
        }
        Ok(written) if written.ours.is_empty() && written.gone.is_empty() => {
            tracing::info!("nothing to drain: no record of ours is in the store");
            true
        }
        Ok(written) => await_acknowledgement(&lease.client, &written, limit).await,
        Err(error) => {
            tracing::warn!(%error, "can't write `drain`, deleting the records");
            delete_instead(registrar, lease, limit, end).await;
            false
        }
    }
}

/// Deletes the records or else revokes the lease, and waits as if the balancers couldn't be read. A fault that keeps
/// this host from writing may keep balancers from it too.
async fn delete_instead(registrar: &Registrar, lease: &Lease, limit: Duration, end: Instant) {
    let (unheard_wait, remove_limit) = (limit.min(UNHEARD_WAIT), limit.min(REMOVE_LIMIT));
    let deleted = registrar.set_all_and_wait(Want::Absent, end.min(Instant::now() + remove_limit)).await;
    let mut last = deleted.as_ref().err().map(ToString::to_string);
    let mut is_out = deleted.is_ok_and(|written| written.unwritten_count == 0);
    if !is_out {
        // etcd may refuse a transaction and still end a lease.
        let revoked = lease.revoke(end.min(Instant::now() + remove_limit)).await;
        last = revoked.as_ref().err().map(ToString::to_string).or(last);
        is_out = revoked.is_ok();
    }
    // A lease that can't be revoked ends at most one TTL after its last renewal.
    let wait = if is_out { unheard_wait } else { limit.min(lease.ttl + UNHEARD_WAIT) };
    let until = end.min(Instant::now() + wait);
    let wait = format_millis(wait);
    if is_out {
        tracing::warn!(wait, "records deleted, waiting for balancers");
    } else {
        let error = last.unwrap_or_default();
        tracing::warn!(wait, error, "the records can't be deleted either, waiting until their lease ends by itself");
    }
    sleep_until(until).await;
}

/// Waits until every balancer has acknowledged the records' state or removal. True if all have.
pub(crate) async fn await_acknowledgement(client: &Client, written: &Written, limit: Duration) -> bool {
    let written_at = Instant::now();
    let (records, gone) = (written.ours.len(), written.gone.len());
    tracing::info!(records, gone, limit = %humantime::format_duration(limit), "draining");
    // The removal has no known revision, so an acknowledgement may be older than it.
    let earliest = written_at + if written.has_unknown_removal { limit.min(UNHEARD_WAIT) } else { Duration::ZERO };
    let mut watch = BalancerWatch::start(client);
    loop {
        let balancers = &watch.balancers;
        let missing = balancers.list_unconfirmed(Question::Acknowledges, written);
        let is_over = Instant::now() >= earliest;
        if is_over && balancers.is_connected && balancers.is_empty() {
            tracing::info!(records, gone, "no balancer is known, not waiting");
            return true;
        }
        if is_over && balancers.is_connected && missing.is_empty() {
            let took = format_millis(written_at.elapsed());
            tracing::info!(took, records, gone, "every balancer has acknowledged the drain");
            return true;
        }
        // Without a listing no balancer is known by name, so the usual time has to do.
        let end = written_at + if balancers.was_connected { limit } else { limit.min(UNHEARD_WAIT) };
        if Instant::now() >= end {
            match balancers.is_connected {
                true => tracing::warn!(?missing, "not every balancer has acknowledged the drain in time"),
                false => tracing::warn!(records, gone, "can't read the balancers' acknowledgements"),
            }
            return false;
        }
        let next = if is_over { end } else { end.min(earliest) };
        let _ = timeout_at(next, watch.apply_next()).await;
    }
}

/// Formats a time in whole milliseconds, since nanoseconds would only blur a log line.
fn format_millis(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

/// Runs the last writes in the order of the actions, and skips actions that write nothing. A failed write doesn't stop
/// the following ones: etcd may refuse to write and still delete. The writes end with the limit, and the lease ends by
/// itself.
pub(crate) async fn withdraw_records(registrar: &Registrar, lease: &Lease, actions: &[Action], limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut failed = None;
    for action in actions {
        let done = match action {
            Action::WriteDown => {
                registrar.set_all_and_wait(Want::IfPresent(UpstreamState::Down), deadline).await.map(drop)
            }
            Action::Delete => registrar.set_all_and_wait(Want::Absent, deadline).await.map(drop),
            Action::Revoke => lease.revoke(deadline).await,
            _ => continue,
        };
        failed = done.err().map(|error| (error, action));
        if let Some((error, action)) = &failed {
            tracing::debug!(%error, ?action, "one of the last writes failed");
        }
    }
    // Not before the writes, because each of them is conditional on the key still hanging on this lease.
    lease.stop_renewal.cancel();
    // Only the last failure counts: the end of the lease removes everything, even if earlier writes failed.
    if let Some((error, action)) = failed {
        tracing::warn!(%error, ?action, "the records can't be withdrawn, they stay until their lease ends by itself");
    }
}
