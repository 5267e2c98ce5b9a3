//! Which upstreams are on their way out, and when it is over: nobody sends a request there any more, and none is open.
//! Pure: it is told what HAProxy follows, what was counted, and the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::{Color, ServiceId, UpstreamId};

use crate::fills::Elsewhere;
use crate::settle::{ServerState, Settled, Wanted};
use crate::view::previews_of;

/// `timeout http-keep-alive` in haproxy.cfg. For so long after a restart an old process, which takes no drain, may send an
/// idle client's next request to any upstream that it knew.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// A restart is seen by one of four looks a second, and the old process is told to finish some milliseconds after the
/// new one first answers.
const SEEN_LATE: Duration = Duration::from_millis(250);

/// A request that leaves a server's queue stands nowhere for an instant: only so many counts in a row that find nothing
/// mean that there is nothing.
const SURE: u32 = 2;

/// An upstream and its service.
pub type Upstream = (ServiceId, UpstreamId);

/// What was found to be open.
#[derive(Clone, Debug)]
pub struct Count {
    /// When the first question was asked: requests that came later may be missing.
    pub at: Instant,
    /// The process that new requests come to; none when it doesn't answer.
    pub pid: Option<u32>,
    /// By section and server, in all processes.
    pub sessions: BTreeMap<(String, String), u64>,
    /// Every process that lives has answered.
    pub is_complete: bool,
}

/// What else must hold for a drain to be over.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The file on disk has every change up to this revision.
    pub filed: i64,
    /// HAProxy's process, and when it was last seen to be another one.
    pub process: Option<(u32, Instant)>,
}

/// All drains.
#[derive(Debug, Default)]
pub struct Draining {
    /// What HAProxy was found to follow; none before that.
    followed: Option<Arc<Settled>>,
    upstreams: BTreeMap<Upstream, Drain>,
    /// Services that have, or had, sections for previews: old processes may have one that is no longer wanted.
    previewed: BTreeSet<ServiceId>,
    /// Sections of the operator's that send to upstreams too, and the services for which they wait for a restart.
    elsewhere: Elsewhere,
    waiting: BTreeSet<ServiceId>,
    over: u64,
}

#[derive(Clone, Debug)]
struct Drain {
    /// None is one that is no longer wanted at all.
    state: Option<State>,
    /// HAProxy has it since.
    since: Instant,
    /// The file has it once it has this revision.
    revision: i64,
    sessions: u64,
    /// How many counts in a row have found nothing.
    free: u32,
    /// Stays so until the state is another.
    is_over: bool,
}

/// What is wanted of an upstream: in its service, and in the preview of its color if it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    own: ServerState,
    preview: Option<(Color, ServerState)>,
}

type States<'a> = BTreeMap<&'a UpstreamId, State>;

fn states(wanted: Option<&Arc<Wanted>>) -> States<'_> {
    let own = wanted.iter().flat_map(|wanted| &wanted.servers);
    let mut states: States = own.map(|server| (&server.id, State { own: server.state, preview: None })).collect();
    for preview in wanted.iter().flat_map(|wanted| &wanted.previews) {
        for server in &preview.servers {
            if let Some(state) = states.get_mut(&server.id) {
                state.preview = Some((preview.color.clone(), server.state));
            }
        }
    }
    states
}

/// The services that are another, or only in one of both: both are walked once, in their order.
fn changed<'a>(before: &'a Settled, after: &'a Settled) -> Vec<&'a ServiceId> {
    let (mut before, mut after) = (before.services().peekable(), after.services().peekable());
    let mut changed = Vec::new();
    loop {
        let (old, new) = (before.peek().copied(), after.peek().copied());
        let Some(first) = old.iter().chain(&new).map(|(id, _)| *id).min() else { return changed };
        let old = old.filter(|(id, _)| *id == first).and_then(|_| before.next());
        let new = new.filter(|(id, _)| *id == first).and_then(|_| after.next());
        if !matches!((old, new), (Some((_, old)), Some((_, new))) if Arc::ptr_eq(old, new)) {
            changed.push(first);
        }
    }
}

/// What is open on an upstream in all sections for previews.
fn previewing(sessions: &BTreeMap<(String, String), u64>, service: &ServiceId, upstream: &UpstreamId) -> u64 {
    let prefix = previews_of(service);
    let sections = sessions.range((prefix.clone(), String::new())..);
    let sections = sections.take_while(|((section, _), _)| section.starts_with(&prefix));
    sections.filter(|((_, server), _)| server == upstream.as_str()).map(|(_, count)| count).sum()
}

impl Draining {
    /// HAProxy follows what is settled at this revision. `leaving` are servers that it was already removing when it was
    /// first looked at.
    pub fn follow(&mut self, now: Instant, settled: &Arc<Settled>, revision: i64, leaving: &[Upstream]) {
        let before = self.followed.replace(Arc::clone(settled));
        // A store that was wiped counts anew.
        self.upstreams.values_mut().for_each(|drain| drain.revision = drain.revision.min(revision));
        let began = |state| Drain { state, since: now, revision, sessions: 0, free: 0, is_over: false };
        if before.is_none() {
            self.upstreams.extend(leaving.iter().map(|name| (name.clone(), began(None))));
            // From which of its sections isn't said.
            self.previewed.extend(leaving.iter().map(|(service, _)| service.clone()));
        }
        let before = before.unwrap_or_default();
        for id in changed(&before, settled) {
            let (old, new) = (before.service(id), settled.service(id));
            if new.is_some_and(|new| !new.previews.is_empty()) {
                self.previewed.insert(id.clone());
            }
            let (old, new) = (states(old), states(new));
            for (upstream, state) in &new {
                let name = (id.clone(), (*upstream).clone());
                match self.upstreams.get(&name) {
                    _ if state.own == ServerState::Ready => _ = self.upstreams.remove(&name),
                    Some(drain) if drain.state.as_ref() == Some(state) => {}
                    _ => _ = self.upstreams.insert(name, began(Some(state.clone()))),
                }
            }
            for upstream in old.keys().filter(|upstream| !new.contains_key(*upstream)) {
                let name = (id.clone(), (*upstream).clone());
                match self.upstreams.get_mut(&name) {
                    Some(drain) if drain.is_over => _ = self.upstreams.remove(&name),
                    Some(drain) => drain.state = None,
                    None => _ = self.upstreams.insert(name, began(None)),
                }
            }
        }
    }

    /// Sections of the operator's send to upstreams too, and `pending` services wait for a restart: such a section goes on
    /// sending until then, and an old process for a while after it.
    pub fn elsewhere(&mut self, elsewhere: Elsewhere, pending: &BTreeSet<ServiceId>) {
        self.waiting = pending.iter().filter(|id| elsewhere.has(id)).cloned().collect();
        self.elsewhere = elsewhere;
    }

    /// Takes in a count, and ends what is over.
    pub fn counted(&mut self, count: &Count, circumstances: Circumstances) {
        let Circumstances { filed, process } = circumstances;
        let known = process.filter(|(pid, _)| count.pid == Some(*pid));
        let settled = known.is_some_and(|(_, since)| count.at.duration_since(since) >= KEEP_ALIVE + SEEN_LATE);
        let (elsewhere, waiting) = (&self.elsewhere, &self.waiting);
        let sessions = |(service, upstream): &Upstream| {
            let own = std::iter::once((service.to_string(), upstream.to_string()));
            let all = own.chain(elsewhere.servers(service, upstream));
            let direct: u64 = all.filter_map(|server| count.sessions.get(&server)).sum();
            direct + previewing(&count.sessions, service, upstream)
        };
        let mut over = 0;
        let drains = self.upstreams.iter_mut().filter(|(_, drain)| !drain.is_over && drain.since <= count.at);
        for (name, drain) in drains {
            drain.sessions = sessions(name);
            let is_free = drain.sessions == 0 && count.is_complete && known.is_some();
            drain.free = if is_free { drain.free + 1 } else { 0 };
            let served = drain.free >= SURE && !waiting.contains(&name.0);
            drain.is_over = served && drain.revision <= filed && settled;
            over += u64::from(drain.is_over);
        }
        self.over += over;
        self.upstreams.retain(|_, drain| !(drain.is_over && drain.state.is_none()));
    }

    /// The upstreams whose drain isn't over, with their sessions.
    pub fn open(&self) -> BTreeMap<Upstream, u64> {
        let open = self.upstreams.iter().filter(|(_, drain)| !drain.is_over);
        open.map(|(name, drain)| (name.clone(), drain.sessions)).collect()
    }

    /// The services to ask HAProxy for; none where nothing is on its way out.
    pub fn services(&self) -> BTreeSet<&ServiceId> {
        self.upstreams.iter().filter(|(_, drain)| !drain.is_over).map(|((service, _), _)| service).collect()
    }

    /// Whether other sections than their own may send to the upstreams of one of these too: some of the operator's, or for
    /// previews.
    pub fn is_elsewhere(&self, services: &BTreeSet<ServiceId>) -> bool {
        services.iter().any(|id| self.elsewhere.has(id) || self.previewed.contains(id))
    }

    /// How many drains have ended so far.
    pub fn over(&self) -> u64 {
        self.over
    }
}

#[cfg(test)]
mod tests;
