//! Counts the verdicts on each service's upstreams, for the problems and the console. Pure: no I/O, no clock.
//!
//! It decides nothing anew: `verdict.rs` judges, and this module only counts.

use std::collections::BTreeMap;

use discovery::{Cause, ServiceId, UpstreamState, Verdict};

use crate::desired::UpstreamExplanation;
use crate::status::Status;
use crate::status::figures::Figures;
use crate::status::verdict::Judge;

/// What an upstream's verdict means for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mood {
    /// It gets requests.
    Serving,
    /// It gets none, as its record, an override or the active colors ask for.
    Standby,
    /// It gets none, and nothing asks for that.
    Failing,
    /// HAProxy can't be asked.
    Unknown,
}

impl Mood {
    /// The mood of an upstream with this verdict. `announced` is the state of its record.
    pub fn of(verdict: &Verdict, announced: Option<UpstreamState>) -> Self {
        match (verdict.gets_requests, verdict.cause()) {
            (Some(true), _) => Self::Serving,
            (None, _) => Self::Unknown,
            // An app that is down has not asked for it, unlike one that drains before its stop.
            (_, Some(Cause::Announcer)) if announced == Some(UpstreamState::Down) => {
                let is_wanted = verdict.has_cause(&Cause::InactiveColor) || verdict.has_cause(&Cause::Override);
                if is_wanted { Self::Standby } else { Self::Failing }
            }
            (_, Some(cause)) if cause.is_intended() => Self::Standby,
            _ => Self::Failing,
        }
    }

    /// The word for people, which is also the name of the style.
    pub fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Standby => "standby",
            Self::Failing => "failing",
            Self::Unknown => "unknown",
        }
    }

    /// A sign, so that the color isn't the only difference.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Serving => "●",
            Self::Standby => "○",
            Self::Failing => "▲",
            Self::Unknown => "?",
        }
    }
}

/// The upstreams of one service that get no requests for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    pub cause: Cause,
    /// The sentence of the first of them.
    pub words: String,
    /// The id of the first of them.
    pub first: String,
    pub count: usize,
    pub mood: Mood,
}

/// The upstreams of one color.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColorTally {
    pub total: usize,
    pub serving: usize,
}

/// One service with its verdicts, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<'a> {
    pub id: &'a ServiceId,
    pub total: usize,
    pub serving: usize,
    pub standby: usize,
    pub failing: usize,
    pub unknown: usize,
    /// The upstreams without requests, by cause, in the order of the causes.
    pub idle: Vec<Idle>,
    /// By color. Upstreams without one are in none.
    pub colors: BTreeMap<&'a str, ColorTally>,
    /// The machines of the upstreams, with the number on each.
    pub machines: BTreeMap<&'a str, usize>,
}

impl<'a> Tally<'a> {
    fn new(id: &'a ServiceId) -> Self {
        Self {
            id,
            total: 0,
            serving: 0,
            standby: 0,
            failing: 0,
            unknown: 0,
            idle: Vec::new(),
            colors: BTreeMap::new(),
            machines: BTreeMap::new(),
        }
    }

    fn add(&mut self, upstream: &UpstreamExplanation<'a>, verdict: Verdict) {
        let mood = Mood::of(&verdict, upstream.announced.map(|it| it.state));
        self.total += 1;
        match mood {
            Mood::Serving => self.serving += 1,
            Mood::Standby => self.standby += 1,
            Mood::Failing => self.failing += 1,
            Mood::Unknown => self.unknown += 1,
        }
        if let Some(color) = upstream.announced.and_then(|it| it.color.as_ref()) {
            let tally = self.colors.entry(color.as_str()).or_default();
            tally.total += 1;
            tally.serving += usize::from(mood == Mood::Serving);
        }
        if let Some(machine) = upstream.announced.and_then(|it| it.host.as_ref()) {
            *self.machines.entry(machine.as_str()).or_default() += 1;
        }
        let Some(reason) = verdict.because else { return };
        match self.idle.iter_mut().find(|idle| idle.cause == reason.cause && idle.mood == mood) {
            Some(idle) => idle.count += 1,
            None => {
                let (cause, words, first) = (reason.cause, reason.words, upstream.id.to_string());
                self.idle.push(Idle { cause, words, first, count: 1, mood });
            }
        }
    }

    /// The first cause that keeps requests from upstreams, those that nothing asks for before the others.
    pub fn first_idle(&self) -> Option<&Idle> {
        let failing = self.idle.iter().find(|idle| idle.mood == Mood::Failing);
        failing.or_else(|| self.idle.first())
    }
}

/// Judges all upstreams of all services.
pub fn tally_services<'a>(status: &'a Status, figures: &Figures) -> Vec<Tally<'a>> {
    status.reconcile.desired.known_services().map(|id| tally_service(status, figures, id)).collect()
}

fn tally_service<'a>(status: &'a Status, figures: &Figures, id: &'a ServiceId) -> Tally<'a> {
    let judge = Judge::new(status, figures, id);
    let mut tally = Tally::new(id);
    for upstream in &status.reconcile.desired.explain_upstreams(id) {
        tally.add(upstream, judge.judge_upstream(upstream));
    }
    tally.idle.sort_by(|one, other| one.cause.cmp(&other.cause));
    tally
}
