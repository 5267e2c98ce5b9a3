//! `balancers/<node>`: what this balancer runs, written under a lease for whoever waits for it.
//!
//! A task of its own, fed by the report: the state of etcd never holds up a round. Nothing is deleted at the end: the
//! lease ends 10 s later, and until then a restarted confgen takes the key over, so that nobody takes a balancer whose
//! HAProxy serves for one that has gone.

use std::path::PathBuf;
use std::time::Duration;

use discovery::{BalancerRecord, Key, Node};
use registry::{Backoff, Client, Condition, Delays, LeaseId, Txn};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::state_dir;
use crate::status::{Retainer, Status};

/// How long a balancer that is cut off from etcd is waited for.
const TTL: Duration = Duration::from_secs(10);
/// How often it is written at most, but for a drain's end: somebody waits for that.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked at, in case that somebody's hand has taken it away: as often as the lease is renewed.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How many leases are remembered. One is enough, but for a confgen that was killed between a lease and its first write.
const LEASES: usize = 4;

/// What is to be written, and when a drain ended last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WantedRecord {
    value: BalancerRecord,
    drains_ended: u64,
}

/// What stands in the store.
#[derive(Clone, Debug)]
struct WrittenRecord {
    wanted: WantedRecord,
    lease: LeaseId,
    at: Instant,
}

/// How a write went.
#[derive(Debug, PartialEq, Eq)]
enum WriteOutcome {
    Written,
    /// Another confgen has the key, under this lease.
    OwnedByOther(LeaseId),
}

/// What the report says to those who wait, with all entries of its lists.
pub fn to_balancer_record(report: &Status) -> BalancerRecord {
    let (seen, standing) = (report.seen, &report.reconcile);
    let is_of_this_store =
        |applied: &crate::store::StoreRevision| applied.cluster == seen.cluster && applied.revision <= seen.revision;
    let server = |(service, id): &crate::drain::DrainedUpstream| BalancerRecord::server_name(service, id);
    BalancerRecord {
        cluster: seen.cluster,
        seen: seen.revision,
        applied: standing.applied.filter(is_of_this_store).map_or(0, |applied| applied.revision),
        url: report.url.clone(),
        instance: Some(report.identity.instance.clone()).filter(|instance| !instance.is_empty()),
        haproxy: report.haproxy.map(|version| version.to_string()),
        pending: standing.pending.iter().map(ToString::to_string).collect(),
        lost: Some(standing.reset_lost),
        guarded: Some(standing.retained.values().filter(|it| it.by == Retainer::Guard).count()),
        held: standing.retained.keys().map(server).collect(),
        quarantined: standing.quarantined.iter().map(|(key, why)| (key.clone(), why.clone())).collect(),
        draining: report.draining.iter().map(|(name, sessions)| (server(name), *sessions)).collect(),
        ..BalancerRecord::default()
    }
}

/// What is to stand in the store.
fn wanted_record(report: &Status) -> WantedRecord {
    WantedRecord { value: to_balancer_record(report).fit_into_key(), drains_ended: report.drains_ended }
}

/// When to write, or to look whether it is still there.
fn next_write_at(written: Option<&WrittenRecord>, wanted: &WantedRecord, lease: LeaseId, now: Instant) -> Instant {
    match written {
        Some(written) if written.lease != lease || written.wanted.drains_ended != wanted.drains_ended => now,
        Some(written) if written.wanted.value != wanted.value => written.at + AT_MOST_EVERY,
        Some(written) => written.at + LOOK_EVERY,
        None => now,
    }
}

/// What is written, by whom, and what it is about.
pub struct RecordConfig {
    /// The store.
    pub client: Client,
    /// This balancer's name.
    pub node: Node,
    /// The file that keeps the leases over a restart of confgen.
    pub leases: PathBuf,
}

impl RecordConfig {
    /// Goes on until the shutdown.
    pub async fn run(self, mut report: watch::Receiver<Status>, shutdown: CancellationToken) {
        let mut held = self.client.keep_lease(TTL, shutdown.clone());
        let mut keeper = RecordKeeper::open(self).await;
        loop {
            let lease = *held.borrow_and_update();
            let wanted = wanted_record(&report.borrow_and_update());
            // Before the store is known there is nothing to say.
            let lease = lease.filter(|_| wanted.value.cluster != 0);
            let at = lease.map(|lease| next_write_at(keeper.written.as_ref(), &wanted, lease, Instant::now()));
            let at = at.map(|at| keeper.not_before.map_or(at, |earliest| at.max(earliest)));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = held.changed() => if changed.is_err() { return },
                changed = report.changed() => if changed.is_err() { return },
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                    if let Some(lease) = lease {
                        keeper.write_if_needed(wanted, lease).await;
                    }
                }
            }
        }
    }
}

/// Keeps the key as it is wanted.
struct RecordKeeper {
    config: RecordConfig,
    key: String,
    written: Option<WrittenRecord>,
    /// Leases of this balancer, the latest last: a key under one of them is its own.
    leases: Vec<i64>,
    /// After a failure.
    not_before: Option<Instant>,
    retries: Delays,
    /// What was last said of a failure.
    last_trouble: Option<String>,
}

/// Like the lease, so that balancers that lost etcd together don't come back in one instant.
fn new_backoff() -> Delays {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(2)).with_jitter().delays()
}

impl RecordKeeper {
    async fn open(settings: RecordConfig) -> Self {
        let key = Key::Balancer(settings.node.clone()).to_string();
        let text = tokio::fs::read_to_string(&settings.leases).await.unwrap_or_default();
        let leases = text.lines().filter_map(|line| line.parse().ok()).collect();
        Self {
            config: settings,
            key,
            written: None,
            leases,
            not_before: None,
            retries: new_backoff(),
            last_trouble: None,
        }
    }

    async fn write_if_needed(&mut self, wanted: WantedRecord, lease: LeaseId) {
        self.remember_lease(lease).await;
        let answer = if self.is_in_store(&wanted, lease).await {
            Ok(WriteOutcome::Written)
        } else {
            self.write_record(&wanted.value, lease).await
        };
        let trouble = match answer {
            Ok(WriteOutcome::Written) => {
                if self.last_trouble.take().is_some() {
                    tracing::info!("{}: written", self.key);
                }
                (self.not_before, self.retries) = (None, new_backoff());
                self.written = Some(WrittenRecord { wanted, lease, at: Instant::now() });
                return;
            }
            Ok(WriteOutcome::OwnedByOther(other)) => format!(
                "another confgen writes it, under the lease {other}: give each balancer a --node of its own. Nobody \
                 waits for this one's HAProxy until that lease has ended"
            ),
            Err(error) => error.to_string(),
        };
        if self.last_trouble.as_ref() != Some(&trouble) {
            tracing::warn!("{}: {trouble}", self.key);
        }
        self.last_trouble = Some(trouble);
        self.not_before = Some(Instant::now() + self.retries.next().unwrap_or(TTL));
    }

    /// Whether all of it stands there already: looked at, so that a value that stays the same is not written anew.
    async fn is_in_store(&self, wanted: &WantedRecord, lease: LeaseId) -> bool {
        if !self.written.as_ref().is_some_and(|written| written.lease == lease && written.wanted == *wanted) {
            return false;
        }
        let entry = self.config.client.get(&self.key).await;
        entry.is_ok_and(|entry| entry.is_some_and(|entry| entry.lease == lease.get()))
    }

    /// Writes the key where it is this balancer's, or nobody's.
    async fn write_record(&self, value: &BalancerRecord, lease: LeaseId) -> Result<WriteOutcome, registry::Error> {
        let put = |condition| {
            let txn = Txn::new().only_if(condition).put(&self.key, value.to_string(), Some(lease)).or_get(&self.key);
            self.config.client.commit(txn)
        };
        let answer = put(Condition::LeaseIs(self.key.clone(), lease)).await?;
        if answer.succeeded {
            return Ok(WriteOutcome::Written);
        }
        let answer = match answer.found.first() {
            None => put(Condition::Absent(self.key.clone())).await?,
            // Without a lease it is of somebody's hand, and would never end.
            Some(entry) if entry.lease == 0 || self.leases.contains(&entry.lease) => {
                put(Condition::ModRevisionIs(self.key.clone(), entry.mod_revision)).await?
            }
            Some(entry) => return Ok(WriteOutcome::OwnedByOther(entry.lease.into())),
        };
        let other = answer.found.first().map_or(0, |entry| entry.lease);
        Ok(if answer.succeeded { WriteOutcome::Written } else { WriteOutcome::OwnedByOther(other.into()) })
    }

    /// Remembers a new lease before anything hangs on it.
    async fn remember_lease(&mut self, lease: LeaseId) {
        if self.leases.last() == Some(&lease.get()) {
            return;
        }
        self.leases.push(lease.get());
        self.leases.drain(..self.leases.len().saturating_sub(LEASES));
        let (path, text) =
            (self.config.leases.clone(), self.leases.iter().map(|lease| format!("{lease}\n")).collect::<String>());
        let kept = tokio::task::spawn_blocking(move || state_dir::replace_file(&path, text.as_bytes(), 0o600)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!("{error}; a restarted confgen will wait for its own lease's end");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::status::ReconcileStatus;
    use crate::store::StoreRevision;

    fn at(revision: i64) -> StoreRevision {
        StoreRevision { cluster: 7, raft_term: 2, revision }
    }

    fn applied(applied: Option<StoreRevision>, seen: i64) -> i64 {
        let standing = Arc::new(ReconcileStatus { applied, ..ReconcileStatus::default() });
        wanted_record(&Status { seen: at(seen), reconcile: standing, ..Status::default() }).value.applied
    }

    #[test]
    fn only_what_is_applied_of_this_very_store_counts() {
        assert_eq!(applied(None, 9), 0);
        assert_eq!(applied(Some(at(8)), 9), 8);
        assert_eq!(applied(Some(at(500)), 9), 0, "a store of the same name that was wiped");
        assert_eq!(applied(Some(StoreRevision { cluster: 8, ..at(8) }), 9), 0);
    }

    #[test]
    fn a_list_that_is_cut_says_so() {
        let many = (0..5000).map(|n| (format!("http-services/x/overrides/n{n:04}"), "why".to_owned()));
        let standing = ReconcileStatus { quarantined: many.collect(), ..ReconcileStatus::default() };
        let value = wanted_record(&Status { reconcile: Arc::new(standing), ..Status::default() }).value;
        assert_eq!((value.quarantined.len(), value.more.len()), (BalancerRecord::MAX_ENTRIES, 1));
        assert!(value.more.contains("quarantined"));
    }

    #[test]
    fn a_drains_end_is_written_at_once_and_all_else_once_a_second() {
        let (t, lease) = (Instant::now(), LeaseId::from(7));
        let later = t + Duration::from_millis(100);
        let of = |seen, drained| WantedRecord {
            value: BalancerRecord { seen, ..BalancerRecord::default() },
            drains_ended: drained,
        };
        let written = WrittenRecord { wanted: of(1, 0), lease, at: t };
        assert_eq!(next_write_at(None, &of(1, 0), lease, later), later);
        assert_eq!(next_write_at(Some(&written), &of(2, 0), lease, later), t + AT_MOST_EVERY);
        assert_eq!(next_write_at(Some(&written), &of(2, 1), lease, later), later);
        assert_eq!(
            next_write_at(Some(&written), &of(1, 0), LeaseId::from(8), later),
            later,
            "the key went with its lease"
        );
        assert_eq!(next_write_at(Some(&written), &of(1, 0), lease, later), t + LOOK_EVERY);
    }
}
