//! Carrying a switch out: `state` says what to do, this does it and says what came of it.

use discovery::{Active, ServiceId};

use super::Switch;
use super::hook::{self, Told};
use super::plan::Plan;
use super::signals::Signals;
use super::state::{Action, Event, State, step};
use crate::commands::switch::active_key::{Written, Wrote};
use crate::commands::switch::monitor::Eyes;
use crate::commands::switch::report::{Said, Step};
use crate::commands::switch::sample::Limits;
use crate::context::Context;
use crate::error::Error;
use crate::error::Outcome;
use crate::store::Store;
use crate::wait::{awaited, until_followed};

/// A switch under way.
pub(super) struct Run<'a> {
    ctl: &'a Context,
    plan: Plan,
    options: Switch,
    told: Told,
    eyes: Eyes<'a>,
    signals: Signals,
    active: Written,
    said: Said,
    /// An error of etcd's that isn't its absence.
    refused: Option<registry::Error>,
}

impl<'a> Run<'a> {
    /// Nothing is done yet.
    pub(super) fn new(
        ctl: &'a Context,
        store: &Store,
        id: &ServiceId,
        plan: Plan,
        options: Switch,
        limits: Limits,
        told: Told,
    ) -> Result<Self, Error> {
        let eyes = Eyes::new(ctl, store, id, &plan.color, limits)?;
        let said = Said::new(id, &plan);
        let signals = Signals::new(options.undo_on_interrupt)?;
        let active = Written::new(store, id);
        Ok(Self { ctl, plan, options, told, eyes, signals, active, said, refused: None })
    }

    /// Does it, to an end.
    pub(super) async fn run(mut self) -> Result<Outcome, Error> {
        let mut state = State::Testing { left: self.plan.steps.len() };
        let mut event = self.test().await;
        loop {
            let (next, action) = step(state, event);
            if next == State::GoingBack && event == Event::Undo {
                self.because("interrupted".into());
            }
            state = next;
            event = match action {
                Some(Action::WriteStep) => self.write_step(state).await?,
                Some(Action::Await) => self.follow(state).await?,
                Some(Action::Watch) => self.watch().await?,
                Some(Action::RunAfter) => self.prove().await,
                Some(Action::WriteBack) => self.write_back().await?,
                None => break,
            };
        }
        self.end(state, event).await
    }

    async fn test(&mut self) -> Event {
        let Some(command) = &self.options.before else { return Event::Passed };
        let (event, why) = tokio::select! {
            passed = hook::run("--before", command, &self.told) => judged(passed),
            event = self.signals.next() => (event, String::new()),
        };
        self.because(why);
        event
    }

    async fn prove(&mut self) -> Event {
        let Some(command) = &self.options.after else { return Event::Passed };
        let (event, why) = tokio::select! {
            passed = hook::run("--after", command, &self.told) => judged(passed),
            event = self.signals.next() => (event, String::new()),
            () = self.active.overtaken(&self.ctl.client) => (Event::Overtaken, String::new()),
        };
        self.because(why);
        event
    }

    async fn write_step(&mut self, state: State) -> Result<Event, Error> {
        let State::Writing { left } = state else { return Ok(Event::Unknown) };
        let at = self.plan.steps.len().saturating_sub(left + 1);
        let Some((percent, active)) = self.plan.steps.get(at).cloned() else { return Ok(Event::Unknown) };
        if let Err(why) = self.eyes.begin().await {
            self.because(why);
            return Ok(Event::Blind);
        }
        self.said.steps.push(Step::new(percent, &active));
        let stands = self.active.value.as_ref().and_then(|value| value.parse::<Active>().ok());
        let event =
            if stands.as_ref() == Some(&active) { Event::Written } else { self.write(Some(active.to_string())).await };
        if event == Event::Written {
            let revision = self.active.revision;
            self.last_step(|step| step.revision = Some(revision));
            self.said.active = Some(active.to_string());
            self.say(&format!("{percent} %: {active}"));
        }
        Ok(event)
    }

    async fn write_back(&mut self) -> Result<Event, Error> {
        self.end_step();
        let was = self.active.was.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        let why = self.said.reason.clone().unwrap_or_default();
        self.say(&format!("going back: {why}"));
        let event = if self.active.value == was { Event::Written } else { self.write(was).await };
        if event == Event::Written {
            self.said.active.clone_from(&self.plan.before.as_ref().map(ToString::to_string));
        }
        Ok(event)
    }

    async fn write(&mut self, value: Option<String>) -> Event {
        match self.active.write(&self.ctl.client, value, self.options.timeout).await {
            Wrote::Done => Event::Written,
            Wrote::Overtaken => Event::Overtaken,
            Wrote::Unknown { error, is_certain } => {
                self.because(error.to_string());
                self.refused = Some(error).filter(|_| is_certain);
                Event::Unknown
            }
        }
    }

    async fn follow(&mut self, state: State) -> Result<Event, Error> {
        let awaited = awaited(self.active.revision, [self.active.key.clone()]);
        let followed = tokio::select! {
            followed = until_followed(&self.ctl.client, &awaited, self.options.timeout) => followed,
            event = self.signals.next() => return Ok(event),
            () = self.active.overtaken(&self.ctl.client) => return Ok(Event::Overtaken),
        };
        match followed {
            Ok(followed) => {
                let seconds = followed.took.as_secs_f64();
                if state != State::Returning {
                    self.last_step(|step| step.seconds = Some(seconds));
                }
                let by: Vec<String> = followed.by.iter().map(ToString::to_string).collect();
                self.say(&match by.is_empty() {
                    true => "    no balancer lives that could follow".to_owned(),
                    false => format!("    followed by {} after {seconds:.1} s", by.join(", ")),
                });
                Ok(Event::Followed)
            }
            Err(error) => {
                let before = self.said.reason.take().map(|why| format!("{why}; on the way back: ")).unwrap_or_default();
                self.said.reason = Some(format!("{before}{error}"));
                Ok(Event::NotFollowed)
            }
        }
    }

    async fn watch(&mut self) -> Result<Event, Error> {
        let (event, why) = tokio::select! {
            seen = self.eyes.watch(self.options.every) => seen,
            event = self.signals.next() => (event, String::new()),
            () = self.active.overtaken(&self.ctl.client) => (Event::Overtaken, String::new()),
        };
        self.because(why);
        if event == Event::Over {
            self.end_step();
        }
        Ok(event)
    }

    /// What the step came to.
    fn end_step(&mut self) {
        let sum = self.eyes.sum();
        self.last_step(|step| step.sum = sum);
        self.say(&format!("    {}: {sum}", self.plan.color));
    }

    fn last_step(&mut self, change: impl FnOnce(&mut Step)) {
        if let Some(step) = self.said.steps.last_mut() {
            change(step);
        }
    }

    /// The first reason is the one that counts, but for what happens on the way back.
    fn because(&mut self, why: String) {
        if self.said.reason.is_none() && !why.is_empty() {
            self.said.reason = Some(why);
        }
    }

    fn say(&self, line: &str) {
        if !self.ctl.screen.is_for_programs() {
            self.ctl.screen.print(line);
        }
    }

    async fn end(mut self, state: State, event: Event) -> Result<Outcome, Error> {
        if state == State::Done && self.plan.steps.last().is_some_and(|(percent, _)| *percent == 100) {
            self.said.sessions_left = self.eyes.sessions_left().await;
        }
        self.said.ends(state);
        let words = self.said.what_is_active();
        let why = self.said.reason.clone().unwrap_or_default();
        let error = match state {
            State::Done => None,
            State::Unchanged if event == Event::Failed => {
                Some(Error::Undone(format!("{why}; nothing was changed: {words}")))
            }
            State::Unchanged => Some(Error::Interrupted(format!("nothing was changed: {words}"))),
            State::WentBack if why.starts_with("interrupted") => {
                Some(Error::Interrupted(format!("went back: {words}")))
            }
            State::WentBack => Some(Error::Undone(format!("{why}; went back: {words}"))),
            State::Stopped => Some(Error::Interrupted(format!("{words}; {}", self.ways()))),
            State::Overtaken => {
                self.said.active = self.active.now(&self.ctl.client).await;
                let words = self.said.what_is_active();
                Some(Error::Refused(format!(
                    "somebody else wrote {} meanwhile, and theirs stands: {words}",
                    self.active.key
                )))
            }
            _ => Some(match self.refused.take().filter(|_| self.said.steps.len() <= 1) {
                Some(error) => Error::Store(error),
                None => {
                    Error::Undone(format!("{why}; what is active isn't known: discoverctl color {}", self.told.service))
                }
            }),
        };
        if self.ctl.screen.is_for_programs() {
            self.said.reason = error.as_ref().map(ToString::to_string);
            self.ctl.screen.show(&self.said)?;
        }
        match error {
            Some(error) => Err(error),
            None => {
                self.say(&self.done());
                Ok(Outcome::Yes)
            }
        }
    }

    fn done(&self) -> String {
        let words = self.said.what_is_active();
        match self.said.sessions_left {
            Some(left) => format!("{words}; the other upstreams are drained, with {left} sessions left"),
            None => words,
        }
    }

    /// How to go on from here, or back.
    fn ways(&self) -> String {
        let (service, color) = (&self.told.service, &self.plan.color);
        let left = self.plan.steps.iter().skip(self.said.steps.len()).map(|(percent, _)| percent.to_string());
        let left: Vec<String> = left.collect();
        let on = match left.is_empty() {
            true => String::new(),
            false => format!("on with `discoverctl switch {service} {color} --steps {}`, ", left.join(",")),
        };
        match self.active.was.as_ref() {
            Some(was) => {
                format!("{on}back with `discoverctl color {service} {}`", String::from_utf8_lossy(&was.value).trim())
            }
            None => format!("{on}back with `discoverctl unset {service} active`"),
        }
    }
}

fn judged(passed: Result<(), String>) -> (Event, String) {
    match passed {
        Ok(()) => (Event::Passed, String::new()),
        Err(why) => (Event::Failed, why),
    }
}
