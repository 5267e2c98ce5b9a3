//! Watching the new color through the balancers' API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use discovery::{Balancers, Color, Node, ServiceId};
use tokio::time::{Instant, sleep_until};

use super::state::Event;
use super::tally::{Limits, Sum, Tally};
use crate::ctl::Ctl;
use crate::error::Error;
use crate::fleet::{Answers, Fleet, ServiceInFull};
use crate::progress::Progress;
use crate::store::Store;

/// How often the balancers are asked.
const PACE: Duration = Duration::from_secs(1);
/// HAProxy answers nobody while it is restarted, and a restart has to do with another service more often than not.
const GRACE: Duration = Duration::from_secs(5);

/// The balancers, and what was counted.
pub(super) struct Eyes<'a> {
    ctl: &'a Ctl,
    fleet: Fleet,
    urls: BTreeMap<Node, Option<String>>,
    /// Those that lived when the switch began.
    nodes: BTreeSet<Node>,
    path: String,
    color: Color,
    limits: Limits,
    tally: Tally,
}

impl<'a> Eyes<'a> {
    pub(super) fn new(
        ctl: &'a Ctl,
        store: &Store,
        id: &ServiceId,
        color: &Color,
        limits: Limits,
    ) -> Result<Self, Error> {
        let urls = urls(&store.balancers);
        let nodes = urls.keys().cloned().collect();
        let (fleet, path) = (ctl.fleet(store)?, format!("services/{id}"));
        Ok(Self { ctl, fleet, urls, nodes, path, color: color.clone(), limits, tally: Tally::default() })
    }

    /// A step begins: what is counted from here on is its own.
    pub(super) async fn begin(&mut self) {
        // Whoever can't be asked now is found out while the step is watched.
        let _ = self.look().await;
        self.tally.begin();
    }

    /// Watches for so long, unless there is something against it; the words say what.
    pub(super) async fn watch(&mut self, every: Duration) -> (Event, String) {
        let (mut progress, end) = (Progress::new(), Instant::now() + every);
        let mut seen = Instant::now();
        loop {
            match self.look().await {
                Ok(()) => seen = Instant::now(),
                Err(gone) if self.limits.is_any() && (gone.is_final || seen.elapsed() >= GRACE) => {
                    return (Event::Blind, format!("it can't be judged any more: {}", gone.words));
                }
                Err(_) => {}
            }
            let sum = self.sum();
            progress.say(format!("{}: {sum}", self.color));
            if let Err(words) = sum.judge(self.limits) {
                return (Event::Bad, words);
            }
            // Blind at the end is no pass: the grace is waited for.
            let is_blind = self.limits.is_any() && seen.elapsed() >= 2 * PACE;
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

    /// What is still open on the upstreams of other colors; None where nobody can say.
    pub(super) async fn sessions_left(&mut self) -> Option<u64> {
        let answers: Answers<ServiceInFull> = self.fleet.ask(&self.path).await;
        let known: Vec<_> = answers.values().filter_map(|it| it.as_ref().ok()).collect();
        let others =
            known.iter().flat_map(|it| &it.upstreams).filter(|it| it.color.as_deref() != Some(self.color.as_str()));
        let open = others.map(|it| it.draining.or(it.haproxy.as_ref().map(|it| it.sessions)).unwrap_or_default());
        let open = open.sum();
        (!known.is_empty()).then_some(open)
    }

    async fn look(&mut self) -> Result<(), Gone> {
        // etcd away takes nobody's sight: the balancers are where they were.
        if let Ok(snapshot) = self.ctl.client.snapshot("balancers").await {
            let balancers = Balancers::of(&snapshot);
            let urls = urls(&balancers);
            if let Some(node) = self.nodes.iter().find(|node| !urls.contains_key(*node)) {
                return Err(Gone { words: format!("balancer {node} has gone"), is_final: true });
            }
            if urls != self.urls {
                let fleet = self.ctl.fleet_of(&balancers);
                self.fleet = fleet.map_err(|error| Gone { words: error.to_string(), is_final: false })?;
                self.urls = urls;
            }
        }
        let answers: Answers<ServiceInFull> = self.fleet.ask(&self.path).await;
        self.tally.take(&answers, |upstream| upstream.color.as_deref() == Some(self.color.as_str()));
        let silent = answers.iter().find_map(|(node, it)| match it {
            Ok(service) => service.haproxy_error.as_ref().map(|error| format!("{node}: {error}")),
            Err(error) => Some(format!("{node}: {error}")),
        });
        silent.map_or(Ok(()), |words| Err(Gone { words, is_final: false }))
    }
}

/// A balancer that doesn't say.
struct Gone {
    words: String,
    /// Its key is gone: its lease was long enough.
    is_final: bool,
}

fn urls(balancers: &Balancers) -> BTreeMap<Node, Option<String>> {
    balancers.nodes().map(|(node, said)| (node.clone(), said.and_then(|it| it.url.clone()))).collect()
}
