//! Writes `balancers/<node>`, the balancer record, under a lease. Announcers and discoverctl wait for it.
//!
//! It is a task of its own, so an etcd that doesn't answer delays no reconcile. It deletes nothing at the end: the lease ends 10 s
//! later. Until then a restarted confgen takes the key over, and HAProxy has served all the time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use discovery::{BalancerRecord, Entry, Key, Node};
use registry::{Backoff, Client, Committed, Condition, Delays, LeaseId, Txn};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::drain::DrainedUpstream;
use crate::state_dir;
use crate::status::{Retainer, Status};

/// Announcers wait for a balancer that etcd can't reach for at most this long.
const TTL: Duration = Duration::from_secs(10);
/// The record is written at most this often, except at the end of a drain, because an announcer waits for that.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// A change is written after this. A reconcile takes a few milliseconds, so that one write tells both that confgen has seen a change
/// and that it applied it, and etcd's work doesn't compete with HAProxy's.
const SETTLE: Duration = Duration::from_millis(20);
/// The record is read this often, because an operator may have deleted it. The lease is renewed as often.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The number of leases in the state directory. One is enough, unless confgen was killed between a lease and its first write.
const LEASES: usize = 4;

/// The desired record, and the number of drains that had ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WantedRecord {
    value: BalancerRecord,
    drains_ended: u64,
}

/// The record in the store.
#[derive(Clone, Debug)]
struct WrittenRecord {
    wanted: WantedRecord,
    lease: LeaseId,
    at: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum WriteOutcome {
    Written,
    /// Another confgen has the key under this lease.
    OwnedByOther(LeaseId),
    /// The store was wiped or restored, and confgen has not listed it yet. A record with revisions of the store before would
    /// acknowledge drains that confgen has not seen.
    OtherStore,
}

/// The balancer record with whole lists. The stored one is shortened.
pub fn to_balancer_record(status: &Status) -> BalancerRecord {
    let quarantined = BTreeMap::clone(&status.reconcile.quarantined);
    BalancerRecord { quarantined, ..without_quarantine(status) }
}

fn without_quarantine(status: &Status) -> BalancerRecord {
    let (seen, reconcile) = (status.seen, &status.reconcile);
    // A revision of the store before a reset says nothing about the store after it.
    let applied = reconcile.applied.filter(|it| it.cluster == seen.cluster && it.revision <= seen.revision);
    BalancerRecord {
        cluster: seen.cluster,
        seen: seen.revision,
        applied: applied.map_or(0, |applied| applied.revision),
        url: status.url.clone(),
        instance: Some(status.identity.instance.clone()).filter(|instance| !instance.is_empty()),
        haproxy: status.haproxy.map(|version| version.to_string()),
        pending: reconcile.pending.iter().map(ToString::to_string).collect(),
        lost: Some(reconcile.reset_lost),
        guarded: Some(reconcile.retained.values().filter(|it| it.by == Retainer::Guard).count()),
        held: reconcile.retained.keys().map(server_name).collect(),
        draining: status.draining.iter().map(|(name, sessions)| (server_name(name), *sessions)).collect(),
        ..BalancerRecord::default()
    }
}

fn server_name((service, id): &DrainedUpstream) -> String {
    BalancerRecord::server_name(service, id)
}

/// The quarantined keys as they fit into the record. They may be tens of thousands, and the status changes several times with each
/// change of the store. So they are shortened only when they change.
#[derive(Default)]
struct ShortQuarantine {
    whole: Arc<BTreeMap<String, String>>,
    /// A record with these keys only.
    short: BalancerRecord,
}

impl ShortQuarantine {
    fn update(&mut self, quarantined: &Arc<BTreeMap<String, String>>) -> &BalancerRecord {
        if !Arc::ptr_eq(&self.whole, quarantined) {
            let whole = BalancerRecord { quarantined: BTreeMap::clone(quarantined), ..BalancerRecord::default() };
            *self = Self { whole: Arc::clone(quarantined), short: whole.fit_into_key() };
        }
        &self.short
    }

    fn wanted_record(&mut self, status: &Status) -> WantedRecord {
        let BalancerRecord { quarantined, more, cut, .. } = self.update(&status.reconcile.quarantined).clone();
        let value = BalancerRecord { quarantined, more, cut, ..without_quarantine(status) }.fit_into_key();
        let left_out = status.reconcile.desired.left_out_keys();
        let value = value.with_unnamed_quarantine(left_out.services(), left_out.has_unnamed_services());
        WantedRecord { value, drains_ended: status.drains_ended }
    }
}

/// True if this entry of the store is the record, under this lease. An earlier write of this confgen whose answer was lost may reach
/// etcd late, and replace a newer record. So the value counts too.
pub fn is_stored(entry: Option<&Entry>, wanted: &BalancerRecord, lease: i64) -> bool {
    entry.is_some_and(|entry| entry.lease == lease && entry.value == wanted.to_string().as_bytes())
}

/// The time for the next write, or for the next read if nothing changed. The written record is out of date since `outdated`.
fn next_write_at(
    written: Option<&WrittenRecord>,
    wanted: &WantedRecord,
    lease: LeaseId,
    outdated: Instant,
    now: Instant,
) -> Instant {
    match written {
        // A lost lease takes the key with it, and an announcer waits for the end of its drain. Neither waits a second.
        Some(written) if written.lease != lease || written.wanted.drains_ended != wanted.drains_ended => now,
        Some(written) if written.wanted.value != wanted.value => (written.at + AT_MOST_EVERY).max(outdated + SETTLE),
        Some(written) => written.at + LOOK_EVERY,
        None => now,
    }
}

/// The parts of the record that never change.
pub struct RecordConfig {
    pub client: Client,
    pub node: Node,
    /// The file with the leases of this balancer, for the next process of confgen.
    pub leases: PathBuf,
}

impl RecordConfig {
    /// Writes until the shutdown.
    pub async fn run(self, mut status: watch::Receiver<Status>, shutdown: CancellationToken) {
        let mut held = self.client.keep_lease(TTL, shutdown.clone());
        let mut keeper = RecordKeeper::open(self).await;
        let (mut outdated, mut quarantine) = (None, ShortQuarantine::default());
        loop {
            let lease = *held.borrow_and_update();
            let wanted = quarantine.wanted_record(&status.borrow_and_update());
            let now = Instant::now();
            let is_written = keeper.written.as_ref().is_some_and(|written| written.wanted == wanted);
            outdated = if is_written { None } else { outdated.or(Some(now)) };
            let since = outdated.unwrap_or(now);
            // Before the first listing the record would say that nothing is applied.
            let lease = lease.filter(|_| wanted.value.cluster != 0);
            let at = lease.map(|lease| next_write_at(keeper.written.as_ref(), &wanted, lease, since, now));
            let at = at.map(|at| keeper.not_before.map_or(at, |earliest| at.max(earliest)));
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = held.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
                () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {
                    if let Some(lease) = lease {
                        keeper.write_if_needed(wanted, lease).await;
                    }
                }
            }
        }
    }
}

struct RecordKeeper {
    config: RecordConfig,
    key: String,
    written: Option<WrittenRecord>,
    /// The leases of this balancer, the latest last. A key under one of them is this balancer's.
    leases: Vec<i64>,
    /// After a failure, the time of the next try.
    not_before: Option<Instant>,
    retries: Delays,
    /// The last logged problem. `None` while writes succeed.
    last_trouble: Option<String>,
}

/// With jitter, as for leases: balancers that lost etcd together must not all come back at the same time.
fn new_backoff() -> Delays {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(2)).with_jitter().delays()
}

impl RecordKeeper {
    async fn open(settings: RecordConfig) -> Self {
        let key = Key::Balancer(settings.node.clone()).to_string();
        // Without the file, a restarted confgen can't prove that the key is its own, and waits for the end of its lease.
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
                    tracing::info!(key = self.key, "balancer record written again");
                }
                (self.not_before, self.retries) = (None, new_backoff());
                self.written = Some(WrittenRecord { wanted, lease, at: Instant::now() });
                return;
            }
            Ok(WriteOutcome::OwnedByOther(other)) => format!(
                "another confgen writes it under the lease {other}; give each balancer a --node of its own. Announcers don't \
                 wait for this one's HAProxy until that lease has ended"
            ),
            Ok(WriteOutcome::OtherStore) => "the store was wiped or restored, it has to be listed first".to_owned(),
            Err(error) => error.to_string(),
        };
        if self.last_trouble.as_ref() != Some(&trouble) {
            tracing::warn!(key = self.key, problem = trouble, "can't write the balancer record");
        }
        self.last_trouble = Some(trouble);
        self.not_before = Some(Instant::now() + self.retries.next().unwrap_or(TTL));
    }

    /// True if the store has the record already. An unchanged record is read, not written, so that it makes no new revision.
    async fn is_in_store(&self, wanted: &WantedRecord, lease: LeaseId) -> bool {
        if !self.written.as_ref().is_some_and(|written| written.lease == lease && written.wanted == *wanted) {
            return false;
        }
        // A failed read counts as absent: the write that follows reports the error.
        let entry = self.config.client.get(&self.key).await;
        entry.is_ok_and(|entry| is_stored(entry.as_ref(), &wanted.value, lease.get()))
    }

    /// Writes the key if it is this balancer's or absent.
    async fn write_record(&self, value: &BalancerRecord, lease: LeaseId) -> Result<WriteOutcome, registry::Error> {
        // This transaction writes nothing. It returns the store's revision and the key's lease.
        let absent = Condition::Absent(self.key.clone());
        let look = Txn::new().only_if(absent.clone()).or_get(&self.key);
        let seen = self.config.client.commit(look).await?;
        if seen.revision < value.seen {
            return Ok(WriteOutcome::OtherStore);
        }
        let condition = match seen.found.first() {
            None => absent,
            // A key without a lease was written by an operator, and would never end.
            Some(entry) if entry.lease == 0 || self.leases.contains(&entry.lease) => {
                Condition::ModRevisionIs(self.key.clone(), entry.mod_revision)
            }
            Some(entry) => return Ok(WriteOutcome::OwnedByOther(entry.lease.into())),
        };
        let answer = self.put_if(condition, value, lease).await?;
        let other = answer.found.first().map_or(0, |entry| entry.lease);
        Ok(if answer.succeeded { WriteOutcome::Written } else { WriteOutcome::OwnedByOther(other.into()) })
    }

    async fn put_if(
        &self,
        condition: Condition,
        value: &BalancerRecord,
        lease: LeaseId,
    ) -> Result<Committed, registry::Error> {
        let txn = Txn::new().only_if(condition).put(&self.key, value.to_string(), Some(lease)).or_get(&self.key);
        self.config.client.commit(txn).await
    }

    /// Saves a new lease before a key is written under it.
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
            tracing::warn!(%error, "can't save the lease, a restarted confgen will wait for its end");
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
        let status = Status { seen: at(seen), reconcile: standing, ..Status::default() };
        ShortQuarantine::default().wanted_record(&status).value.applied
    }

    #[test]
    fn only_what_is_applied_of_this_very_store_counts() {
        assert_eq!(applied(None, 9), 0);
        assert_eq!(applied(Some(at(8)), 9), 8);
        assert_eq!(applied(Some(at(500)), 9), 0, "a store of the same name that was wiped");
        assert_eq!(applied(Some(StoreRevision { cluster: 8, ..at(8) }), 9), 0);
    }

    #[test]
    fn an_older_record_that_reached_etcd_late_is_not_the_wanted_one() {
        let record = |seen| {
            let status = Status { seen: at(seen), ..Status::default() };
            ShortQuarantine::default().wanted_record(&status).value
        };
        let stored = |seen, lease| {
            let (key, value) = ("balancers/lb1".to_owned(), record(seen).to_string().into_bytes());
            Entry { key, value, create_revision: 1, mod_revision: 9, lease }
        };
        let is_ours = |entry: Entry| is_stored(Some(&entry), &record(9), 1);
        assert!(is_ours(stored(9, 1)));
        assert!(!is_ours(stored(8, 1)), "an older one of ours");
        assert!(!is_ours(stored(9, 2)), "the same under another lease, which ends");
        assert!(!is_stored(None, &record(9), 1));
    }

    #[test]
    fn a_list_that_is_cut_says_so() {
        let many = (0..5000).map(|n| (format!("http-services/x/overrides/n{n:04}"), "why".to_owned()));
        let standing = ReconcileStatus { quarantined: Arc::new(many.collect()), ..ReconcileStatus::default() };
        let status = Status { reconcile: Arc::new(standing), ..Status::default() };
        let mut quarantine = ShortQuarantine::default();
        let value = quarantine.wanted_record(&status).value;
        assert_eq!((value.quarantined.len(), value.more.len()), (BalancerRecord::MAX_ENTRIES, 1));
        assert!(value.more.contains("quarantined"));
        let whole = to_balancer_record(&status).fit_into_key();
        assert_eq!(value, whole, "the lists don't depend on each other");
        assert_eq!(quarantine.wanted_record(&status).value, whole, "and are the same the next time");
        let value = quarantine.wanted_record(&Status::default()).value;
        assert!(value.quarantined.is_empty() && value.more.is_empty(), "a quarantine that ended");
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
        assert_eq!(next_write_at(None, &of(1, 0), lease, later, later), later);
        assert_eq!(next_write_at(Some(&written), &of(2, 0), lease, later, later), t + AT_MOST_EVERY);
        let long_after = t + 2 * AT_MOST_EVERY;
        assert_eq!(next_write_at(Some(&written), &of(2, 0), lease, long_after, long_after), long_after + SETTLE);
        assert_eq!(next_write_at(Some(&written), &of(2, 1), lease, later, later), later);
        assert_eq!(
            next_write_at(Some(&written), &of(1, 0), LeaseId::from(8), later, later),
            later,
            "the key went with its lease"
        );
        assert_eq!(next_write_at(Some(&written), &of(1, 0), lease, later, later), t + LOOK_EVERY);
    }
}
