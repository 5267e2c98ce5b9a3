//! Which upstreams are on their way out, and when it is over: nobody sends a request there any more, and none is open.
//! Pure: it is told what HAProxy follows, what was counted, and the time.

mod sessions;
pub(crate) mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::{Color, ServiceId, UpstreamId};
use haproxy::runtime::Streams;

use crate::desired::names::preview_prefix;
use crate::desired::{DesiredService, DesiredState, ServerState};
use crate::operator_files::filled::OtherBackends;
use crate::render::KEEP_ALIVE;

/// `timeout client` in haproxy.cfg. It bounds a TLS handshake, and an idle connection of HTTP/2.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A restart is seen by one of four looks a second, and the old process is told to finish some milliseconds after the
/// new one first answers.
const RESTART_NOTICED_WITHIN: Duration = Duration::from_millis(250);

/// How long after a restart a client of HTTP/2 that has answers open may still send a request to the old process: HAProxy
/// has sent it a GOAWAY at the restart, and the client may not have read it yet.
const GOAWAY_WAIT: Duration = KEEP_ALIVE.saturating_add(RESTART_NOTICED_WITHIN);

/// How long after a restart the old process may get a first request over an idle connection. A connection that was
/// accepted just before the restart has `timeout client` for its TLS handshake. After it, HTTP/1 has `timeout http-request`,
/// which is shorter, and HTTP/2 has `timeout client` again.
pub const FIRST_REQUEST_WAIT: Duration = CLIENT_TIMEOUT.saturating_mul(2).saturating_add(Duration::from_secs(5));

/// A master that doesn't answer is waited for as long as an announcer waits by default (`--drain 15s`): its old process may
/// have requests in flight.
pub const SILENT_MASTER_WAIT: Duration = Duration::from_secs(15);

/// A request that leaves a server's queue stands nowhere for an instant: only so many counts in a row that find nothing
/// mean that there is nothing.
const CONFIRMATIONS: u32 = 2;

/// An upstream and its service.
pub type DrainedUpstream = (ServiceId, UpstreamId);

/// What was found to be open.
#[derive(Clone, Debug)]
pub struct SessionCount {
    /// When the first question was asked: requests that came later may be missing.
    pub at: Instant,
    /// The process that new requests come to; none when it doesn't answer.
    pub pid: Option<u32>,
    /// By section and server, in all processes.
    pub sessions: BTreeMap<(String, String), u64>,
    /// The old processes.
    pub old_processes: Vec<OldProcess>,
    /// When the latest of the masters that don't answer was first asked in vain. `None` if all answer.
    pub silent_since: Option<Instant>,
    /// An old process may live that can't be asked.
    pub is_blind: bool,
    /// Every process that can be asked has answered, and none is starting.
    pub is_complete: bool,
}

/// An old process, which finishes its last requests and takes no drain.
#[derive(Clone, Debug, Default)]
pub struct OldProcess {
    /// When it was first found to be old. `None` if only the restart tells.
    pub since: Option<Instant>,
    /// What it has open.
    pub streams: Streams,
}

impl OldProcess {
    /// Whether it may send a request to a server of these sections, so long after it became old.
    fn can_send_to(&self, age: Duration, mut is_concerned: impl FnMut(&str) -> bool) -> bool {
        let Streams { connections, idle, unrouted, undecided } = &self.streams;
        let may_get_another = if age < GOAWAY_WAIT { *connections > 0 } else { *idle > 0 && age < FIRST_REQUEST_WAIT };
        may_get_another || *unrouted > 0 || undecided.keys().any(|section| is_concerned(section))
    }
}

impl SessionCount {
    /// Whether an old process may send a request to a server of these sections. `restarted` is the time of the last restart.
    fn can_send_to(&self, restarted: Instant, is_concerned: impl Fn(&str) -> bool) -> bool {
        self.old_processes.iter().any(|old| old.can_send_to(self.old_process_age(old.since, restarted), &is_concerned))
    }

    /// Whether a process that can't be asked may still get requests.
    fn may_miss_requests(&self, restarted: Instant) -> bool {
        let is_early = self.is_blind && self.old_process_age(None, restarted) < FIRST_REQUEST_WAIT;
        is_early || self.silent_since.is_some_and(|since| self.at.duration_since(since) < SILENT_MASTER_WAIT)
    }

    /// How long ago a process became old: before both the last restart and the time when it was first found to be so.
    fn old_process_age(&self, since: Option<Instant>, restarted: Instant) -> Duration {
        self.at.duration_since(since.map_or(restarted, |since| since.min(restarted)))
    }
}

/// What else must hold for a drain to be over.
#[derive(Clone, Copy, Debug)]
pub struct DrainContext {
    /// The file on disk has every change up to this revision.
    pub published_revision: i64,
    /// When that file was written.
    pub published_at: Instant,
    /// HAProxy's process, and when it was last seen to be another one.
    pub process: Option<(u32, Instant)>,
    /// Whether that process was found to follow the store since it took over.
    pub is_confirmed: bool,
}

/// All drains.
#[derive(Debug, Default)]
pub struct DrainTracker {
    /// What HAProxy was found to follow; none before that.
    followed: Option<Arc<DesiredState>>,
    upstreams: BTreeMap<DrainedUpstream, Drain>,
    /// Services that have, or had, sections for previews: old processes may have one that is no longer wanted.
    previewed: BTreeSet<ServiceId>,
    /// Sections of the operator's that send to upstreams too, and the services for which they wait for a restart.
    other_backends: OtherBackends,
    pending: BTreeSet<ServiceId>,
    ended: u64,
}

#[derive(Clone, Debug)]
struct Drain {
    /// None is one that is no longer wanted at all.
    state: Option<UpstreamStates>,
    /// HAProxy has it since.
    since: Instant,
    /// The file has it once it has this revision.
    revision: i64,
    sessions: u64,
    /// How many counts in a row have found nothing.
    idle_counts: u32,
    /// Stays so until the state is another.
    is_over: bool,
}

/// What is wanted of an upstream: in its service, and in the preview of its color if it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UpstreamStates {
    own: ServerState,
    preview: Option<(Color, ServerState)>,
}

type States<'a> = BTreeMap<&'a UpstreamId, UpstreamStates>;

fn desired_states(wanted: Option<&Arc<DesiredService>>) -> States<'_> {
    let own = wanted.iter().flat_map(|wanted| &wanted.servers);
    let mut states: States =
        own.map(|server| (&server.id, UpstreamStates { own: server.state, preview: None })).collect();
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
fn changed_services<'a>(before: &'a DesiredState, after: &'a DesiredState) -> Vec<&'a ServiceId> {
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
fn count_preview_sessions(
    sessions: &BTreeMap<(String, String), u64>,
    service: &ServiceId,
    upstream: &UpstreamId,
) -> u64 {
    let prefix = preview_prefix(service);
    let sections = sessions.range((prefix.clone(), String::new())..);
    let sections = sections.take_while(|((section, _), _)| section.starts_with(&prefix));
    sections.filter(|((_, server), _)| server == upstream.as_str()).map(|(_, count)| count).sum()
}

impl DrainTracker {
    /// HAProxy follows what is settled at this revision. `leaving` are servers that it was already removing when it was
    /// first looked at.
    pub fn update_drains(
        &mut self,
        now: Instant,
        settled: &Arc<DesiredState>,
        revision: i64,
        leaving: &[DrainedUpstream],
    ) {
        let before = self.followed.replace(Arc::clone(settled));
        // A store that was wiped counts anew.
        self.upstreams.values_mut().for_each(|drain| drain.revision = drain.revision.min(revision));
        let began = |state| Drain { state, since: now, revision, sessions: 0, idle_counts: 0, is_over: false };
        if before.is_none() {
            self.upstreams.extend(leaving.iter().map(|name| (name.clone(), began(None))));
            // From which of its sections isn't said.
            self.previewed.extend(leaving.iter().map(|(service, _)| service.clone()));
        }
        let before = before.unwrap_or_default();
        for id in changed_services(&before, settled) {
            let (old, new) = (before.service(id), settled.service(id));
            if new.is_some_and(|new| !new.previews.is_empty()) {
                self.previewed.insert(id.clone());
            }
            let (old, new) = (desired_states(old), desired_states(new));
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
    pub fn set_other_backends(&mut self, elsewhere: OtherBackends, pending: &BTreeSet<ServiceId>) {
        self.pending = pending.iter().filter(|id| elsewhere.has_service(id)).cloned().collect();
        self.other_backends = elsewhere;
    }

    /// Takes in a count, and ends what is over.
    pub fn apply_count(&mut self, count: &SessionCount, circumstances: DrainContext) {
        let DrainContext { published_revision: filed, published_at: filed_at, process, is_confirmed } = circumstances;
        let known = process.filter(|(pid, _)| count.pid == Some(*pid)).map(|(_, since)| since);
        // A start that read the file of before shows in a count that began after the file was written.
        let filed = if filed_at <= count.at { filed } else { i64::MIN };
        let has_answers = known.is_some_and(|since| count.is_complete && !count.may_miss_requests(since));
        let (elsewhere, waiting) = (&self.other_backends, &self.pending);
        let mut over = 0;
        let drains = self.upstreams.iter_mut().filter(|(_, drain)| !drain.is_over && drain.since <= count.at);
        for (name, drain) in drains {
            let (service, upstream) = name;
            let own = std::iter::once((service.to_string(), upstream.to_string()));
            let servers: Vec<_> = own.chain(elsewhere.servers_of(service, upstream)).collect();
            let direct: u64 = servers.iter().filter_map(|server| count.sessions.get(server)).sum();
            drain.sessions = direct + count_preview_sessions(&count.sessions, service, upstream);
            let previews = preview_prefix(service);
            let is_concerned =
                |section: &str| section.starts_with(&previews) || servers.iter().any(|(own, _)| own == section);
            let may_grow = known.is_some_and(|since| count.can_send_to(since, is_concerned));
            let is_free = drain.sessions == 0 && has_answers && !may_grow;
            drain.idle_counts = if is_free { drain.idle_counts + 1 } else { 0 };
            let served = drain.idle_counts >= CONFIRMATIONS && is_confirmed && !waiting.contains(service);
            drain.is_over = served && drain.revision <= filed;
            over += u64::from(drain.is_over);
        }
        self.ended += over;
        self.upstreams.retain(|_, drain| !(drain.is_over && drain.state.is_none()));
    }

    /// The upstreams whose drain isn't over, with their sessions.
    pub fn open_drains(&self) -> BTreeMap<DrainedUpstream, u64> {
        let open = self.upstreams.iter().filter(|(_, drain)| !drain.is_over);
        open.map(|(name, drain)| (name.clone(), drain.sessions)).collect()
    }

    /// The services to ask HAProxy for; none where nothing is on its way out.
    pub fn draining_services(&self) -> BTreeSet<&ServiceId> {
        self.upstreams.iter().filter(|(_, drain)| !drain.is_over).map(|((service, _), _)| service).collect()
    }

    /// Whether other sections than their own may send to the upstreams of one of these too: some of the operator's, or for
    /// previews.
    pub fn has_other_sections(&self, services: &BTreeSet<ServiceId>) -> bool {
        services.iter().any(|id| self.other_backends.has_service(id) || self.previewed.contains(id))
    }

    /// How many drains have ended so far.
    pub fn count_ended(&self) -> u64 {
        self.ended
    }
}

#[cfg(test)]
mod tests;
