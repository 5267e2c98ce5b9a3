//! The steps of the world: what each does, and when it can happen. Every decision is a call in `calls.rs`.

use announcer::decisions::{self as app, BalancerStates, State as Life, WaitVerdict, Written};

use crate::drain::calls::{BrainStep, Drain, Outcome, StoreStep, WantKey, nodes_of};
use crate::drain::haproxy::{Client, OLDEST, Server, UNCOUNTED, pass_time};
use crate::drain::{APPLIED, ATTEMPT, Balancer, POLITE, RECORD, State, Step, confgen_steps};

impl Drain {
    /// The state after a step. `None` if the step can't happen, or changes nothing.
    pub(super) fn apply(&self, state: &State, step: Step) -> Option<State> {
        let mut next = *state;
        match step {
            Step::Announce
            | Step::Write
            | Step::OwnKey
            | Step::NewLease
            | Step::Stop
            | Step::Wait
            | Step::SeeRecords
            | Step::StopApp
            | Step::GiveUp
            | Step::Withdraw
            | Step::LateWrite
            | Step::DropWrite => self.announcer_step(&mut next, step)?,
            Step::Follow(node)
            | Step::Reconcile(node)
            | Step::Observe(node)
            | Step::BeginPublish(node)
            | Step::EndPublish(node)
            | Step::BeginCount(node)
            | Step::EndCount(node)
            | Step::LateRecord(node)
            | Step::Record(node) => self.confgen_step(&mut next, usize::from(node), step)?,
            Step::StopListening(node, at)
            | Step::Connect(node, at)
            | Step::Request(node, at)
            | Step::Finish(node, at)
            | Step::Close(node, at) => self.client_step(&mut next, usize::from(node), at, step)?,
            Step::Follow2 => {
                for step in confgen_steps(1) {
                    next = self.apply(&next, step).unwrap_or(next);
                }
            }
            Step::Time => pass_time(&mut next, self.size.balancers)?,
            _ => self.fault_step(&mut next, step)?,
        }
        next.balancers.iter_mut().for_each(Balancer::forget_times);
        (next != *state).then_some(next)
    }

    pub(super) fn announcer_step(&self, state: &mut State, step: Step) -> Option<()> {
        let it = &mut state.announcer;
        match step {
            Step::Announce => match it.life {
                Life::Starting => {
                    it.life = app::step(it.life, app::Event::Healthy).0;
                    it.writer = self.want(it.writer, it.lease, WantKey::Ready);
                }
                Life::Announcing if self.writers.get(it.writer).set.is_complete() => {
                    let life = app::step(it.life, app::Event::Registered).0;
                    it.life = app::step(life, app::Event::AllBalancersApplied).0;
                }
                _ => return None,
            },
            Step::Write if self.needs_write(it.writer) => {
                let (writer, etcd, _) = self.write(it.writer, state.etcd, Outcome::Answered);
                (it.writer, state.etcd) = (writer, etcd);
            }
            Step::OwnKey if it.life != Life::Done => {
                it.writer = self.see_own_key(it.writer, state.etcd);
                if it.life == Life::Announced && !self.writers.get(it.writer).set.is_complete() {
                    it.life = app::step(it.life, app::Event::RecordsLost).0;
                }
            }
            Step::NewLease if it.life != Life::Done && !self.etcds.get(state.etcd).is_alive(it.lease.into()) => {
                it.lease += 1;
                state.etcd = self.store_step(state.etcd, StoreStep::Grant(it.lease));
                it.writer = self.want(it.writer, it.lease, want_of(it.life)?);
                if it.life == Life::Announced {
                    it.life = app::step(it.life, app::Event::RecordsLost).0;
                }
            }
            Step::Stop if matches!(it.life, Life::Announcing | Life::Announced) => {
                it.life = app::step(it.life, app::Event::Stop).0;
                it.writer = self.want(it.writer, it.lease, WantKey::Drain);
            }
            Step::Wait if it.life == Life::Draining && it.wait.is_none() && !self.needs_write(it.writer) => {
                let written = Written::from_set(&self.writers.get(it.writer).set);
                if written.ours.is_empty() && written.gone.is_empty() {
                    // Nothing of ours is in the store, so that nothing is waited for.
                    it.life = app::step(it.life, app::Event::Drained).0;
                } else {
                    let revision = u8::try_from(written.revision).unwrap_or(u8::MAX);
                    it.wait = Some((self.views.put(BalancerStates::default()), revision));
                }
            }
            Step::SeeRecords => {
                let (view, revision) = it.wait.filter(|_| it.life == Life::Draining)?;
                state.announcer.wait = Some((self.see_records(view, state), revision));
            }
            Step::StopApp if it.life == Life::Draining => self.stop_app(state)?,
            Step::GiveUp if it.life == Life::Draining && it.wait.is_some() => {
                let store = self.etcds.get(state.etcd);
                if store.cluster == 7 && store.get(RECORD).is_none_or(|entry| entry.lease != 0) {
                    return None;
                }
                it.life = app::step(it.life, app::Event::Drained).0;
            }
            Step::Withdraw => match it.life {
                Life::Stopping => {
                    it.life = app::step(it.life, app::Event::AppGone).0;
                    it.writer = self.want(it.writer, it.lease, WantKey::Absent);
                    it.wait = None;
                }
                Life::Withdrawing if !self.needs_write(it.writer) => {
                    state.etcd = self.store_step(state.etcd, StoreStep::EndLease(it.lease));
                    it.life = app::step(it.life, app::Event::Withdrawn).0;
                }
                _ => return None,
            },
            Step::LateWrite => state.etcd = self.store_step(state.etcd, StoreStep::Commit(it.late.take()?)),
            Step::DropWrite => _ = it.late.take()?,
            _ => return None,
        }
        Some(())
    }

    /// The app gets its stop signal, because every balancer has acknowledged. Here the promises to the clients are due.
    pub(super) fn stop_app(&self, state: &mut State) -> Option<()> {
        let (view, first) = state.announcer.wait?;
        let written = Written::from_set(&self.writers.get(state.announcer.writer).set).not_before(first.into());
        match self.verdict(state.announcer.writer, view, first) {
            WaitVerdict::Acknowledged if !self.is_as_written(&written, state.etcd) => return None,
            WaitVerdict::Acknowledged | WaitVerdict::NoBalancer => {}
            WaitVerdict::Waiting(_) | WaitVerdict::OutOfTime => return None,
        }
        state.announcer.life = app::step(state.announcer.life, app::Event::Drained).0;
        if written.has_unknown_removal {
            // The store has lost the record, and its removal has no revision that balancers could acknowledge. The announcer has
            // waited for 7 s instead, which promises nothing.
            return Some(());
        }
        let waited = nodes_of(&self.views.get(view));
        let revision = written.revision;
        let cluster = self.etcds.get(state.etcd).cluster;
        for node in self.nodes().filter(|node| waited.contains(&format!("lb{node}"))) {
            let Some(balancer) = state.balancers.get(usize::from(node)).filter(|it| !it.is_tampered) else { continue };
            let replica = self.brains.get(balancer.brain).replica().store_revision();
            if balancer.harms_a() {
                state.violated = state.violated.or(Some(POLITE));
            } else if !written.ours.is_empty() && (replica.cluster != cluster || replica.revision < revision) {
                state.violated = state.violated.or(Some(ATTEMPT));
            }
        }
        Some(())
    }

    pub(super) fn confgen_step(&self, state: &mut State, node: usize, step: Step) -> Option<()> {
        let etcd = state.etcd;
        let store = self.etcds.get(etcd);
        let it = state.balancers.get_mut(node).filter(|it| !it.is_retired)?;
        let seen = self.look(it.brain);
        match step {
            Step::Follow(_) => {
                let is_behind = seen.followed.is_none_or(|revision| revision != store.revision);
                if !is_behind && seen.applied.0 == store.cluster {
                    return None;
                }
                it.brain = self.brain_step(it.brain, BrainStep::Follow(etcd));
            }
            Step::Reconcile(_) if seen.is_due || it.is_stale => {
                if std::mem::take(&mut it.is_stale) {
                    it.believed = it.running.a;
                }
                it.brain = self.brain_step(it.brain, BrainStep::Reconcile(true));
                let wanted = self.look(it.brain).wanted;
                if it.believed != wanted {
                    (it.believed, it.running.a) = (wanted, wanted);
                }
                it.is_confirmed = true;
                if let Some(count) = &mut it.count {
                    count.before_drain = true;
                }
            }
            Step::Observe(_) => {
                let is_drift = it.is_tampered && it.believed != it.running.a;
                if it.observed == it.pid && !is_drift {
                    return None;
                }
                if it.observed != it.pid {
                    (it.observed, it.seen_age, it.is_confirmed) = (it.pid, 0, false);
                }
                it.is_stale = true;
            }
            Step::BeginPublish(_) if it.writing.is_none() && seen.needs_publish => {
                it.writing = Some((seen.drafted.0, u8::try_from(seen.drafted.1).ok()?));
                it.brain = self.brain_step(it.brain, BrainStep::BeginPublish);
            }
            Step::EndPublish(_) => {
                let (file, revision) = it.writing.take()?;
                it.file = file;
                it.brain = self.brain_step(it.brain, BrainStep::EndPublish(revision));
                if let Some(count) = &mut it.count {
                    count.before_file = true;
                }
            }
            Step::BeginCount(_) if it.count.is_none() && seen.open_drains > 0 => it.begin_count(),
            Step::EndCount(_) => {
                let counting = it.count.take()?;
                let step = BrainStep::Count(counting, it.observed, it.is_confirmed);
                it.brain = self.brain_step(it.brain, step);
            }
            Step::Record(_) => {
                let is_known = self.records.get(seen.record).is_some();
                if !is_known || it.told == seen.record && self.is_stored(it.record, seen.record) {
                    return None;
                }
                (it.record, it.told) = (seen.record, seen.record);
                let is_sure = it.observed == it.pid && !it.is_stale && !it.is_tampered && seen.is_current;
                let shown = Server::from_entry(store.get(RECORD));
                let is_applied = seen.applied == (store.cluster, store.revision);
                // The replica of a reset store has retained keys too. Those are named `held`.
                if is_sure && is_applied && store.cluster == 7 && it.running.a != shown {
                    state.violated = state.violated.or(Some(APPLIED));
                }
            }
            Step::LateRecord(_) => it.record = it.late.take()?,
            _ => return None,
        }
        Some(())
    }

    pub(super) fn client_step(&self, state: &mut State, node: usize, at: u8, step: Step) -> Option<()> {
        let requests = &mut state.requests;
        let it = state.balancers.get_mut(node).filter(|it| !it.is_retired)?;
        let is_old = at < 2;
        let process = match it.old.get_mut(usize::from(at)) {
            Some(old) => old.as_mut()?,
            None => &mut it.running,
        };
        match (step, process.client) {
            (Step::StopListening(..), _) if is_old && process.listens => process.listens = false,
            (Step::Connect(..), Client::None) if process.listens && *requests > 0 => {
                *requests -= 1;
                process.client = Client::Idle;
            }
            // After the GOAWAY, only a connection without a stream may bring one, its first.
            (Step::Request(..), Client::Idle) if !is_old || process.listens || process.age < OLDEST => process.send(),
            (Step::Request(..), Client::OnB) if !is_old || process.listens || process.age == 0 => {
                if process.a == Server::Ready {
                    process.client = Client::OnA;
                }
            }
            (Step::Finish(..), Client::OnA | Client::OnB) => {
                process.client = if is_old && !process.listens { Client::None } else { Client::Idle };
            }
            (Step::Close(..), Client::Idle) => process.client = Client::None,
            _ => return None,
        }
        it.forget_ended();
        Some(())
    }

    pub(super) fn fault_step(&self, state: &mut State, step: Step) -> Option<()> {
        state.faults = state.faults.checked_sub(1)?;
        let announcer = &mut state.announcer;
        let node = match step {
            Step::LoseAnswer | Step::Delay => {
                if announcer.late.is_some() || !self.needs_write(announcer.writer) {
                    return None;
                }
                let outcome = if step == Step::Delay { Outcome::Delayed } else { Outcome::AnswerLost };
                let (writer, etcd, late) = self.write(announcer.writer, state.etcd, outcome);
                (announcer.writer, state.etcd, announcer.late) = (writer, etcd, late);
                return Some(());
            }
            Step::EndLease => {
                state.etcd = self.store_step(state.etcd, StoreStep::EndLease(announcer.lease));
                return Some(());
            }
            Step::PutByHand => {
                state.etcd = self.store_step(state.etcd, StoreStep::PutByHand);
                return Some(());
            }
            Step::Wipe => {
                let none = self.records.put(None);
                state.balancers.iter_mut().for_each(|it| (it.record, it.late) = (none, None));
                state.etcd = self.store_step(state.etcd, StoreStep::Wipe);
                return Some(());
            }
            Step::Restart(node)
            | Step::Crash(node)
            | Step::KillConfgen(node)
            | Step::Reboot(node)
            | Step::Retire(node)
            | Step::Disconnect(node)
            | Step::LoseRecord(node)
            | Step::DelayRecord(node)
            | Step::EnableByHand(node) => node,
            _ => return None,
        };
        let it = state.balancers.get_mut(usize::from(node)).filter(|it| !it.is_retired)?;
        match step {
            Step::Retire(_) => {
                it.start_again();
                it.running.a = Server::Absent;
                (it.is_retired, it.old, it.count, it.writing, it.late) = (true, [None; 2], None, None, None);
                it.record = self.records.put(None);
            }
            Step::Restart(_) => it.restart_by_hand()?,
            Step::Crash(_) => it.start_again(),
            Step::Disconnect(_) => it.brain = self.brain_step(it.brain, BrainStep::Disconnect),
            Step::LoseRecord(_) => it.record = self.records.put(None),
            Step::DelayRecord(_) if it.late.is_none() => {
                let seen = self.look(it.brain).record;
                if self.records.get(seen).is_none() || it.told == seen {
                    return None;
                }
                it.late = Some(seen);
            }
            Step::EnableByHand(_) if it.running.a == Server::Maint => {
                (it.running.a, it.is_tampered) = (Server::Ready, true);
            }
            Step::KillConfgen(_) | Step::Reboot(_) => {
                if matches!(step, Step::Reboot(_)) {
                    it.start_again();
                    it.old = [None; 2];
                }
                it.brain = self.brain_step(it.brain, BrainStep::Restart);
                (it.writing, it.count, it.is_stale, it.is_confirmed) = (None, None, true, false);
                it.told = self.records.put(None);
                // The new observer knows neither the process's age nor that of an old one.
                (it.observed, it.seen_age) = (it.pid, 0);
                it.old.iter_mut().flatten().for_each(|old| old.counted = UNCOUNTED);
            }
            _ => return None,
        }
        Some(())
    }
}
/// What the announcer wants of its record in this state of its life.
fn want_of(life: Life) -> Option<WantKey> {
    Some(match life {
        Life::Announcing | Life::Announced => WantKey::Ready,
        Life::Draining | Life::Stopping => WantKey::Drain,
        Life::Withdrawing => WantKey::Absent,
        _ => return None,
    })
}
