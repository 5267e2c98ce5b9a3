//! HAProxy's processes, their clients, and the time that passes over them. This is the model's own: what HAProxy's manual and
//! docs/internals/haproxy-facts.md say of it, and no more.

use std::time::Duration;

use confgen::decisions::ServerState;
use discovery::{Entry, Upstream, UpstreamState};

use crate::drain::{Balancer, State};

/// Ages of a process in steps, with the time in each: just restarted, past the GOAWAY, past the silence, past every first request.
pub(super) const AGES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(6), Duration::from_secs(20), Duration::from_secs(4000)];
/// The last of them.
pub(super) const OLDEST: u8 = 3;
/// No count has found the process yet.
pub(super) const UNCOUNTED: u8 = u8::MAX;
/// What a HAProxy process knows of upstream `a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Server {
    /// No server.
    Absent,
    /// It takes requests.
    Ready,
    /// It takes none.
    Maint,
}

impl Server {
    pub(super) fn from_state(state: Option<ServerState>) -> Self {
        match state {
            None => Self::Absent,
            Some(ServerState::Ready) => Self::Ready,
            Some(ServerState::Drain | ServerState::Maint) => Self::Maint,
        }
    }
}

/// The client of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// No connection.
    None,
    /// A connection without a stream.
    Idle,
    /// A request that upstream `a` answers.
    OnA,
    /// A request that upstream `b` answers.
    OnB,
}

/// A HAProxy process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub(super) a: Server,
    pub(super) client: Client,
    /// Only of an old one: the step of its age, and that since a count first found it.
    pub(super) age: u8,
    pub(super) counted: u8,
    /// Clients may still connect to an old process.
    pub(super) listens: bool,
}

impl Process {
    pub(super) fn started(a: Server) -> Self {
        Self { a, client: Client::None, age: 0, counted: UNCOUNTED, listens: true }
    }

    /// The process may send upstream `a` a request later.
    pub(super) fn can_choose_a(&self, is_old: bool) -> bool {
        let may_send = match self.client {
            _ if !is_old || self.listens => true,
            Client::Idle => self.age < OLDEST,
            Client::OnA | Client::OnB => self.age == 0,
            Client::None => false,
        };
        self.a == Server::Ready && may_send
    }
}

/// A count of sessions that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counting {
    pub(super) pid: u8,
    pub(super) seen_age: u8,
    pub(super) sessions: u8,
    pub(super) old: [Option<(u8, Client)>; 2],
    pub(super) is_complete: bool,
    pub(super) before_drain: bool,
    pub(super) before_file: bool,
}
impl Process {
    pub(super) fn send(&mut self) {
        self.client = if self.a == Server::Ready { Client::OnA } else { Client::OnB };
    }
}

impl Server {
    pub(super) fn from_entry(entry: Option<&Entry>) -> Self {
        let record = entry.and_then(|entry| Upstream::parse(&entry.value).ok());
        record.map_or(Self::Absent, |it| if it.state == UpstreamState::Ready { Self::Ready } else { Self::Maint })
    }
}

impl Balancer {
    /// True if a process has a request on `a`, or may send it one.
    pub(super) fn harms_a(&self) -> bool {
        let mut all = self.old.iter().flatten().map(|it| (it, true)).chain([(&self.running, false)]);
        all.any(|(process, is_old)| process.client == Client::OnA || process.can_choose_a(is_old))
    }

    pub(super) fn begin_count(&mut self) {
        let mut counting = Counting {
            pid: self.pid,
            seen_age: self.seen_age,
            sessions: u8::from(self.running.client == Client::OnA),
            old: [None; 2],
            is_complete: true,
            before_drain: false,
            before_file: false,
        };
        for (old, counted) in self.old.iter_mut().zip(&mut counting.old) {
            let Some(old) = old else { continue };
            counting.sessions += u8::from(old.client == Client::OnA);
            // The process doesn't say that it stops. So the count is none.
            counting.is_complete &= !old.listens;
            if !old.listens {
                old.counted = if old.counted == UNCOUNTED { 0 } else { old.counted };
                *counted = Some((old.counted, old.client));
            }
        }
        self.count = Some(counting);
    }

    /// The running process finishes its requests, and another one starts with the file. `None` if there are too many old ones.
    pub(super) fn restart_by_hand(&mut self) -> Option<()> {
        let place = self.old.iter_mut().find(|it| it.is_none())?;
        *place = Some(self.running);
        self.start_again();
        Some(())
    }

    pub(super) fn start_again(&mut self) {
        self.running = Process::started(self.file);
        self.pid += 1;
    }

    /// Without an old process no time matters.
    pub(super) fn forget_times(&mut self) {
        if self.old == [None; 2] {
            self.seen_age = OLDEST;
        }
        if let Some(count) = self.count.as_mut().filter(|count| count.old == [None; 2]) {
            count.seen_age = OLDEST;
        }
    }

    /// An old process ends with its last connection.
    pub(super) fn forget_ended(&mut self) {
        for old in &mut self.old {
            *old = old.filter(|it| it.listens || it.client != Client::None);
        }
        // Which of two places is free makes no difference.
        if self.old.first().is_some_and(Option::is_none) {
            self.old.swap(0, 1);
        }
    }
}

/// Time passes over the next limit of every process. `None` while an old process listens: that takes milliseconds.
pub(super) fn pass_time(state: &mut State, balancers: u8) -> Option<()> {
    let older = |step: u8| if step == UNCOUNTED { step } else { (step + 1).min(OLDEST) };
    for it in state.balancers.iter_mut().take(balancers.into()) {
        if it.old.iter().flatten().any(|old| old.listens) {
            return None;
        }
        it.seen_age = older(it.seen_age);
        for old in it.old.iter_mut().flatten() {
            (old.age, old.counted) = (older(old.age), older(old.counted));
            // `timeout client` ends a connection that never brought a request.
            if old.age == OLDEST && old.client == Client::Idle {
                old.client = Client::None;
            }
        }
        it.forget_ended();
    }
    Some(())
}
