//! The calls of the product: each runs once for each distinct argument ([`crate::intern`]). Seeded bugs change an argument here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use announcer::decisions::{
    BalancerStates, KeyObservation, Question, Record, RecordSet, State as Life, WaitVerdict, Want, Written,
    is_as_written, judge_wait,
};
use confgen::decisions::{OldProcess, SessionCount, Streams, is_stored};
use discovery::{BalancerRecord, Entry, Kind, ServiceId, Snapshot, UpstreamId, UpstreamState};
use registry::{Condition, Event, LeaseId, Txn, Write};

use crate::brain::{BASE, Brain, Facts, File, state_in};
use crate::drain::haproxy::{AGES, Client, Counting, OLDEST, Process, Server};
use crate::drain::{Announcer, Balancer, RECORD, Size, State};
use crate::etcd::Etcd;
use crate::intern::{Id, Memo, Pool};
use crate::proof::{Bug, Continuation};

/// The RecordSet of the announcer, and what the last attempt read because its conditions failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Writer {
    pub(super) set: RecordSet,
    pub(super) found: Option<Vec<Entry>>,
}
/// The model with its production objects.
pub struct Drain {
    pub(super) size: Size,
    pub(super) bug: Option<Bug>,
    pub(super) shop: ServiceId,
    pub(super) a: UpstreamId,
    pub(super) etcds: Pool<Etcd>,
    pub(super) brains: Pool<Brain>,
    pub(super) writers: Pool<Writer>,
    pub(super) records: Pool<Option<BalancerRecord>>,
    pub(super) views: Pool<BalancerStates>,
    pub(super) txns: Pool<Txn>,
    pub(super) brain_steps: Memo<(Id, BrainStep), Id>,
    pub(super) tables: Memo<Id, BrainView>,
    pub(super) rounds: Memo<(Id, Id, Outcome), Round>,
    pub(super) wants: Memo<(Id, u8, WantKey), Id>,
    pub(super) seen: Memo<(Id, Id), Id>,
    pub(super) judged: Memo<(Id, Id, u8), WaitVerdict>,
    pub(super) delivered: Memo<(Id, [Id; 2], Id), Id>,
    pub(super) stores: Memo<(Id, StoreStep), Id>,
    pub(super) same_records: Memo<(Id, Id), bool>,
    pub(crate) good: Continuation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum BrainStep {
    Follow(Id),
    Disconnect,
    Reconcile(bool),
    BeginPublish,
    EndPublish(u8),
    Count(Counting, u8, bool),
    Restart,
}

/// The writer and etcd after a transaction, and the transaction that may still arrive.
type Round = (Id, Id, Option<Id>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Answered,
    AnswerLost,
    Delayed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum WantKey {
    Ready,
    Drain,
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StoreStep {
    Commit(Id),
    EndLease(u8),
    Grant(u8),
    PutByHand,
    Wipe,
}

/// The facts of a brain that a state needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct BrainView {
    pub(super) wanted: Server,
    pub(super) drafted: (Server, i64),
    pub(super) followed: Option<i64>,
    pub(super) is_due: bool,
    pub(super) needs_publish: bool,
    pub(super) open_drains: usize,
    pub(super) record: Id,
    pub(super) applied: (u64, i64),
    pub(super) is_current: bool,
}

impl Drain {
    /// The model of this size, with one seeded bug or none.
    pub fn new(size: Size, bug: Option<Bug>) -> Self {
        #[expect(clippy::expect_used, reason = "constant names")]
        let (name, a) = ("shop".parse().expect("a name"), "a".parse().expect("an id"));
        let shop = ServiceId { kind: Kind::Http, name };
        Self {
            size,
            bug,
            shop,
            a,
            etcds: Pool::default(),
            brains: Pool::default(),
            writers: Pool::default(),
            records: Pool::default(),
            views: Pool::default(),
            txns: Pool::default(),
            brain_steps: Memo::default(),
            tables: Memo::default(),
            rounds: Memo::default(),
            wants: Memo::default(),
            seen: Memo::default(),
            judged: Memo::default(),
            delivered: Memo::default(),
            stores: Memo::default(),
            same_records: Memo::default(),
            good: Continuation::default(),
        }
    }

    pub(super) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// An announcer that has not announced, and balancers without a reconcile.
    pub(super) fn cold(&self) -> State {
        let mut etcd = Etcd::new(7);
        etcd.put("http-services/shop/domain", "shop.test", 0);
        etcd.put("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","permanent":true}"#, 0);
        etcd.grant(1);
        let etcd = self.etcds.put(etcd);
        let none = self.records.put(None);
        let balancer = Balancer {
            brain: self.brains.put(Brain::default()),
            running: Process::started(Server::Absent),
            pid: 0,
            old: [None; 2],
            observed: 0,
            seen_age: OLDEST,
            is_confirmed: false,
            is_stale: true,
            believed: Server::Absent,
            file: Server::Absent,
            writing: None,
            count: None,
            is_retired: false,
            is_tampered: false,
            record: none,
            told: none,
            late: None,
        };
        let writer = self.writers.put(Writer::default());
        let announcer = Announcer { life: Life::Starting, writer, lease: 1, late: None, wait: None };
        State { etcd, balancers: [balancer; 2], announcer, faults: 0, requests: 0, violated: None }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.size.balancers
    }

    pub(super) fn brain_step(&self, brain: Id, step: BrainStep) -> Id {
        self.brain_steps.get_or((brain, step), || {
            let mut next = Brain::clone(&self.brains.get(brain));
            match step {
                BrainStep::Follow(etcd) => {
                    let etcd = self.etcds.get(etcd);
                    match next.followed {
                        Some(revision) if next.replica().store_revision().cluster == etcd.cluster => {
                            etcd.next_after(revision).iter().for_each(|event| next.apply(event));
                        }
                        _ => next.list(&etcd.snapshot()),
                    }
                }
                BrainStep::Disconnect => next.followed = None,
                BrainStep::Reconcile(answers) => {
                    let up: BTreeSet<String> = ["http-shop/a", "http-shop/b"].map(str::to_owned).into();
                    let (pending, leases) = (BTreeSet::new(), BTreeSet::new());
                    let present = up.clone();
                    next.reconcile(&Facts { up: Some(up), present, leases, answers, pending, old_listens: false });
                }
                BrainStep::BeginPublish => next.begin_publish(),
                BrainStep::EndPublish(revision) => next.end_publish(revision.into()),
                BrainStep::Count(counting, observed, is_confirmed) => {
                    self.end_count(&mut next, counting, observed, is_confirmed);
                }
                BrainStep::Restart => next = next.restarted(true),
            }
            self.brains.put(next)
        })
    }

    pub(super) fn end_count(&self, brain: &mut Brain, counting: Counting, observed: u8, is_confirmed: bool) {
        let at = if counting.before_drain { *BASE - Duration::from_secs(9) } else { *BASE + Duration::from_secs(9000) };
        let age = |step: u8| AGES.get(usize::from(step)).copied().unwrap_or_default();
        let mut old_processes: Vec<OldProcess> = Vec::new();
        for (counted, client) in counting.old.into_iter().flatten() {
            let idle = u64::from(client == Client::Idle);
            let streams = Streams { connections: 1, idle, unrouted: 0, undecided: BTreeMap::new() };
            let since = if self.has(Bug::SkipKeepAliveWait) { age(OLDEST) } else { age(counted) };
            old_processes.push(OldProcess { since: Some(at - since), streams: Some(streams) });
        }
        if self.has(Bug::ForgetOldProcesses) {
            old_processes.clear();
        }
        let sessions = [(("http-shop".to_owned(), "a".to_owned()), u64::from(counting.sessions))].into();
        let (pid, is_complete) = (Some(u32::from(counting.pid)), counting.is_complete);
        let (silent_since, is_blind) = (None, false);
        let count = SessionCount { at, pid, sessions, old_processes, silent_since, is_blind, is_complete };
        let file = match self.has(Bug::SkipFile) {
            true => File::Unchecked,
            false => File::AsWritten { since_begin: counting.before_file },
        };
        let process = Some((u32::from(observed), at - age(counting.seen_age)));
        brain.count(&count, process, is_confirmed, file);
    }

    pub(super) fn look(&self, brain: Id) -> BrainView {
        self.tables.get_or(brain, || {
            let it = self.brains.get(brain);
            let (revision, desired) = it.draft();
            let record = it.record();
            let is_known = record.cluster != 0;
            BrainView {
                wanted: Server::from_state(it.wanted(&self.shop, &self.a)),
                drafted: (Server::from_state(state_in(desired, &self.shop, &self.a)), revision),
                followed: it.followed,
                is_due: it.is_due,
                needs_publish: it.published() != it.reconciled() && it.is_current(),
                open_drains: it.open_drains(),
                applied: (record.cluster, record.applied),
                record: self.records.put(is_known.then_some(record)),
                is_current: it.is_current(),
            }
        })
    }

    pub(super) fn store_step(&self, etcd: Id, step: StoreStep) -> Id {
        self.stores.get_or((etcd, step), || {
            let mut next = Etcd::clone(&self.etcds.get(etcd));
            match step {
                StoreStep::Commit(txn) => _ = next.commit(&self.txns.get(txn)),
                StoreStep::EndLease(lease) => next.end_lease(lease.into()),
                StoreStep::Grant(lease) => next.grant(lease.into()),
                StoreStep::PutByHand => next.put(RECORD, "10.0.0.1:80", 0),
                StoreStep::Wipe => next = next.wiped(),
            }
            self.etcds.put(next)
        })
    }

    pub(super) fn want(&self, writer: Id, lease: u8, want: WantKey) -> Id {
        self.wants.get_or((writer, lease, want), || {
            let mut next = Writer::clone(&self.writers.get(writer));
            let want = match want {
                WantKey::Ready => Want::Present(UpstreamState::Ready),
                WantKey::Drain => Want::IfPresent(UpstreamState::Drain),
                WantKey::Absent => Want::Absent,
            };
            next.set.set_wants(Some(LeaseId::from(i64::from(lease))), &[(our_record(), want)]);
            next.found = None;
            self.writers.put(next)
        })
    }

    /// One attempt of the announcer to write what its records need.
    pub(super) fn write(&self, writer: Id, etcd: Id, outcome: Outcome) -> (Id, Id, Option<Id>) {
        self.rounds.get_or((writer, etcd, outcome), || {
            let mut next = Writer::clone(&self.writers.get(writer));
            let mut store = Etcd::clone(&self.etcds.get(etcd));
            let found = next.found.take();
            let Some(indices) = next.set.plan_parts().into_iter().next() else { return (writer, etcd, None) };
            let part = next.set.draft_part(&indices, true, found.as_deref());
            if part.is_empty() {
                next.set.mark_written(&part, 0);
                return (self.writers.put(next), etcd, None);
            }
            if outcome == Outcome::Delayed {
                let txn = self.delayed(part.transaction());
                return (self.writers.put(next), etcd, Some(self.txns.put(txn)));
            }
            match store.commit(part.transaction()).filter(|_| outcome == Outcome::Answered) {
                Some(committed) if committed.succeeded => _ = next.set.mark_written(&part, committed.revision),
                Some(committed) => next.found = Some(committed.found),
                None => {}
            }
            (self.writers.put(next), self.etcds.put(store), None)
        })
    }

    /// A transaction that etcd carries out late.
    fn delayed(&self, txn: &Txn) -> Txn {
        if !self.has(Bug::LateByLease) {
            return txn.clone();
        }
        txn.writes().iter().fold(Txn::new(), |late, write| match write {
            Write::Put { key, value, lease: Some(lease) } => {
                late.only_if(Condition::LeaseIs(key.clone(), *lease)).put(key, value.clone(), Some(*lease))
            }
            Write::Put { key, value, lease: None } => late.put(key, value.clone(), None),
            Write::Delete { key } => late.delete(key),
        })
    }

    pub(super) fn needs_write(&self, writer: Id) -> bool {
        !self.writers.get(writer).set.plan_parts().is_empty()
    }

    /// What etcd's watch tells of the announcer's key.
    pub(super) fn see_own_key(&self, writer: Id, etcd: Id) -> Id {
        self.seen.get_or((writer, etcd), || {
            let mut next = Writer::clone(&self.writers.get(writer));
            let store = self.etcds.get(etcd);
            let is_other_store = store.cluster != 7;
            let seen = KeyObservation { entry: store.get(RECORD), revision: store.revision, is_other_store };
            next.set.observe_key(RECORD, seen);
            self.writers.put(next)
        })
    }

    pub(super) fn see_records(&self, view: Id, state: &State) -> Id {
        let records = state.balancers.map(|it| it.record);
        self.delivered.get_or((view, records, state.etcd), || {
            let store = self.etcds.get(state.etcd);
            let mut next = BalancerStates::clone(&self.views.get(view));
            let entries = self.nodes().zip(records).filter_map(|(node, record)| {
                let record = BalancerRecord::clone(self.records.get(record).as_ref().as_ref()?);
                let cluster = if self.has(Bug::AcceptOtherCluster) { store.cluster } else { record.cluster };
                let value = BalancerRecord { cluster, ..record }.to_string().into_bytes();
                let (create_revision, mod_revision, lease) = (store.revision, store.revision, 99);
                Some(Entry { key: format!("balancers/lb{node}"), value, create_revision, mod_revision, lease })
            });
            let mut entries: Vec<Entry> = entries.collect();
            if self.has(Bug::CountGoneBalancer) {
                let known = nodes_of(&next).into_iter().map(|node| format!("balancers/{node}"));
                let gone: Vec<String> = known.filter(|key| entries.iter().all(|it| it.key != *key)).collect();
                let entry = |key| Entry { key, value: b"?".into(), create_revision: 1, mod_revision: 1, lease: 99 };
                entries.extend(gone.into_iter().map(entry));
            }
            let (cluster, revision, raft_term) = (store.cluster, store.revision, store.term);
            next.apply_event(Event::Snapshot(Snapshot { cluster, revision, raft_term, entries }));
            self.views.put(next)
        })
    }

    pub(super) fn verdict(&self, writer: Id, view: Id, first: u8) -> WaitVerdict {
        self.judged.get_or((writer, view, first), || {
            let mut written = Written::from_set(&self.writers.get(writer).set).not_before(first.into());
            if self.has(Bug::AcceptEarlier) {
                written.revision = 0;
            }
            judge_wait(&self.views.get(view), &written, Duration::from_secs(8), Duration::from_secs(15))
        })
    }

    /// True if the store has the announcer's record as it was written.
    pub(super) fn is_as_written(&self, written: &Written, etcd: Id) -> bool {
        let found: Vec<Entry> = self.etcds.get(etcd).get(RECORD).cloned().into_iter().collect();
        self.has(Bug::SkipRecheck) || is_as_written(written, &found)
    }

    /// True if confgen takes the record in the store for the one that it wants there. All are under its lease.
    pub(super) fn is_stored(&self, stored: Id, wanted: Id) -> bool {
        self.same_records.get_or((stored, wanted), || {
            let (stored, wanted) = (self.records.get(stored), self.records.get(wanted));
            let entry = stored.as_ref().as_ref().map(|record| Entry {
                key: "balancers/lb".to_owned(),
                value: record.to_string().into_bytes(),
                create_revision: 1,
                mod_revision: 1,
                lease: 99,
            });
            self.has(Bug::RecordByLease) && entry.is_some()
                || wanted.as_ref().as_ref().is_some_and(|wanted| is_stored(entry.as_ref(), wanted, 99))
        })
    }
}

/// All balancers that have a record, by name.
pub(super) fn nodes_of(view: &BalancerStates) -> Vec<String> {
    let nothing = Written { revision: i64::MAX, ours: vec![our_record()], ..Written::default() };
    view.list_unconfirmed(Question::Acknowledges, &nothing).into_iter().map(str::to_owned).collect()
}

pub(super) fn our_record() -> Arc<Record> {
    let (key, value) = (RECORD.to_owned(), b"10.0.0.1:80".to_vec());
    let entry = Entry { key, value, create_revision: 1, mod_revision: 1, lease: 1 };
    #[expect(clippy::expect_used, reason = "a constant record")]
    let (record, _) = Record::from_entry(&entry).expect("a record");
    Arc::new(record)
}
