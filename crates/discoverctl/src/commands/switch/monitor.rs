//! Watches the new color through the balancers' API.

use std::collections::BTreeSet;
use std::time::Duration;

use discovery::{BalancerRecords, Color, Node, ServiceId};
use tokio::time::{Instant, sleep_until};

use super::state::Event;
use crate::balancer_api::{Answers, BalancerApi, ServiceInFull};
use crate::colors;
use crate::commands::switch::sample::{Limits, StepCounts, StepSum};
use crate::context::Context;
use crate::error::Error;
use crate::progress::Progress;
use crate::store::Store;

/// The interval between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// HAProxy doesn't answer during a restart, which mostly concerns another service. So a short silence isn't held
/// against the color.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// The balancers, and the counts of the current step.
pub(super) struct Monitor<'a> {
    context: &'a Context,
    api: BalancerApi,
    /// The balancers that lived when the switch began.
    nodes: BTreeSet<Node>,
    path: String,
    color: Color,
    limits: Limits,
    counts: StepCounts,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(
        context: &'a Context,
        store: &Store,
        id: &ServiceId,
        color: &Color,
        limits: Limits,
    ) -> Result<Self, Error> {
        let nodes = store.balancers.records_by_node().map(|(node, _)| node.clone()).collect();
        let (api, path) = (context.balancer_api(store)?, format!("services/{id}"));
        Ok(Self { context, api, nodes, path, color: color.clone(), limits, counts: StepCounts::default() })
    }

    /// Begins a step's counts.
    ///
    /// # Errors
    /// With a limit, the reason why a balancer can't be judged. Requests before its first answer would not be counted.
    pub(super) async fn begin_step(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while let Err(gone) = self.take_sample().await {
            // Without a limit the counts are only printed, so a missing first sample does no harm.
            if !self.limits.is_any() {
                break;
            }
            if gone.is_final || begun.elapsed() >= MAX_SILENCE {
                return Err(gone.to_message());
            }
            sleep_until(Instant::now() + SAMPLE_INTERVAL).await;
        }
        self.counts.reset_counts();
        Ok(())
    }

    /// Watches a step for `every`. Returns early if a limit is exceeded or can't be judged, with the reason.
    pub(super) async fn watch_step(&mut self, every: Duration) -> (Event, String) {
        let (mut progress, end) = (Progress::new(), Instant::now() + every);
        let mut seen = Instant::now();
        loop {
            let looked = self.take_sample().await;
            // Without a limit a balancer that doesn't answer stops nothing.
            let is_blind = self.limits.is_any() && looked.is_err();
            match looked {
                Ok(()) => seen = Instant::now(),
                Err(gone) if is_blind && (gone.is_final || seen.elapsed() >= MAX_SILENCE) => {
                    return (Event::Unjudged, gone.to_message());
                }
                Err(_) => {}
            }
            let sum = self.step_sum();
            progress.set_message(format!("{}: {sum}", self.color));
            if let Err(words) = sum.check_limits(self.limits) {
                return (Event::LimitExceeded, words);
            }
            // A step passes only with every balancer's counters from its end, because requests that were not counted
            // may have failed.
            if Instant::now() >= end && !is_blind {
                return (Event::StepEnded, String::new());
            }
            let next = Instant::now() + SAMPLE_INTERVAL;
            // The last sample is taken at the end of the step, not up to a second later.
            sleep_until(if is_blind { next } else { next.min(end) }).await;
        }
    }

    /// The counts of the step so far.
    pub(super) fn step_sum(&self) -> StepSum {
        self.counts.sum_up()
    }

    /// The number of open sessions on other colors' upstreams; None if a balancer can't tell.
    pub(super) async fn sessions_left(&mut self) -> Option<u64> {
        let answers: Answers<ServiceInFull> = self.api.ask_all(&self.path).await;
        if answers.is_empty() || colors::find_unjudged(&answers).is_some() {
            return None;
        }
        let upstreams = answers.values().flatten().flat_map(|it| &it.upstreams);
        let others = upstreams.filter(|it| it.color.as_deref() != Some(self.color.as_str()));
        // `draining` counts the sessions of old HAProxy processes, too.
        let open = others.map(|it| it.draining.or(it.haproxy.as_ref().map(|it| it.sessions)).unwrap_or_default());
        Some(open.sum())
    }

    async fn take_sample(&mut self) -> Result<(), Unjudged> {
        // If etcd doesn't answer, the balancers are still where they were.
        if let Ok(snapshot) = self.context.client.read_snapshot("balancers").await {
            let balancers = BalancerRecords::from_snapshot(&snapshot);
            if let Some(node) = self.nodes.iter().find(|node| balancers.records_by_node().all(|(it, _)| it != *node)) {
                return Err(Unjudged { words: format!("balancer {node} has gone"), is_final: true });
            }
            // A confgen that was restarted has a new instance id, and a moved one has a new URL.
            if !self.context.is_api_of(&self.api, &balancers) {
                let api = self.context.balancer_api_of(&balancers);
                self.api = api.map_err(|error| Unjudged { words: error.to_string(), is_final: false })?;
            }
        }
        let answers: Answers<ServiceInFull> = self.api.ask_all(&self.path).await;
        self.counts.add_answers(&answers, |upstream| upstream.color.as_deref() == Some(self.color.as_str()));
        colors::find_unjudged(&answers).map_or(Ok(()), |words| Err(Unjudged { words, is_final: false }))
    }
}

/// The reason why a balancer can't be judged.
struct Unjudged {
    words: String,
    /// The balancer's key is gone. Its lease has lasted long enough, so there is no further grace.
    is_final: bool,
}

impl Unjudged {
    fn to_message(&self) -> String {
        format!("it can't be judged any more: {}", self.words)
    }
}
