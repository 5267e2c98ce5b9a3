//! The report of a switch: lines for people as it goes on, a value for programs at its end.

use discovery::{Active, ServiceId};
use serde::Serialize;

use super::plan::Plan;
use super::state::State;
use crate::commands::switch::sample::StepSum;
use crate::print::{Block, Printable};

#[derive(Clone, Debug, Serialize)]
pub(super) struct SwitchReport {
    /// The name of the service's section: `http-shop`.
    service: String,
    /// The color to make active.
    color: String,
    /// The active colors before; null if none were set.
    before: Option<String>,
    /// The active colors now; null if none are set.
    pub(super) active: Option<String>,
    /// `planned`, `done`, `unchanged`, `went_back`, `stopped`, `overtaken` or `lost`.
    outcome: &'static str,
    /// The reason for an outcome other than `done`.
    pub(super) reason: Option<String>,
    /// The steps that were begun.
    pub(super) steps: Vec<StepReport>,
    /// Open sessions on other colors; null if a balancer can't tell, or if the switch isn't done.
    pub(super) sessions_left: Option<u64>,
}

/// One step of the switch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StepReport {
    /// The new color's share in percent.
    percent: u32,
    pub(super) active: String,
    /// The revision of the write; null if it wasn't written.
    pub(super) revision: Option<i64>,
    /// The time in seconds until every live balancer followed; null if one doesn't.
    pub(super) seconds: Option<f64>,
    /// The new color's requests in this step.
    #[serde(flatten)]
    pub(super) sum: StepSum,
}

impl SwitchReport {
    /// The report before the first step.
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

    /// The report of --dry-run, with all steps.
    pub(super) fn for_dry_run(id: &ServiceId, plan: &Plan) -> Self {
        let steps = plan.steps.iter().map(|(percent, active)| StepReport::new(*percent, active)).collect();
        Self { steps, ..Self::new(id, plan) }
    }

    /// Sets the outcome by the state in which the switch ended.
    pub(super) fn set_outcome(&mut self, state: State) {
        // docs/discoverctl.md publishes these words. They stay, whatever the states are called.
        self.outcome = match state {
            State::Done => "done",
            State::RolledBack => "went_back",
            State::Stopped => "stopped",
            State::Conflict => "overtaken",
            State::WriteUnknown => "lost",
            _ => "unchanged",
        };
    }

    /// Describes the active colors: `active is blue=90 green=10`.
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
    /// Only a planned switch is shown so. The lines of a real one were printed as it went on.
    fn to_blocks(&self) -> Vec<Block> {
        let mut lines = vec![format!("{}: {}", self.service, self.describe_active())];
        lines.extend(self.steps.iter().map(|step| format!("{} %: {}", step.percent, step.active)));
        lines.push("nothing was written: --dry-run".into());
        vec![Block::Text(lines.join("\n"))]
    }
}
