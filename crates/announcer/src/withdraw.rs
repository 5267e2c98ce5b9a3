//! The way out of the store: `drain` and the wait for the balancers, then the last writes.

use std::time::Duration;

use discovery::UpstreamState;
use registry::Client;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::balancers::{BalancerWatch, Question};
use crate::lease::Lease;
use crate::record::Want;
use crate::registrar::{Registrar, Written};
use crate::state::Action;

/// How long `drain` may take to be written: an election (2 s seen) and a frozen member (noticed after 2 to 5 s) fit in.
pub(crate) const DRAIN_WRITE_LIMIT: Duration = Duration::from_secs(5);

/// The wait after `drain` where balancers can't be heard: confgen's `--restart-interval` of 2 s, which a restart waits for
/// that follows three others at once; 1 s for the restart; and HAProxy's 4 s `timeout http-keep-alive`, in which an old
/// process sends an idle client's next request to any upstream it knew.
const UNHEARD_WAIT: Duration = Duration::from_secs(7);

/// The time for each of the ways out if `drain` can't be written.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// How long the last writes may take together, and how long after a second signal.
pub(crate) const WITHDRAW_LIMIT: Duration = Duration::from_secs(5);
pub(crate) const HASTY_WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

/// Tells the balancers, and waits until none of them sends requests any more, at most this long after they were told.
/// If etcd refuses `drain`, the records are deleted. If it refuses that too, the lease ends. Either
/// way balancers get the time that they usually need: an app that stops earlier loses requests.
pub(crate) async fn drain_records(registrar: &Registrar, lease: &Lease, limit: Duration) {
    let end = Instant::now() + DRAIN_WRITE_LIMIT + limit;
    match registrar.set_all_and_wait(Want::IfPresent(UpstreamState::Drain), Instant::now() + DRAIN_WRITE_LIMIT).await {
        Ok(reached) if reached.unwritten_count > 0 => {
            tracing::warn!(
                records = reached.unwritten_count,
                "not all balancers can be told to drain: deleting the records"
            );
            delete_instead(registrar, lease, limit, end).await;
        }
        Ok(reached) if reached.ours.is_empty() && reached.gone.is_empty() => {
            tracing::info!("no record of ours in the store: nothing to drain");
        }
        Ok(reached) => await_acknowledgement(&lease.client, &reached, limit).await,
        Err(error) => {
            tracing::warn!(%error, "balancers can't be told to drain: deleting the records");
            delete_instead(registrar, lease, limit, end).await;
        }
    }
}

/// Takes the records out of the store in the way that is left, and waits as if balancers couldn't be heard: what keeps this
/// host from writing may keep them from it too.
async fn delete_instead(registrar: &Registrar, lease: &Lease, limit: Duration, end: Instant) {
    let (unheard, soon) = (limit.min(UNHEARD_WAIT), limit.min(REMOVE_LIMIT));
    let deleted = registrar.set_all_and_wait(Want::Absent, end.min(Instant::now() + soon)).await;
    let mut last = deleted.as_ref().err().map(ToString::to_string);
    let mut is_out = deleted.is_ok_and(|reached| reached.unwritten_count == 0);
    if !is_out {
        // etcd may refuse a transaction and still end a lease.
        let revoked = lease.revoke(end.min(Instant::now() + soon)).await;
        last = revoked.as_ref().err().map(ToString::to_string).or(last);
        is_out = revoked.is_ok();
    }
    let wait = if is_out { unheard } else { limit.min(lease.ttl + UNHEARD_WAIT) };
    let until = end.min(Instant::now() + wait);
    let wait = humantime::format_duration(Duration::from_millis(whole_millis(wait))).to_string();
    if is_out {
        tracing::warn!(wait, "the records are out of the store: waiting for balancers to notice");
    } else {
        let error = last.unwrap_or_default();
        tracing::warn!(wait, error, "the records can't be deleted either: waiting until their lease ends by itself");
    }
    sleep_until(until).await;
}

/// Waits until every balancer has acknowledged what the records say, or that they are gone.
async fn await_acknowledgement(client: &Client, reached: &Written, limit: Duration) {
    let written = Instant::now();
    let (records, gone) = (reached.ours.len(), reached.gone.len());
    tracing::info!(records, gone, limit = %humantime::format_duration(limit), "draining");
    // A record went at an unknown revision: an acknowledgement may be older than its end.
    let earliest = written + if reached.has_unknown_removal { limit.min(UNHEARD_WAIT) } else { Duration::ZERO };
    let mut listening = BalancerWatch::start(client);
    loop {
        let known = &listening.balancers;
        let missing = known.list_unconfirmed(Question::Acknowledges, reached);
        let is_over = Instant::now() >= earliest;
        if is_over && known.is_connected && known.is_empty() {
            return tracing::info!("no balancer is known: nobody to wait for");
        }
        if is_over && known.is_connected && missing.is_empty() {
            let took = humantime::format_duration(Duration::from_millis(whole_millis(written.elapsed()))).to_string();
            return tracing::info!(took, "every balancer has acknowledged the drain");
        }
        let end = written + if known.was_connected { limit } else { limit.min(UNHEARD_WAIT) };
        if Instant::now() >= end {
            return match known.is_connected {
                true => tracing::warn!(?missing, "not every balancer has acknowledged the drain in time"),
                false => tracing::warn!("whether balancers have acknowledged the drain isn't known"),
            };
        }
        let next = if is_over { end } else { end.min(earliest) };
        let _ = timeout_at(next, listening.apply_next()).await;
    }
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The last writes, in the order of the actions; those that are no writes are not ours. One that fails keeps none of those
/// behind it from being tried: etcd may refuse to write and still delete. They end in time, whatever etcd does: the lease
/// ends by itself.
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
    lease.stop_renewal.cancel();
    // With the lease all of it is gone, whatever failed before.
    if let Some((error, action)) = failed {
        tracing::warn!(%error, ?action, "the records can't be withdrawn: they stay until their lease ends by itself");
    }
}
