//! Tracks drains. A drain ends once no HAProxy process has a session on the upstream or can send it another request.
//! Pure: no I/O, no clock. [`SessionCount`] and [`DrainContext`] bring the facts and the time.

mod invariants;
mod sessions;
pub(crate) mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::{Color, Kind, ServiceId, Tls, UpstreamId};
use haproxy::runtime::Streams;

use crate::desired::names::preview_prefix;
use crate::desired::{DesiredService, DesiredState, ServerState};
use crate::operator_files::filled::OtherBackends;
use crate::render::KEEP_ALIVE;

/// `timeout client` of HTTP in haproxy.cfg. It bounds a TLS handshake, and an idle connection of HTTP/2.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// `timeout client` of TCP services in haproxy.cfg. It bounds the TLS handshake of a service that terminates TLS. So the old process
/// may get a first session this long after a restart. A shorter `hard-stop-after` ends the process earlier, which then holds up no
/// drain. It doesn't shorten the wait for a process that can't be asked. That process has the value of the file that it was started
/// with, which can't be read any more.
pub const TCP_CLIENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The observer asks for HAProxy's pid four times a second. handover tells the old process to finish some milliseconds after
/// the new one first answers.
const RESTART_NOTICED_WITHIN: Duration = Duration::from_millis(250);

/// How long after a restart an HTTP/2 client with open streams may still send the old process a request. HAProxy sends the
/// GOAWAY at the restart, and the client may not have read it yet.
const GOAWAY_WAIT: Duration = KEEP_ALIVE.saturating_add(RESTART_NOTICED_WITHIN);

/// `tcp-request inspect-delay` in haproxy.cfg, within which a connection to a pass-through port names its host.
const INSPECT_DELAY: Duration = Duration::from_secs(5);

/// How long after a restart the old process may get a first HTTP request over an idle connection. A connection that was
/// accepted just before the restart has the inspect delay for its name, then `timeout client` for its TLS handshake. After it, HTTP/1
/// has `timeout http-request`, which is shorter, and HTTP/2 has `timeout client` again.
pub const FIRST_REQUEST_WAIT: Duration = INSPECT_DELAY.saturating_add(CLIENT_TIMEOUT.saturating_mul(2));

/// How long a master or an old process that doesn't answer holds up all drains. It may have requests in flight, and an announcer
/// waits this long by default (`--drain 15s`).
pub const SILENCE_WAIT: Duration = Duration::from_secs(15);

/// This many counts in a row must find no session. A request that leaves a server's queue is in none of HAProxy's counters for
/// an instant.
const CONFIRMATIONS: u32 = 2;

/// An upstream and its service.
pub type DrainedUpstream = (ServiceId, UpstreamId);

/// The open sessions of all HAProxy processes, and which processes didn't answer.
#[derive(Clone, Debug)]
pub struct SessionCount {
    /// The time of the first question. Requests that came later may be missing.
    pub at: Instant,
    /// The process that gets new requests. `None` if it doesn't answer.
    pub pid: Option<u32>,
    /// By section and server, in all processes.
    pub sessions: BTreeMap<(String, String), u64>,
    /// The processes that finish their last requests.
    pub old_processes: Vec<OldProcess>,
    /// When the latest of the masters that don't answer was first asked in vain. `None` if all answer.
    pub silent_since: Option<Instant>,
    /// An old process may live that can't be asked.
    pub is_blind: bool,
    /// Every process that can be asked has answered, and none is starting.
    pub is_complete: bool,
}

/// A process that finishes its last requests. The Runtime API can't drain a server there (`Proxy is disabled.`).
#[derive(Clone, Debug, Default)]
pub struct OldProcess {
    /// When a count first found that the process is old. `None` if only the restart tells.
    pub since: Option<Instant>,
    /// The open connections and streams. `None` if the process has told neither for 15 s.
    pub streams: Option<Streams>,
}

impl OldProcess {
    /// True if the process may send a request to a server of these sections. `age` is the time since it became old.
    /// `first_request_wait` is the age at which no idle connection brings a first request any more.
    fn can_send_to(
        &self,
        age: Duration,
        first_request_wait: Duration,
        mut is_concerned: impl FnMut(&str) -> bool,
    ) -> bool {
        let Some(Streams { connections, idle, unrouted, undecided }) = &self.streams else {
            return age < first_request_wait;
        };
        // For 4.25 s any connection may bring a request. Then clients of HTTP/2 know that HAProxy stops, and only a
        // connection without a stream can bring its first one.
        let may_get_another = if age < GOAWAY_WAIT { *connections > 0 } else { *idle > 0 && age < first_request_wait };
        may_get_another || *unrouted > 0 || undecided.keys().any(|section| is_concerned(section))
    }
}

impl SessionCount {
    /// True if an old process may send a request to a server of these sections. `restarted` is the time of the last restart.
    fn can_send_to(
        &self,
        restarted: Instant,
        first_request_wait: Duration,
        is_concerned: impl Fn(&str) -> bool,
    ) -> bool {
        self.old_processes.iter().any(|old| {
            let age = self.old_process_age(old.since, restarted);
            old.can_send_to(age, first_request_wait, &is_concerned)
        })
    }

    /// True if a process that can't be asked may still get requests.
    fn may_miss_requests(&self, restarted: Instant, first_request_wait: Duration) -> bool {
        let is_early = self.is_blind && self.old_process_age(None, restarted) < first_request_wait;
        is_early || self.silent_since.is_some_and(|since| self.at.duration_since(since) < SILENCE_WAIT)
    }

    /// The time since a process became old. That was before the last restart, and before a count first found it.
    fn old_process_age(&self, since: Option<Instant>, restarted: Instant) -> Duration {
        self.at.duration_since(since.map_or(restarted, |since| since.min(restarted)))
    }
}

/// The other conditions for the end of a drain.
#[derive(Clone, Copy, Debug)]
pub struct DrainContext {
    /// The file on disk has every change up to this revision.
    pub published_revision: i64,
    /// When that file was written.
    pub published_at: Instant,
    /// HAProxy's process, and when the observer last saw the pid change.
    pub process: Option<(u32, Instant)>,
    /// That process was observed after it took over, and serves what the store asks for.
    pub is_confirmed: bool,
}

impl DrainContext {
    /// The revision of the file on disk. A file that is newer than the last reconcile is of the store before a reset, and has nothing
    /// of this store.
    pub fn usable_file_revision(published: i64, reconciled: i64) -> i64 {
        if published <= reconciled { published } else { 0 }
    }
}

/// All drains.
#[derive(Clone, Debug, Default)]
pub struct DrainTracker {
    /// The desired state that HAProxy last got. `None` before the first one.
    followed: Option<Arc<DesiredState>>,
    upstreams: BTreeMap<DrainedUpstream, Drain>,
    /// Services that have or had sections for previews. An old process may have a section that is no longer wanted.
    previewed: BTreeSet<ServiceId>,
    /// TCP services that terminate TLS, or did. An old process may still do so.
    tls_terminating: BTreeSet<ServiceId>,
    /// Sections of operator files that send requests to upstreams too.
    other_backends: OtherBackends,
    /// The services for which such a section waits for a restart.
    pending: BTreeSet<ServiceId>,
    ended: u64,
}

#[derive(Clone, Debug)]
struct Drain {
    /// `None` if the upstream is no longer wanted at all.
    state: Option<UpstreamStates>,
    /// HAProxy has the state since then.
    since: Instant,
    /// The file has the state once it has this revision.
    revision: i64,
    sessions: u64,
    /// How many counts in a row found no session.
    idle_counts: u32,
    /// Stays true until another state is wanted.
    is_over: bool,
}

impl Drain {
    fn begin(state: Option<UpstreamStates>, now: Instant, revision: i64) -> Self {
        Self { state, since: now, revision, sessions: 0, idle_counts: 0, is_over: false }
    }
}

/// The wanted state of an upstream, in its service and in the preview of its color.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UpstreamStates {
    own: ServerState,
    /// `None` if the upstream is in no preview.
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

/// The sessions of an upstream in all sections for previews.
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
    /// Compares the desired state that HAProxy has got with the one before. `revision` is the store's, and `leaving` are servers
    /// that HAProxy was already removing when confgen first observed it.
    pub fn update_drains(
        &mut self,
        now: Instant,
        settled: &Arc<DesiredState>,
        revision: i64,
        leaving: &[DrainedUpstream],
    ) {
        let before = self.followed.replace(Arc::clone(settled));
        // A wiped store counts its revisions from 1 again. The file would never reach a drain's old one.
        self.upstreams.values_mut().for_each(|drain| drain.revision = drain.revision.min(revision));
        if before.is_none() {
            let drains = leaving.iter().map(|name| (name.clone(), Drain::begin(None, now, revision)));
            self.upstreams.extend(drains);
            // A leaving server may be in a section for previews.
            self.previewed.extend(leaving.iter().map(|(service, _)| service.clone()));
        }
        let before = before.unwrap_or_default();
        for (id, old, new) in settled.changes_since(&before) {
            if new.is_some_and(|new| !new.previews.is_empty()) {
                self.previewed.insert(id.clone());
            }
            if new.is_some_and(|new| id.kind == Kind::Tcp && new.settings.tls == Tls::Terminate) {
                self.tls_terminating.insert(id.clone());
            }
            let (old, new) = (desired_states(old), desired_states(new));
            for (upstream, state) in &new {
                let name = (id.clone(), (*upstream).clone());
                match self.upstreams.get(&name) {
                    // The drain was taken back, so announcers and discoverctl no longer wait for it.
                    _ if state.own == ServerState::Ready => _ = self.upstreams.remove(&name),
                    Some(drain) if drain.state.as_ref() == Some(state) => {}
                    _ => _ = self.upstreams.insert(name, Drain::begin(Some(state.clone()), now, revision)),
                }
            }
            for upstream in old.keys().filter(|upstream| !new.contains_key(*upstream)) {
                let name = (id.clone(), (*upstream).clone());
                match self.upstreams.get_mut(&name) {
                    Some(drain) if drain.is_over => _ = self.upstreams.remove(&name),
                    // The drain goes on: the removal of the key closes no connection.
                    Some(drain) => drain.state = None,
                    None => _ = self.upstreams.insert(name, Drain::begin(None, now, revision)),
                }
            }
        }
        debug_assert_eq!(self.check_desired(settled, revision), Ok(()));
    }

    /// Names the sections of operator files that send requests to upstreams too, and the services that wait for a restart. Until
    /// that restart such a section goes on sending, since the Runtime API doesn't change it.
    pub fn set_other_backends(&mut self, other_backends: OtherBackends, pending: &BTreeSet<ServiceId>) {
        self.pending = pending.iter().filter(|id| other_backends.has_service(id)).cloned().collect();
        self.other_backends = other_backends;
    }

    /// Ends the drains for which this count leaves no doubt.
    pub fn apply_count(&mut self, count: &SessionCount, context: DrainContext) {
        let DrainContext { published_revision, published_at, process, is_confirmed } = context;
        // Another process answers than the observer saw. There was a restart whose time isn't known yet.
        let restarted = process.filter(|(pid, _)| count.pid == Some(*pid)).map(|(_, since)| since);
        // HAProxy may have started with the file before this one. A count that began after it was written asks the new process.
        let published_revision = if published_at <= count.at { published_revision } else { i64::MIN };
        let (other_backends, pending, tls_terminating) = (&self.other_backends, &self.pending, &self.tls_terminating);
        let mut ended = 0;
        // A count that began before HAProxy had the drain may have missed a request that HAProxy sent in between.
        let drains = self.upstreams.iter_mut().filter(|(_, drain)| !drain.is_over && drain.since <= count.at);
        for ((service, upstream), drain) in drains {
            let own = std::iter::once((service.to_string(), upstream.to_string()));
            let servers: Vec<_> = own.chain(other_backends.servers_of(service, upstream)).collect();
            let direct: u64 = servers.iter().filter_map(|server| count.sessions.get(server)).sum();
            drain.sessions = direct + count_preview_sessions(&count.sessions, service, upstream);
            let first_request_wait =
                if tls_terminating.contains(service) { TCP_CLIENT_TIMEOUT } else { FIRST_REQUEST_WAIT };
            let previews = preview_prefix(service);
            let is_concerned =
                |section: &str| section.starts_with(&previews) || servers.iter().any(|(own, _)| own == section);
            let is_certain = restarted.is_some_and(|restarted| {
                count.is_complete
                    && !count.may_miss_requests(restarted, first_request_wait)
                    && !count.can_send_to(restarted, first_request_wait, is_concerned)
            });
            // Further counts prove nothing more, and the state of a drain stays finite.
            let idle_counts = (drain.idle_counts + 1).min(CONFIRMATIONS);
            drain.idle_counts = if drain.sessions == 0 && is_certain { idle_counts } else { 0 };
            let is_drained = drain.idle_counts >= CONFIRMATIONS && is_confirmed && !pending.contains(service);
            drain.is_over = is_drained && drain.revision <= published_revision;
            ended += u64::from(drain.is_over);
        }
        self.ended += ended;
        self.upstreams.retain(|_, drain| !(drain.is_over && drain.state.is_none()));
        debug_assert_eq!(self.check_ended(), Ok(()));
    }

    /// The upstreams whose drain isn't over, with their sessions.
    pub fn open_drains(&self) -> BTreeMap<DrainedUpstream, u64> {
        let open = self.upstreams.iter().filter(|(_, drain)| !drain.is_over);
        open.map(|(name, drain)| (name.clone(), drain.sessions)).collect()
    }

    /// The services with a drain that isn't over. Only their sessions need to be counted.
    pub fn draining_services(&self) -> BTreeSet<&ServiceId> {
        self.upstreams.iter().filter(|(_, drain)| !drain.is_over).map(|((service, _), _)| service).collect()
    }

    /// True if sections beside the services' own may send requests to their upstreams: those of operator files, and those for
    /// previews.
    pub fn has_other_sections(&self, services: &BTreeSet<ServiceId>) -> bool {
        services.iter().any(|id| self.other_backends.has_service(id) || self.previewed.contains(id))
    }

    /// The number of drains that have ended since confgen started.
    pub fn count_ended(&self) -> u64 {
        self.ended
    }
}

#[cfg(test)]
mod tests;
