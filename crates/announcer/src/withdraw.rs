//! Takes the records out of the store: `drain` and the wait for the balancers, then the last writes. It never stops the
//! app.

use std::sync::Arc;
use std::time::Duration;

use discovery::{Entry, Upstream, UpstreamState};
use registry::Client;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::balancers::{BalancerStates, BalancerWatch, Question};
use crate::lease::Lease;
use crate::record::{Record, Want};
use crate::registrar::{Registrar, Written};
use crate::state::Action;

/// Limit for writing `drain`. An election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
pub(crate) const DRAIN_WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Wait after `drain` if the balancers' records can't be read: 2 s for confgen's `--restart-interval`, which a restart
/// waits for if it follows three others at once; 1 s for the restart; 4 s for HAProxy's `timeout http-keep-alive`, in
/// which an old process sends an idle client's next request to any upstream that it knew.
const UNHEARD_WAIT: Duration = Duration::from_secs(7);

/// Pause before records that another writer has changed are read again. The registrar writes them anew meanwhile.
const RECHECK: Duration = Duration::from_millis(200);

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
        Ok(_) => await_acknowledgement(&lease.client, || registrar.latest_written(), limit).await,
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

/// The position of a wait for acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitVerdict {
    /// No balancer is known, and so none is waited for.
    NoBalancer,
    /// Every balancer has acknowledged.
    Acknowledged,
    /// The wait goes on until this time after its begin, or until news of a balancer.
    Waiting(Duration),
    /// The time is over, and a balancer has not acknowledged.
    OutOfTime,
}

/// Judges a wait that has taken `elapsed` of `limit`. Pure.
pub fn judge_wait(balancers: &BalancerStates, written: &Written, elapsed: Duration, limit: Duration) -> WaitVerdict {
    // The removal has no known revision, so an acknowledgement may be older than it.
    let earliest = if written.has_unknown_removal { limit.min(UNHEARD_WAIT) } else { Duration::ZERO };
    // A record that another writer has changed is being written again. Until then no acknowledgement is about it.
    let may_end = elapsed >= earliest && written.unwritten_count == 0;
    if may_end && balancers.is_connected && balancers.is_empty() {
        return WaitVerdict::NoBalancer;
    }
    if may_end && balancers.is_connected && balancers.list_unconfirmed(Question::Acknowledges, written).is_empty() {
        return WaitVerdict::Acknowledged;
    }
    // Without a listing no balancer is known by name, so the usual time has to do.
    let end = if balancers.was_connected { limit } else { limit.min(UNHEARD_WAIT) };
    match elapsed >= end {
        true => WaitVerdict::OutOfTime,
        false => WaitVerdict::Waiting(if may_end { end } else { end.min(earliest) }),
    }
}

/// True if the store has our records as they were written. Balancers acknowledge revisions. If another writer has made a record
/// `ready` again since, a balancer has applied the drain's revision and sends requests all the same. Pure.
pub fn is_as_written(written: &Written, found: &[Entry]) -> bool {
    let is_unchanged =
        |record: &Arc<Record>| record.find_entry(found).is_some_and(|entry| entry.mod_revision <= written.revision);
    // A record that is gone may be back by hand, without a lease, and leads to our app again.
    let is_back = |record: &Arc<Record>| {
        let entry = record.find_entry(found).filter(|entry| entry.lease == 0);
        entry
            .and_then(|entry| Upstream::parse(&entry.value).ok())
            .is_some_and(|upstream| upstream.address == record.address() && upstream.state == UpstreamState::Ready)
    };
    written.ours.iter().all(is_unchanged) && !written.gone.iter().any(is_back)
}

/// Reads our records and compares them. An etcd that doesn't answer counts as a difference.
async fn check_records(client: &Client, written: &Written) -> bool {
    let mut found = Vec::new();
    for record in written.ours.iter().chain(&written.gone) {
        let Ok(entry) = client.get(&record.key()).await else { return false };
        found.extend(entry);
    }
    is_as_written(written, &found)
}

/// Waits until every balancer has acknowledged the records' state or removal. `latest` returns the records as last written: if
/// another writer changes one during the wait, the registrar writes it again, and that revision counts. True if all have.
pub(crate) async fn await_acknowledgement(client: &Client, latest: impl Fn() -> Written, limit: Duration) -> bool {
    let written_at = Instant::now();
    let first = latest();
    let (records, gone) = (first.ours.len(), first.gone.len());
    tracing::info!(records, gone, limit = %humantime::format_duration(limit), "draining");
    let mut watch = BalancerWatch::start(client);
    loop {
        let (balancers, written) = (&watch.balancers, latest().not_before(first.revision));
        match judge_wait(balancers, &written, written_at.elapsed(), limit) {
            WaitVerdict::NoBalancer => {
                tracing::info!(records, gone, "no balancer is known, not waiting");
                return true;
            }
            WaitVerdict::Acknowledged if !check_records(client, &written).await => {
                if written_at.elapsed() >= limit {
                    tracing::warn!("another writer has changed the records since the drain");
                    return false;
                }
                sleep_until(Instant::now() + RECHECK).await;
            }
            WaitVerdict::Acknowledged => {
                let took = format_millis(written_at.elapsed());
                tracing::info!(took, records, gone, "every balancer has acknowledged the drain");
                return true;
            }
            WaitVerdict::OutOfTime => {
                let missing = balancers.list_unconfirmed(Question::Acknowledges, &written);
                match balancers.is_connected {
                    true => tracing::warn!(?missing, "not every balancer has acknowledged the drain in time"),
                    false => tracing::warn!(records, gone, "can't read the balancers' acknowledgements"),
                }
                return false;
            }
            WaitVerdict::Waiting(until) => _ = timeout_at(written_at + until, watch.apply_next()).await,
        }
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
