//! Watching the new color through the balancers' API.

use std::collections::BTreeSet;
use std::time::Duration;

use discovery::{Balancers, Color, Node, ServiceId};
use tokio::time::{Instant, sleep_until};

use super::state::Event;
use crate::balancer_api::{Answers, BalancerApi, ServiceInFull};
use crate::colors;
use crate::commands::switch::sample::{Limits, Sum, Tally};
use crate::context::Context;
use crate::error::Error;
use crate::progress::Progress;
use crate::store::Store;

/// How often the balancers are asked.
const PACE: Duration = Duration::from_secs(1);
/// HAProxy answers nobody while it is restarted, and a restart has to do with another service more often than not.
const GRACE: Duration = Duration::from_secs(5);

/// The balancers, and what was counted.
pub(super) struct Eyes<'a> {
    ctl: &'a Context,
    fleet: BalancerApi,
    /// Those that lived when the switch began.
    nodes: BTreeSet<Node>,
    path: String,
    color: Color,
    limits: Limits,
    tally: Tally,
}

impl<'a> Eyes<'a> {
    pub(super) fn new(
        ctl: &'a Context,
        store: &Store,
        id: &ServiceId,
        color: &Color,
        limits: Limits,
    ) -> Result<Self, Error> {
        let nodes = store.balancers.nodes().map(|(node, _)| node.clone()).collect();
        let (fleet, path) = (ctl.fleet(store)?, format!("services/{id}"));
        Ok(Self { ctl, fleet, nodes, path, color: color.clone(), limits, tally: Tally::default() })
    }

    /// Begins to count for a step.
    ///
    /// # Errors
    /// With a limit, why a balancer can't be judged: requests before its first answer would not be counted.
    pub(super) async fn begin(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while let Err(gone) = self.look().await {
            if !self.limits.is_any() {
                break;
            }
            if gone.is_final || begun.elapsed() >= GRACE {
                return Err(gone.say());
            }
            sleep_until(Instant::now() + PACE).await;
        }
        self.tally.begin();
        Ok(())
    }

    /// Watches for so long, unless there is something against it; the words say what.
    pub(super) async fn watch(&mut self, every: Duration) -> (Event, String) {
        let (mut progress, end) = (Progress::new(), Instant::now() + every);
        let mut seen = Instant::now();
        loop {
            let looked = self.look().await;
            let is_blind = self.limits.is_any() && looked.is_err();
            match looked {
                Ok(()) => seen = Instant::now(),
                Err(gone) if is_blind && (gone.is_final || seen.elapsed() >= GRACE) => {
                    return (Event::Blind, gone.say());
                }
                Err(_) => {}
            }
            let sum = self.sum();
            progress.say(format!("{}: {sum}", self.color));
            if let Err(words) = sum.judge(self.limits) {
                return (Event::Bad, words);
            }
            // A step passes only with every balancer's counters of its end: what was not seen may have failed.
            if Instant::now() >= end && !is_blind {
                return (Event::Over, String::new());
            }
            let next = Instant::now() + PACE;
            sleep_until(if is_blind { next } else { next.min(end) }).await;
        }
    }

    /// What came of the step so far.
    pub(super) fn sum(&self) -> Sum {
        self.tally.sum()
    }

    /// What is still open on the upstreams of other colors; None where a balancer can't say.
    pub(super) async fn sessions_left(&mut self) -> Option<u64> {
        let answers: Answers<ServiceInFull> = self.fleet.ask(&self.path).await;
        if answers.is_empty() || colors::unjudged(&answers).is_some() {
            return None;
        }
        let upstreams = answers.values().flatten().flat_map(|it| &it.upstreams);
        let others = upstreams.filter(|it| it.color.as_deref() != Some(self.color.as_str()));
        let open = others.map(|it| it.draining.or(it.haproxy.as_ref().map(|it| it.sessions)).unwrap_or_default());
        Some(open.sum())
    }

    async fn look(&mut self) -> Result<(), Gone> {
        // etcd away takes nobody's sight: the balancers are where they were.
        if let Ok(snapshot) = self.ctl.client.snapshot("balancers").await {
            let balancers = Balancers::of(&snapshot);
            if let Some(node) = self.nodes.iter().find(|node| balancers.nodes().all(|(it, _)| it != *node)) {
                return Err(Gone { words: format!("balancer {node} has gone"), is_final: true });
            }
            if !self.ctl.is_fleet_of(&self.fleet, &balancers) {
                let fleet = self.ctl.fleet_of(&balancers);
                self.fleet = fleet.map_err(|error| Gone { words: error.to_string(), is_final: false })?;
            }
        }
        let answers: Answers<ServiceInFull> = self.fleet.ask(&self.path).await;
        self.tally.take(&answers, |upstream| upstream.color.as_deref() == Some(self.color.as_str()));
        colors::unjudged(&answers).map_or(Ok(()), |words| Err(Gone { words, is_final: false }))
    }
}

/// A balancer that doesn't say.
struct Gone {
    words: String,
    /// Its key is gone: its lease was long enough.
    is_final: bool,
}

impl Gone {
    fn say(&self) -> String {
        format!("it can't be judged any more: {}", self.words)
    }
}
