//! What a switch says, for people as it goes and for programs at its end.

use discovery::{Active, ServiceId};
use serde::Serialize;

use super::plan::Plan;
use super::state::State;
use crate::commands::switch::sample::StepSum;
use crate::print::{Block, Printable};

/// The whole of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SwitchReport {
    /// As HAProxy's section is called: `http-shop`.
    service: String,
    /// The new color.
    color: String,
    /// What was active; null where nothing was set.
    before: Option<String>,
    /// What is active now; null where nothing is set.
    pub(super) active: Option<String>,
    /// `planned`, `done`, `unchanged`, `went_back`, `stopped`, `overtaken` or `lost`.
    outcome: &'static str,
    /// Why it isn't `done`.
    pub(super) reason: Option<String>,
    /// The steps that were begun.
    pub(super) steps: Vec<StepReport>,
    /// What is still open on other colors; null where nobody can say, or it isn't done.
    pub(super) sessions_left: Option<u64>,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StepReport {
    /// The new color's share, in hundredths.
    percent: u32,
    /// The value of `active`.
    pub(super) active: String,
    /// Where it was written; null where it wasn't.
    pub(super) revision: Option<i64>,
    /// How long until every live balancer followed; null where they don't.
    pub(super) seconds: Option<f64>,
    /// What the new color answered in this step.
    #[serde(flatten)]
    pub(super) sum: StepSum,
}

impl SwitchReport {
    /// Nothing is done yet.
    pub(super) fn new(id: &ServiceId, plan: &Plan) -> Self {
        let before = plan.before.as_ref().map(ToString::to_string);
        Self {
            service: id.to_string(),
            color: plan.color.to_string(),
            active: before.clone(),
            before,
            outcome: "planned",
            reason: None,
            steps: Vec::new(),
            sessions_left: None,
        }
    }

    /// What would be done.
    pub(super) fn for_dry_run(id: &ServiceId, plan: &Plan) -> Self {
        let steps = plan.steps.iter().map(|(percent, active)| StepReport::new(*percent, active)).collect();
        Self { steps, ..Self::new(id, plan) }
    }

    /// How it ended.
    pub(super) fn set_outcome(&mut self, state: State) {
        self.outcome = match state {
            State::Done => "done",
            State::RolledBack => "went_back",
            State::Stopped => "stopped",
            State::Conflict => "overtaken",
            State::WriteUnknown => "lost",
            _ => "unchanged",
        };
    }

    /// `blue is active`, `all colors are active`.
    pub(super) fn describe_active(&self) -> String {
        match &self.active {
            Some(active) => format!("active is {active}"),
            None => "active is not set: every upstream serves".into(),
        }
    }
}

impl StepReport {
    pub(super) fn new(percent: u32, active: &Active) -> Self {
        Self { percent, active: active.to_string(), revision: None, seconds: None, sum: StepSum::default() }
    }
}

impl Printable for SwitchReport {
    /// Of what is planned; the rest was said as it went.
    fn to_blocks(&self) -> Vec<Block> {
        let step = |step: &StepReport| format!("{} %: {}", step.percent, step.active);
        let mut lines = vec![format!("{}: {}", self.service, self.describe_active())];
        lines.extend(self.steps.iter().map(step));
        lines.push("nothing was written: --dry-run".into());
        vec![Block::Text(lines.join("\n"))]
    }
}
