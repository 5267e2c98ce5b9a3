//! Carries out a switch. `state` decides the next action. This module does it and reports the result as an event.

use discovery::{Active, ServiceId};

use super::Switch;
use super::hook::{self, HookEnv};
use super::plan::Plan;
use super::signals::Signals;
use super::state::{Action, Event, State, step};
use crate::commands::switch::active_key::{ActiveKey, WriteOutcome};
use crate::commands::switch::monitor::Monitor;
use crate::commands::switch::report::{StepReport, SwitchReport};
use crate::commands::switch::sample::Limits;
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::store::{Store, lossy_text};
use crate::wait::{goal_of_write, wait_until_followed};

/// A switch that is being carried out.
pub(super) struct SwitchRun<'a> {
    context: &'a Context,
    plan: Plan,
    options: Switch,
    hook_env: HookEnv,
    monitor: Monitor<'a>,
    signals: Signals,
    active: ActiveKey,
    report: SwitchReport,
    /// The error if etcd refused a write for certain.
    write_refusal: Option<registry::Error>,
    /// The operator's interruption is the first reason of the rollback.
    is_undo_requested: bool,
}

impl<'a> SwitchRun<'a> {
    pub(super) fn new(
        context: &'a Context,
        store: &Store,
        id: &ServiceId,
        plan: Plan,
        options: Switch,
        limits: Limits,
        hook_env: HookEnv,
    ) -> Result<Self, Error> {
        let eyes = Monitor::new(context, store, id, &plan.color, limits)?;
        let said = SwitchReport::new(id, &plan);
        let signals = Signals::new(options.undo_on_interrupt)?;
        let active = ActiveKey::new(store, id);
        Ok(Self {
            context,
            plan,
            options,
            hook_env,
            monitor: eyes,
            signals,
            active,
            report: said,
            write_refusal: None,
            is_undo_requested: false,
        })
    }

    /// Runs the switch until it ends.
    pub(super) async fn run(mut self) -> Result<Outcome, Error> {
        let mut state = State::BeforeHook { left: self.plan.steps.len() };
        let mut event = self.run_before_hook().await;
        loop {
            let (next, action) = step(state, event);
            // An earlier failure stays the reason: `set_reason` keeps the first one.
            if next == State::RollingBack && event == Event::UndoRequested {
                self.is_undo_requested |= self.report.reason.is_none();
                self.set_reason("interrupted".into());
            }
            state = next;
            event = match action {
                Some(Action::WriteStep) => self.write_step(state).await,
                Some(Action::AwaitBalancers) => self.await_balancers(state).await,
                Some(Action::Watch) => self.watch_step().await,
                Some(Action::RunAfter) => self.run_after_hook().await,
                Some(Action::WriteRollback) => self.write_back().await,
                None => break,
            };
        }
        self.report_end(state, event).await
    }

    async fn run_before_hook(&mut self) -> Event {
        let Some(command) = &self.options.before else { return Event::Passed };
        let (event, why) = tokio::select! {
            passed = hook::run_hook("--before", command, &self.hook_env) => hook_event(passed),
            event = self.signals.next() => (event, String::new()),
        };
        self.set_reason(why);
        event
    }

    async fn run_after_hook(&mut self) -> Event {
        let Some(command) = &self.options.after else { return Event::Passed };
        let (event, why) = tokio::select! {
            passed = hook::run_hook("--after", command, &self.hook_env) => hook_event(passed),
            event = self.signals.next() => (event, String::new()),
            () = self.active.wait_for_conflict(&self.context.client) => (Event::Conflict, String::new()),
        };
        self.set_reason(why);
        event
    }

    async fn write_step(&mut self, state: State) -> Event {
        // `step` asks for a write only in this state. The compiler can't know that.
        let State::Writing { left } = state else { return Event::WriteUnknown };
        let at = self.plan.steps.len().saturating_sub(left + 1);
        let Some((percent, active)) = self.plan.steps.get(at).cloned() else { return Event::WriteUnknown };
        // The counters are read before the write, so that the first requests of the step count.
        if let Err(why) = self.monitor.begin_step().await {
            self.set_reason(why);
            return Event::Unjudged;
        }
        self.report.steps.push(StepReport::new(percent, &active));
        // A switch that continues after an interruption finds its first step written already.
        let standing = self.active.value.as_ref().and_then(|value| value.parse::<Active>().ok());
        let is_written = standing.as_ref() == Some(&active);
        let reason = self.options.reason.clone();
        let event = match is_written {
            true => Event::Written,
            false => self.write_active(Some(active.to_string()), reason.as_deref()).await,
        };
        if event == Event::Written {
            let revision = self.active.revision;
            self.update_last_step(|step| step.revision = Some(revision));
            self.report.active = Some(active.to_string());
            self.print_line(&format!("{percent} %: {active}"));
        }
        event
    }

    async fn write_back(&mut self) -> Event {
        // The failed step never reached its end, so its counts are noted and printed here.
        self.end_step();
        let before = self.active.before.as_ref().map(lossy_text);
        let why = self.report.reason.clone().unwrap_or_default();
        self.print_line(&format!("going back: {why}"));
        // If the first write was never made, the store still has the old value.
        let event = match self.active.value == before {
            true => Event::Written,
            false => self.write_active(before, Some(&format!("going back: {why}"))).await,
        };
        if event == Event::Written {
            self.report.active.clone_from(&self.plan.before.as_ref().map(ToString::to_string));
        }
        event
    }

    async fn write_active(&mut self, value: Option<String>, reason: Option<&str>) -> Event {
        match self.active.write_value(self.context, value, reason, self.options.timeout).await {
            WriteOutcome::Done => Event::Written,
            WriteOutcome::Conflict => Event::Conflict,
            WriteOutcome::Unknown { error, is_certain } => {
                self.set_reason(error.to_string());
                self.write_refusal = Some(error).filter(|_| is_certain);
                Event::WriteUnknown
            }
        }
    }

    async fn await_balancers(&mut self, state: State) -> Event {
        let goal = goal_of_write(self.active.revision, [self.active.key.clone()]);
        let followed = tokio::select! {
            followed = wait_until_followed(&self.context.client, &goal, self.options.timeout) => followed,
            event = self.signals.next() => return event,
            () = self.active.wait_for_conflict(&self.context.client) => return Event::Conflict,
        };
        match followed {
            Ok(followed) => {
                let seconds = followed.took.as_secs_f64();
                // A rollback is no step. Its time must not replace that of the step that failed.
                if state != State::AwaitingRollback {
                    self.update_last_step(|step| step.seconds = Some(seconds));
                }
                let by: Vec<String> = followed.by.iter().map(ToString::to_string).collect();
                self.print_line(&match by.is_empty() {
                    true => "    no balancer lives that could follow".to_owned(),
                    false => format!("    followed by {} after {seconds:.1} s", by.join(", ")),
                });
                Event::Followed
            }
            Err(error) => {
                // While the switch goes back, there is a first reason already. The operator has to know both.
                let before =
                    self.report.reason.take().map(|why| format!("{why}; on the way back: ")).unwrap_or_default();
                self.report.reason = Some(format!("{before}{error}"));
                Event::NotFollowed
            }
        }
    }

    async fn watch_step(&mut self) -> Event {
        let (event, why) = tokio::select! {
            seen = self.monitor.watch_step(self.options.every) => seen,
            event = self.signals.next() => (event, String::new()),
            () = self.active.wait_for_conflict(&self.context.client) => (Event::Conflict, String::new()),
        };
        self.set_reason(why);
        if event == Event::StepEnded {
            self.end_step();
        }
        event
    }

    /// Notes and prints the step's counts.
    fn end_step(&mut self) {
        let sum = self.monitor.step_sum();
        self.update_last_step(|step| step.sum = sum);
        self.print_line(&format!("    {}: {sum}", self.plan.color));
    }

    fn update_last_step(&mut self, change: impl FnOnce(&mut StepReport)) {
        if let Some(step) = self.report.steps.last_mut() {
            change(step);
        }
    }

    /// Keeps the first reason, which caused the rest. A failed rollback adds to it.
    fn set_reason(&mut self, why: String) {
        if self.report.reason.is_none() && !why.is_empty() {
            self.report.reason = Some(why);
        }
    }

    fn print_line(&self, line: &str) {
        // A program gets one document at the end, with the same facts.
        if !self.context.screen.is_for_programs() {
            self.context.screen.print(line);
        }
    }

    async fn report_end(mut self, state: State, event: Event) -> Result<Outcome, Error> {
        // Below 100 % the other colors still get requests, so their sessions say nothing.
        if state == State::Done && self.plan.steps.last().is_some_and(|(percent, _)| *percent == 100) {
            self.report.sessions_left = self.monitor.sessions_left().await;
        }
        if state == State::Conflict {
            self.report.active = self.active.read_current(&self.context.client).await;
        }
        self.report.set_outcome(state);
        let error = self.take_error(state, event);
        if self.context.screen.is_for_programs() {
            self.report.reason = error.as_ref().map(ToString::to_string);
            self.context.screen.show(&self.report)?;
        }
        match error {
            Some(error) => Err(error),
            None => {
                self.print_line(&self.describe_done());
                Ok(Outcome::Yes)
            }
        }
    }

    /// The error that the command ends with; None if the switch is done.
    fn take_error(&mut self, state: State, event: Event) -> Option<Error> {
        let words = self.report.describe_active();
        let why = self.report.reason.clone().unwrap_or_default();
        Some(match state {
            State::Done => return None,
            State::Unchanged if event == Event::Failed => Error::Undone(format!("{why}; nothing was changed: {words}")),
            State::Unchanged => Error::Interrupted(format!("nothing was changed: {words}")),
            State::RolledBack if self.is_undo_requested => Error::Interrupted(format!("went back: {words}")),
            State::RolledBack => Error::Undone(format!("{why}; went back: {words}")),
            State::Stopped => Error::Interrupted(format!("{words}; {}", self.describe_next_commands())),
            State::Conflict => {
                let key = &self.active.key;
                Error::Refused(format!("another client wrote {key} meanwhile, and its value stands: {words}"))
            }
            // The exit code of etcd's error says that nothing was changed. That is true only of the first step.
            _ => match self.write_refusal.take().filter(|_| self.report.steps.len() <= 1) {
                Some(error) => Error::Store(error),
                None => {
                    let service = &self.hook_env.service;
                    Error::Undone(format!("{why}; what is active isn't known: discoverctl color {service}"))
                }
            },
        })
    }

    fn describe_done(&self) -> String {
        let words = self.report.describe_active();
        match self.report.sessions_left {
            Some(left) => format!("{words}; the other upstreams are drained, with {left} sessions left"),
            None => words,
        }
    }

    /// Describes the commands that continue from here, or go back.
    fn describe_next_commands(&self) -> String {
        let (service, color) = (&self.hook_env.service, &self.plan.color);
        let left = self.plan.steps.iter().skip(self.report.steps.len()).map(|(percent, _)| percent.to_string());
        let left: Vec<String> = left.collect();
        let on = match left.is_empty() {
            true => String::new(),
            false => format!("on with `discoverctl switch {service} {color} --steps {}`, ", left.join(",")),
        };
        match self.active.before.as_ref() {
            Some(before) => format!("{on}back with `discoverctl color {service} {}`", lossy_text(before).trim()),
            None => format!("{on}back with `discoverctl unset {service} active`"),
        }
    }
}

fn hook_event(passed: Result<(), String>) -> (Event, String) {
    match passed {
        Ok(()) => (Event::Passed, String::new()),
        Err(why) => (Event::Failed, why),
    }
}
