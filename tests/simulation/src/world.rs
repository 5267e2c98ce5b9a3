//! The whole world of a run: a store, balancers, announcers, clients and an operator. Each step changes it.

use std::collections::BTreeSet;
use std::rc::Rc;

use confgen::decisions::Site;
use discovery::{Acceptance, Key, ServiceId};
use registry::Write;

use crate::announcer::{Announcer, PoliteStop, Turn};
use crate::balancer::{Balancer, Context};
use crate::bugs::Bug;
use crate::clock::{Clock, Millis};
use crate::etcd::Etcd;
use crate::haproxy::CommandFault;
use crate::steps::{Kind, Setup, Step};
use crate::values::{ANNOUNCERS, FIRST, KEYS, REQUESTS, WHOLE, put, rejected_values};

/// The first announcer's number among etcd's clients.
const FIRST_ANNOUNCER: usize = 10;

/// The times that a step lets pass. Most are short, as most steps of programs are.
const WAITS: [Millis; 16] = [1, 1, 5, 10, 20, 50, 50, 100, 200, 200, 250, 500, 1_000, 1_500, 4_000, 12_000];

/// Everything.
pub struct World {
    pub clock: Clock,
    pub etcd: Etcd,
    pub balancers: Vec<Balancer>,
    pub announcers: Vec<Announcer>,
    /// Apps that were stopped politely, and whose addresses no record has had since.
    pub polite_stops: Vec<PoliteStop>,
    pub bug: Option<Bug>,
    /// What was found to be wrong.
    pub violations: Vec<String>,
    /// The log, if one is wanted.
    log: Option<Vec<String>>,
    /// The run's own steps have begun.
    pub has_begun: bool,
}

impl World {
    /// A world in which the first services are served.
    pub fn new(setup: Setup, site: &Rc<Site>, bug: Option<Bug>, keeps_log: bool) -> Self {
        let mut world = Self {
            clock: Clock::start(),
            etcd: Etcd::new(),
            balancers: (0..setup.balancers)
                .map(|number| Balancer::new(number, setup.adds_backends, Rc::clone(site)))
                .collect(),
            announcers: Vec::new(),
            polite_stops: Vec::new(),
            bug,
            violations: Vec::new(),
            log: keeps_log.then(Vec::new),
            has_begun: false,
        };
        let writes: Vec<Write> = FIRST.iter().map(|(key, value)| put(key, *value)).collect();
        world.etcd.write(&writes);
        for (number, (key, id, address, takeover)) in ANNOUNCERS.into_iter().enumerate() {
            let service = service_of(key).zip(id.parse().ok());
            let announcer = service
                .and_then(|(service, id)| Announcer::new(FIRST_ANNOUNCER + number, service, id, address, takeover));
            world.announcers.extend(announcer);
        }
        // The twin of the first one starts only by a step.
        world.announcers.iter_mut().take(ANNOUNCERS.len() - 1).for_each(Announcer::start);
        for balancer in &world.balancers {
            let mut haproxy = balancer.haproxy.lock();
            haproxy.reverses_commands = bug == Some(Bug::ReverseCommands);
            haproxy.hides_complaints = bug == Some(Bug::IgnoreComplaints);
        }
        let clock = world.clock;
        world.balancers.iter_mut().for_each(|balancer| balancer.start_confgen(clock, bug));
        world
    }

    /// The log so far.
    pub fn take_log(&mut self) -> Vec<String> {
        self.log.take().unwrap_or_default()
    }

    /// Adds a line to the log, if one is wanted.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.clock.millis() - 1_000_000;
        if let Some(log) = self.log.as_mut().filter(|_| self.has_begun) {
            log.push(format!("{:>8}.{:03} {}", now / 1_000, now % 1_000, line()));
        }
    }

    /// Carries out a step.
    pub fn take_step(&mut self, step: Step) {
        match step.kind {
            Kind::Wait => self.wait(WAITS.get(step.choose(0, WAITS.len())).copied().unwrap_or(1)),
            Kind::Confgen => self.run_confgen(usize::from(step.actor), step.roll),
            Kind::Deliver => self.deliver(usize::from(step.actor), step.choose(1, 4) + 1, step.choose(2, 4) == 0),
            Kind::Announcer => self.run_announcer(usize::from(step.actor)),
            Kind::Checks => self.check_servers(),
            Kind::Client => self.act_as_client(step),
            Kind::StopOrStart | Kind::Health | Kind::AppEnds | Kind::KillAnnouncer | Kind::LoseAnswer => {
                self.change_announcer(step);
            }
            Kind::Write | Kind::Delete | Kind::WriteService | Kind::Accept | Kind::Hostile => {
                self.act_as_operator(step);
            }
            Kind::Partition | Kind::EndWatch | Kind::Compact | Kind::ExpireLeases | Kind::Wipe | Kind::Restore => {
                self.break_store(step);
            }
            Kind::Complain
            | Kind::CrashHaproxy
            | Kind::RestartByHand
            | Kind::ManualChange
            | Kind::FailStart
            | Kind::KillConfgen => self.break_balancer(step),
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, millis: Millis) {
        self.clock.advance(millis);
        let now = self.clock.millis();
        self.etcd.expire(now);
        for balancer in &self.balancers {
            balancer.haproxy.lock().pass_time(now);
        }
    }

    /// Lets a balancer's confgen do what is due.
    pub fn run_confgen(&mut self, number: usize, roll: u32) {
        let count = self.balancers.len();
        let Some(balancer) = self.balancers.get_mut(number % count) else { return };
        let is_cut_off = self.etcd.is_cut_off(balancer.client);
        let living: BTreeSet<i64> = if is_cut_off { BTreeSet::new() } else { self.etcd.living_leases() };
        let alive = |lease: i64| living.contains(&lease);
        let context = Context {
            clock: self.clock,
            bug: self.bug,
            roll,
            alive: (!is_cut_off).then_some(&alive as &dyn Fn(i64) -> bool),
        };
        let done = balancer.run_confgen(&mut self.etcd, context);
        let node = balancer.node.clone();
        self.check_after_work(number % count, &done);
        for line in done {
            self.note(|| format!("{node}: confgen {line}"));
        }
    }

    /// Delivers a message of a balancer's watch.
    pub fn deliver(&mut self, number: usize, most: usize, cut: bool) {
        let count = self.balancers.len();
        let context = Context { clock: self.clock, bug: self.bug, roll: 0, alive: None };
        let Some(balancer) = self.balancers.get_mut(number % count) else { return };
        if let Some(confgen) = &mut balancer.confgen {
            let before = confgen.status.seen;
            confgen.deliver(&self.etcd, most, cut, context);
            let (node, seen) = (balancer.node.clone(), confgen.status.seen);
            if seen != before {
                self.note(|| format!("{node}: confgen has revision {}", seen.revision));
            }
        }
    }

    /// Lets an announcer do what is due.
    pub fn run_announcer(&mut self, number: usize) {
        let (turn, count) = (Turn { now: self.clock.millis(), bug: self.bug }, self.announcers.len());
        let Some(announcer) = self.announcers.get_mut(number % count) else { return };
        let before = announcer.state();
        let stop = announcer.run_due_work(&mut self.etcd, turn);
        let (address, state) = (announcer.address().to_owned(), announcer.state());
        if state != before {
            self.note(|| format!("announcer of {address}: {state:?}"));
        }
        if let Some(stop) = stop {
            self.note(|| format!("{} is stopped politely, {:?} acknowledged", stop.address, stop.nodes));
            self.check_polite_stop(&stop);
            if !self.has_other_record(&stop) {
                self.polite_stops.push(stop);
            }
        }
    }

    /// True if another record, or a server of one, leads to the app that was stopped. Requests through it are the operator's wish.
    fn has_other_record(&self, stop: &PoliteStop) -> bool {
        let own = Key::for_upstream(&stop.upstream.0, &stop.upstream.1).to_string();
        let address = stop.address.as_bytes();
        let names_it = |value: &[u8]| value.windows(address.len()).any(|part| part == address);
        let mut keys = self.etcd.keys().filter(|key| **key != own && !key.starts_with("balancers/"));
        let is_stored = keys.any(|key| self.etcd.get(key).is_some_and(|entry| names_it(&entry.value)));
        is_stored
            || self.balancers.iter().any(|balancer| {
                let haproxy = balancer.haproxy.lock();
                let sections = haproxy.running.iter().chain(&haproxy.old).flat_map(|process| &process.backends);
                let mut servers =
                    sections.flat_map(|(section, it)| it.servers.iter().map(move |(name, it)| (section, name, it)));
                servers.any(|(section, name, server)| {
                    let is_own = *name == stop.upstream.1.to_string() && *section == stop.upstream.0.to_string();
                    !is_own && server.address() == stop.address
                })
            })
    }

    /// HAProxy checks all servers: they are up if their apps work. Nothing tells of an app that no announcer has.
    pub fn check_servers(&mut self) {
        for balancer in &self.balancers {
            let mut haproxy = balancer.haproxy.lock();
            for server in haproxy
                .running
                .iter_mut()
                .flat_map(|it| it.backends.values_mut())
                .flat_map(|it| it.servers.values_mut())
            {
                let address = server.address();
                let mut apps = self.announcers.iter().filter(|announcer| announcer.address() == address).peekable();
                if !server.checks_off && !server.maint {
                    server.up = apps.peek().is_none() || apps.any(|announcer| announcer.app_works);
                }
            }
        }
    }

    fn act_as_client(&mut self, step: Step) {
        let count = self.balancers.len();
        let Some(balancer) = self.balancers.get(usize::from(step.actor) % count) else { return };
        let node = balancer.node.clone();
        let mut haproxy = balancer.haproxy.lock();
        let which = step.choose(1, 256);
        let mut target = None;
        match step.choose(0, 4) {
            0 => haproxy.connect(),
            1 | 2 => {
                let (host, path) = REQUESTS.get(step.choose(2, REQUESTS.len())).copied().unwrap_or_default();
                target = haproxy.request(host, path, which);
            }
            _ => haproxy.answer_request(which),
        }
        drop(haproxy);
        let Some(address) = target else { return };
        self.note(|| format!("{node}: a client's request goes to {address}"));
        if self.polite_stops.iter().any(|stop| stop.address == address && stop.nodes.contains(&node)) {
            self.violations.push(format!("{node} sends a request to {address}, which was stopped politely"));
        }
    }

    fn change_announcer(&mut self, step: Step) {
        let turn = Turn { now: self.clock.millis(), bug: self.bug };
        let count = self.announcers.len();
        let Some(announcer) = self.announcers.get_mut(usize::from(step.actor) % count) else { return };
        match step.kind {
            Kind::StopOrStart => announcer.stop_or_start(turn),
            Kind::Health => announcer.set_works(step.choose(0, 3) > 0),
            // An app ends by itself now and then, and mostly because it was told to.
            Kind::AppEnds => {
                let is_told = !announcer.should_be_announced();
                if is_told || step.choose(0, 8) == 0 {
                    announcer.end_app(turn);
                }
            }
            Kind::KillAnnouncer => announcer.kill(),
            _ => announcer.loses_answer = true,
        }
        let (address, state) = (announcer.address().to_owned(), announcer.state());
        self.note(|| format!("{:?} of the app at {address}: {state:?}", step.kind));
        if state == Some(announcer::decisions::State::Starting) {
            self.polite_stops.retain(|stop| stop.address != address);
        }
    }

    fn act_as_operator(&mut self, step: Step) {
        let (key, values) = KEYS.get(step.choose(0, KEYS.len())).copied().unwrap_or_default();
        let writes = match step.kind {
            Kind::Write => vec![put(key, *values.get(step.choose(1, values.len())).unwrap_or(&""))],
            Kind::Delete => vec![Write::Delete { key: key.to_owned() }],
            Kind::WriteService => {
                let keys = WHOLE.get(step.choose(0, WHOLE.len())).copied().unwrap_or_default();
                keys.iter().map(|(key, value)| put(key, *value)).collect()
            }
            Kind::Accept => {
                let position = self.etcd.position();
                let acceptance = Acceptance { cluster: position.cluster, revision: position.revision };
                vec![put(&Key::AcceptStore.to_string(), acceptance.to_string())]
            }
            _ => {
                let [bytes, hidden, two, long] = rejected_values();
                let value = [bytes, hidden, two, long].into_iter().nth(step.choose(1, 4)).unwrap_or_default();
                vec![put(key, value)]
            }
        };
        self.note(|| format!("an operator writes {}", describe(&writes)));
        // A record at the address of a stopped app makes HAProxy send requests there again, as the operator asks for.
        let texts: Vec<String> = writes.iter().map(|write| format!("{write:?}")).collect();
        let names = |address: &str| {
            let bytes = format!("{:?}", address.as_bytes());
            texts.iter().any(|text| text.contains(bytes.trim_matches(['[', ']'])))
        };
        self.polite_stops.retain(|stop| !names(&stop.address));
        self.etcd.write(&writes);
    }

    fn break_store(&mut self, step: Step) {
        let clients = self.balancers.len() + self.announcers.len();
        let client = step.choose(0, clients);
        let client =
            if client < self.balancers.len() { client } else { FIRST_ANNOUNCER + client - self.balancers.len() };
        let keeps_cluster = step.choose(1, 2) == 0;
        match step.kind {
            Kind::Partition => {
                let is_cut_off = !self.etcd.is_cut_off(client);
                self.etcd.set_cut_off(client, is_cut_off);
                self.note(|| format!("client {client} of etcd is cut off: {is_cut_off}"));
            }
            Kind::EndWatch => {
                let count = self.balancers.len();
                let balancer = self.balancers.get_mut(usize::from(step.actor) % count);
                balancer.and_then(|it| it.confgen.as_mut()).into_iter().for_each(|it| it.follower.end_watch());
            }
            Kind::Compact => self.etcd.compact(),
            Kind::ExpireLeases => self.etcd.expire_all(),
            Kind::Wipe => {
                self.etcd.wipe(keeps_cluster);
                self.polite_stops.clear();
            }
            // The first one only takes the backup.
            _ if step.choose(2, 2) == 0 => self.etcd.back_up(),
            _ => {
                if self.etcd.restore(keeps_cluster, self.clock.millis()) {
                    self.polite_stops.clear();
                }
            }
        }
        self.note(|| format!("etcd: {:?}", step.kind));
    }

    fn break_balancer(&mut self, step: Step) {
        let (clock, bug, count) = (self.clock, self.bug, self.balancers.len());
        let Some(balancer) = self.balancers.get_mut(usize::from(step.actor) % count) else { return };
        let node = balancer.node.clone();
        let mut haproxy = balancer.haproxy.lock();
        let mut what = String::new();
        match step.kind {
            Kind::Complain => {
                let fault = if step.choose(1, 3) == 0 { CommandFault::Break } else { CommandFault::Refuse };
                haproxy.fault = Some((u32::try_from(step.choose(2, 12)).unwrap_or_default(), fault));
            }
            Kind::CrashHaproxy => {
                haproxy.crash();
                haproxy.external += 1;
            }
            Kind::RestartByHand => {
                haproxy.restart(step.choose(1, 2) == 0);
                haproxy.external += 1;
            }
            Kind::FailStart => haproxy.fails_start = true,
            Kind::ManualChange => {
                what = haproxy.change_by_hand(step);
                haproxy.external += 1;
            }
            _ => {
                drop(haproxy);
                match balancer.confgen.take() {
                    Some(_) => what = "killed".to_owned(),
                    None => balancer.start_confgen(clock, bug),
                }
                self.note(|| format!("{node}: confgen {what}"));
                return;
            }
        }
        drop(haproxy);
        if step.kind == Kind::ManualChange {
            // It may send requests to an app that was stopped, as the operator asks for.
            self.polite_stops.iter_mut().for_each(|stop| stop.nodes.retain(|it| *it != node));
        }
        self.note(|| format!("{node}: HAProxy: {:?} {what}", step.kind));
    }
}

fn describe(writes: &[Write]) -> String {
    let each = writes.iter().map(|write| match write {
        Write::Put { key, value, .. } => {
            let text: String = String::from_utf8_lossy(value).chars().take(60).collect();
            format!("{key} = {text:?}")
        }
        Write::Delete { key } => format!("{key} (deleted)"),
    });
    each.collect::<Vec<_>>().join(", ")
}

fn service_of(key: &str) -> Option<ServiceId> {
    key.parse::<Key>().ok()?.service_id().cloned()
}
