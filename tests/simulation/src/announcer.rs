//! An announcer and its app. `announcer`'s own functions decide. The order of calls is that of its event loop and registrar.

use std::sync::Arc;

use announcer::decisions::{
    Action, Announcement, BalancerStates, Conclusion, Event, Health, KeyObservation, OverwriteRules, Question, Record,
    RecordSet, State, Want, Written, step,
};
use discovery::{ServiceId, StoreRevision, UpstreamId, UpstreamState};
use registry::LeaseId;

use crate::bugs::Bug;
use crate::clock::Millis;
use crate::etcd::Etcd;

/// `--ttl`.
const TTL: Millis = 10_000;
/// The lease is renewed this often.
const RENEW_EVERY: Millis = 3_000;
/// `--drain`.
const DRAIN: Millis = 15_000;
/// `--stop-timeout`.
const STOP_TIMEOUT: Millis = 10_000;
/// The limit for the last writes.
const WITHDRAW: Millis = 5_000;
/// The wait after `drain` if balancers can't be read, and after a removal without a known revision.
const UNHEARD: Millis = 7_000;
/// Attempts of a transaction before a pause.
const ATTEMPTS: usize = 8;

/// Facts of a step.
#[derive(Clone, Copy)]
pub struct Turn {
    /// The time.
    pub now: Millis,
    /// The bug that is switched on.
    pub bug: Option<Bug>,
}

/// An app that was stopped after all balancers had acknowledged its drain.
#[derive(Clone, Debug)]
pub struct PoliteStop {
    /// The app's address.
    pub address: String,
    /// The service and the upstream.
    pub upstream: (ServiceId, UpstreamId),
    /// The balancers that were waited for.
    pub nodes: Vec<String>,
}

/// An announcer, from its start to its end.
pub struct Announcer {
    record: Arc<Record>,
    key: String,
    address: String,
    /// Its number among etcd's clients.
    client: usize,
    /// `None` before the start and after the end.
    life: Option<Life>,
    /// The app works: HAProxy's checks and the announcer's pass.
    pub app_works: bool,
    /// The app runs, so that it can work.
    pub app_runs: bool,
    /// The next answer of etcd to a write is lost.
    pub loses_answer: bool,
}

/// A running announcer.
struct Life {
    state: State,
    health: Health,
    records: RecordSet,
    lease: Option<LeaseId>,
    renewed_at: Millis,
    want: Option<Want>,
    is_registered: bool,
    /// The cluster and term at the last observation of the own key.
    store: Option<StoreRevision>,
    drain: Option<Drain>,
    stop_ends_at: Option<Millis>,
    withdrawal: Option<Withdrawal>,
}

/// The wait for acknowledgements.
#[derive(Debug)]
struct Drain {
    since: Millis,
    /// `drain` was written.
    written_at: Option<Millis>,
    was_connected: bool,
}

/// The last writes.
#[derive(Debug)]
struct Withdrawal {
    actions: Vec<Action>,
    ends_at: Millis,
}

impl Announcer {
    /// An announcer of this upstream that doesn't run yet.
    pub fn new(client: usize, service: ServiceId, id: UpstreamId, address: &str, takeover: bool) -> Option<Self> {
        let announcement = Announcement {
            service,
            id,
            weight: discovery::Weight::DEFAULT,
            color: None,
            host: None,
            settings: Vec::new(),
        };
        let rules = OverwriteRules { takeover, ..OverwriteRules::default() };
        let record = Arc::new(Record::new(announcement, address.parse().ok()?, rules));
        let (key, address) = (record.key(), address.to_owned());
        Some(Self { record, key, address, client, life: None, app_works: false, app_runs: false, loses_answer: false })
    }

    /// The key of its record.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The app's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The service and the upstream.
    pub fn upstream(&self) -> (ServiceId, UpstreamId) {
        let (service, id) = self.record.service_and_id();
        (service.clone(), id.clone())
    }

    /// The state. `None` while it doesn't run.
    pub fn state(&self) -> Option<State> {
        self.life.as_ref().map(|life| life.state)
    }

    /// True if the record should be in the store as `ready` once all is quiet.
    pub fn should_be_announced(&self) -> bool {
        let is_announcing = matches!(
            self.state(),
            Some(State::Starting | State::Announcing | State::AwaitingBalancers | State::Announced)
        );
        is_announcing && self.app_works
    }

    /// The lease. `None` without one.
    pub fn lease(&self) -> Option<LeaseId> {
        self.life.as_ref()?.lease
    }

    /// True if another owner has the id.
    pub fn is_taken(&self) -> bool {
        self.life
            .as_ref()
            .is_some_and(|life| life.records.record_statuses().iter().any(|(_, status)| status.owner.is_some()))
    }

    /// Starts the announcer and its app, or tells them to stop.
    pub fn stop_or_start(&mut self, turn: Turn) {
        match self.state() {
            None => self.start(),
            Some(_) => _ = self.handle(Event::Stop, turn),
        }
    }

    /// Starts the announcer and its app.
    pub fn start(&mut self) {
        (self.app_runs, self.app_works) = (true, true);
        self.life = Some(Life {
            state: State::Starting,
            health: Health::New(0),
            records: RecordSet::default(),
            lease: None,
            renewed_at: 0,
            want: None,
            is_registered: false,
            store: None,
            drain: None,
            stop_ends_at: None,
            withdrawal: None,
        });
    }

    /// Kills the announcer, and the app with it.
    pub fn kill(&mut self) {
        self.life = None;
        (self.app_runs, self.app_works) = (false, false);
    }

    /// The app ends: as it was told to, or by itself.
    pub fn end_app(&mut self, turn: Turn) -> bool {
        if !self.app_runs {
            return false;
        }
        (self.app_runs, self.app_works) = (false, false);
        if self.life.is_none() {
            return true;
        }
        self.handle(Event::AppExited, turn);
        self.handle(Event::AppGone, turn);
        true
    }

    /// The app begins or stops to work.
    pub fn set_works(&mut self, works: bool) {
        self.app_works = works && self.app_runs;
    }

    /// Does what is due. Returns the app's polite stop, if it got its stop signal after all balancers had acknowledged.
    pub fn run_due_work(&mut self, etcd: &mut Etcd, turn: Turn) -> Option<PoliteStop> {
        self.life.as_ref()?;
        self.keep_lease(etcd, turn);
        self.check_app(turn);
        self.observe_own_key(etcd, turn);
        self.write_records(etcd, turn);
        self.time_out(turn);
        let stop = self.await_acknowledgements(etcd, turn);
        self.withdraw(etcd, turn);
        if self.state() == Some(State::Done) {
            self.life = None;
        }
        stop
    }

    /// Handles an event, and the events that its actions cause at once.
    fn handle(&mut self, event: Event, turn: Turn) -> Option<State> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let life = self.life.as_mut()?;
            let (state, actions) = step(life.state, event);
            life.state = state;
            for action in actions {
                match action {
                    Action::Announce => life.want = life.state.want_for_health(life.health),
                    // Without `--wait-balancers` the wait is over at once.
                    Action::AwaitBalancers => next = Some(Event::AllBalancersApplied),
                    Action::SayReady => {}
                    Action::Drain => {
                        life.want = Some(Want::IfPresent(UpstreamState::Drain));
                        life.drain = Some(Drain { since: turn.now, written_at: None, was_connected: false });
                    }
                    Action::StopApp | Action::StopRest => life.stop_ends_at = Some(turn.now + STOP_TIMEOUT),
                    Action::KillApp => {
                        (self.app_runs, self.app_works) = (false, false);
                        next = Some(Event::AppGone);
                    }
                    Action::WriteDown | Action::Delete | Action::Revoke => {}
                }
            }
            if actions.contains(&Action::Revoke) {
                life.withdrawal = Some(Withdrawal { actions: actions.to_vec(), ends_at: turn.now + WITHDRAW });
            }
        }
        self.state()
    }

    fn keep_lease(&mut self, etcd: &mut Etcd, turn: Turn) {
        let Some(life) = &mut self.life else { return };
        let is_revoking = life.withdrawal.is_some();
        match life.lease {
            Some(lease) if turn.now >= life.renewed_at + RENEW_EVERY && !is_revoking => {
                match etcd.renew(self.client, lease, turn.now) {
                    Ok(true) => life.renewed_at = turn.now,
                    Ok(false) if turn.bug != Some(Bug::IgnoreLostLease) => life.lease = None,
                    Ok(false) | Err(_) => {}
                }
            }
            Some(_) => return,
            None => {}
        }
        if life.lease.is_none()
            && !is_revoking
            && let Ok(lease) = etcd.grant(self.client, TTL, turn.now)
        {
            (life.lease, life.renewed_at) = (Some(lease), turn.now);
        }
    }

    fn check_app(&mut self, turn: Turn) {
        let (works, runs) = (self.app_works, self.app_runs);
        let Some(life) = &mut self.life else { return };
        let health = match (life.health, works) {
            (Health::New(_), false) => return,
            (_, true) => Health::Up(0),
            (_, false) => Health::Down(0),
        };
        if runs && health != life.health {
            life.health = health;
            life.want = life.state.want_for_health(health).or(life.want);
            self.handle(Event::Healthy, turn);
        }
    }

    fn observe_own_key(&mut self, etcd: &Etcd, turn: Turn) {
        let Some(life) = &mut self.life else { return };
        let Ok(now) = etcd.read_position(self.client) else { return };
        let known = life.store.replace(now);
        let is_other_store = known.is_some_and(|known| known.compare(now).is_err());
        let seen = KeyObservation { entry: etcd.get(&self.key), revision: now.revision, is_other_store };
        if let Conclusion::Lost(_) = life.records.observe_key(&self.key, seen)
            && std::mem::take(&mut life.is_registered)
        {
            self.handle(Event::RecordsLost, turn);
        }
    }

    fn write_records(&mut self, etcd: &mut Etcd, turn: Turn) {
        let record = self.record.clone();
        let Some(life) = &mut self.life else { return };
        let Some(want) = life.want else { return };
        if life.records.set_wants(life.lease, &[(record, want)]) && std::mem::take(&mut life.is_registered) {
            self.handle(Event::RecordsLost, turn);
        }
        self.write_round(etcd);
        let Some(life) = &mut self.life else { return };
        if life.records.is_complete() && !std::mem::replace(&mut life.is_registered, true) {
            self.handle(Event::Registered, turn);
        }
    }

    fn write_round(&mut self, etcd: &mut Etcd) {
        let (client, loses_answer) = (self.client, std::mem::take(&mut self.loses_answer));
        let Some(life) = &mut self.life else { return };
        for indices in life.records.plan_parts() {
            let mut found = None;
            for _ in 0..ATTEMPTS {
                let part = life.records.draft_part(&indices, true, found.as_deref());
                let mut revision = 0;
                if !part.is_empty() {
                    // A lease that has ended makes etcd refuse the write, and a renewal finds that out.
                    if life.lease.is_some_and(|lease| !etcd.has_lease(lease.get())) {
                        life.renewed_at = 0;
                        return;
                    }
                    let Ok(committed) = etcd.commit(client, &part.draft.txn) else { return };
                    if loses_answer {
                        return;
                    }
                    if !committed.succeeded {
                        found = Some(committed.found);
                        continue;
                    }
                    revision = committed.revision;
                }
                life.records.mark_written(&part, revision);
                break;
            }
        }
    }

    fn time_out(&mut self, turn: Turn) {
        let Some(life) = &mut self.life else { return };
        if life.stop_ends_at.is_some_and(|at| turn.now >= at) {
            life.stop_ends_at = None;
            self.handle(Event::StopTimeout, turn);
        }
    }

    /// Waits until every balancer has acknowledged, as `announcer/src/withdraw.rs` does.
    fn await_acknowledgements(&mut self, etcd: &Etcd, turn: Turn) -> Option<PoliteStop> {
        if self.state() != Some(State::Draining) {
            return None;
        }
        let (client, address, upstream) = (self.client, self.address.clone(), self.upstream());
        let life = self.life.as_mut()?;
        let drain = life.drain.as_mut()?;
        let is_written = life.records.plan_parts().is_empty() && life.lease.is_some();
        if is_written {
            drain.written_at.get_or_insert(turn.now);
        }
        let mut written = Written {
            revision: life.records.last_revision(),
            ours: life.records.present_records(),
            gone: life.records.removed_records(),
            has_unknown_removal: life.records.has_unknown_removal(),
            unwritten_count: 0,
        };
        if turn.bug == Some(Bug::AcceptEarlierAcknowledgement) {
            written.revision = 0;
        }
        let is_over = match drain.written_at {
            None => turn.now >= drain.since + DRAIN,
            Some(_) if written.ours.is_empty() && written.gone.is_empty() => true,
            Some(at) => {
                let earliest = at + if written.has_unknown_removal { UNHEARD } else { 0 };
                let mut balancers = BalancerStates::default();
                let listed = etcd.list(client, "balancers/");
                let nodes: Vec<String> =
                    listed.iter().flat_map(|it| &it.entries).map(|entry| entry.key.clone()).collect();
                let is_connected = listed.is_ok();
                if let Ok(snapshot) = listed {
                    balancers.apply_event(registry::Event::Snapshot(snapshot));
                    drain.was_connected = true;
                }
                let missing = balancers.list_unconfirmed(Question::Acknowledges, &written);
                if turn.now >= earliest && is_connected && missing.is_empty() {
                    self.handle(Event::Drained, turn);
                    // A removal without a known revision, as by the lease's end, may be newer than the acknowledgement. A fixed
                    // wait has to do then.
                    if written.ours.is_empty() {
                        return None;
                    }
                    let nodes = nodes.iter().filter_map(|key| key.strip_prefix("balancers/").map(str::to_owned));
                    return Some(PoliteStop { address, upstream, nodes: nodes.collect() });
                }
                turn.now >= at + if drain.was_connected { DRAIN } else { UNHEARD }
            }
        };
        if is_over {
            self.handle(Event::Drained, turn);
        }
        None
    }

    /// Runs the last writes in the order of the actions.
    fn withdraw(&mut self, etcd: &mut Etcd, turn: Turn) {
        let (record, client) = (self.record.clone(), self.client);
        let Some(withdrawal) = self.life.as_mut().and_then(|life| life.withdrawal.take()) else { return };
        let mut is_done = true;
        for action in &withdrawal.actions {
            let Some(life) = &mut self.life else { return };
            let want = match action {
                Action::WriteDown => Want::IfPresent(UpstreamState::Down),
                Action::Delete => Want::Absent,
                Action::Revoke => {
                    if let Some(lease) = life.lease {
                        is_done &= etcd.revoke(client, lease).is_ok();
                    }
                    continue;
                }
                _ => continue,
            };
            life.want = Some(want);
            life.records.set_wants(life.lease, &[(record.clone(), want)]);
            self.write_round(etcd);
            is_done &= !etcd.is_cut_off(client);
        }
        if is_done || turn.now >= withdrawal.ends_at {
            if let Some(life) = &mut self.life {
                // The renewal has ended.
                (life.lease, life.want) = (None, None);
            }
            self.handle(Event::Withdrawn, turn);
        } else if let Some(life) = &mut self.life {
            life.withdrawal = Some(withdrawal);
        }
    }

    /// True if it has work besides renewals and checks.
    pub fn is_busy(&self) -> bool {
        let settled = [None, Some(State::Announced), Some(State::Starting)];
        let waits_for_id = self.is_taken() && self.state() == Some(State::Announcing);
        !waits_for_id && !settled.contains(&self.state())
    }

    /// True if its app was told to stop.
    pub fn is_stopping(&self) -> bool {
        matches!(self.state(), Some(State::Stopping | State::Killing | State::Leaving | State::Clearing))
    }
}
