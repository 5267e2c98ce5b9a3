//! Upstreams: what is wanted of each and why, and what HAProxy makes of it.

use discovery::{OverrideState, ServiceId, UpstreamState, Verdict};
use haproxy::runtime::Stat;
use serde::Serialize;

use super::{Counted, applied_revision};
use crate::desired::names::preview_section;
use crate::desired::{Server, ServerState, Settings, UpstreamExplanation};
use crate::status::Status;
use crate::status::figures::Figures;
use crate::status::verdict::Judge;

/// `/api/v1/upstreams`: all of them, or those of `?service=http-shop`.
#[derive(Debug, Serialize)]
pub struct Upstreams {
    /// Why HAProxy couldn't be asked, if so; then no upstream has `haproxy`, and `balanced` is null.
    pub haproxy_error: Option<String>,
    /// The revision that HAProxy follows, but for what is pending.
    pub applied: Option<i64>,
    /// By service, then by id.
    pub upstreams: Vec<UpstreamShown>,
}

/// One upstream.
#[derive(Debug, Serialize)]
pub struct UpstreamShown {
    /// Its service, as its section is called: `http-shop`.
    pub service: String,
    /// Its id, which is its server's name.
    pub id: String,
    /// Where it listens.
    pub address: Option<String>,
    /// The weight that is wanted, 0 to 256.
    pub weight: Option<u16>,
    /// What is wanted of it: `ready`, `drain` (sticky clients only), `maint` (no new request).
    pub state: Option<&'static str>,
    /// Why it is wanted so, where that isn't just what its announcer says; in words.
    pub why: Vec<String>,
    /// Used only when no other is up.
    pub backup: bool,
    /// Its color.
    pub color: Option<String>,
    /// What its record says.
    pub announced: Option<Announced>,
    /// What an operator imposes on it.
    pub imposed: Option<Imposed>,
    /// Its key has gone, and it is served all the same.
    pub held: bool,
    /// What retains it then: `guard` or `reset`.
    pub held_by: Option<&'static str>,
    /// Since when; null where that isn't known.
    pub held_since: Option<String>,
    /// A change of its service waits for a restart.
    pub pending: bool,
    /// It takes no new request, and so much is still open on it, in old HAProxy processes too; null where nothing is waited
    /// for.
    pub draining: Option<u64>,
    /// Its line in haproxy.cfg.
    pub line: Option<String>,
    /// It gets new requests, or why it doesn't.
    pub verdict: Verdict,
    /// The verdict's `gets_requests`.
    pub balanced: Option<bool>,
    /// The words of the verdict's `because`, where it gets none.
    pub not_balanced: Option<String>,
    /// What HAProxy has seen of it since it started.
    pub haproxy: Option<Traffic>,
    /// Where those who may preview its color reach it.
    pub preview: Option<PreviewShown>,
}

/// An upstream in the section for previews of its color.
#[derive(Debug, Serialize)]
pub struct PreviewShown {
    /// The section: `http-shop:preview-green`.
    pub section: String,
    /// What is wanted of it there: `ready`, `drain`, `maint`.
    pub state: &'static str,
    /// The weight that is wanted there, 0 to 256.
    pub weight: u16,
    /// Its line there.
    pub line: String,
    /// What HAProxy has seen of it there since it started.
    pub haproxy: Option<Traffic>,
}

/// What a record says.
#[derive(Debug, Serialize)]
pub struct Announced {
    /// `ready`, `drain`, `down`.
    pub state: &'static str,
    /// 0 to 256.
    pub weight: u16,
}

/// What an operator imposes; what isn't, is null.
#[derive(Debug, Serialize)]
pub struct Imposed {
    /// `drain`, `maint`.
    pub state: Option<&'static str>,
    /// 0 to 256.
    pub weight: Option<u16>,
}

/// What HAProxy counts of a backend or a server, since its process started.
#[derive(Debug, Serialize)]
pub struct Traffic {
    /// In HAProxy's words: `UP`, `DOWN`, `DRAIN`, `MAINT`, `no check` and more.
    pub status: String,
    /// Whether its checks find it up, or there are none.
    pub up: bool,
    /// The weight in use.
    pub weight: u64,
    /// The last check's outcome: `L4OK`, `L7STS` and more.
    pub check: Option<String>,
    /// The same in words.
    pub check_words: Option<String>,
    /// How long it took.
    pub check_seconds: Option<f64>,
    /// Since the status is this one.
    pub since_seconds: u64,
    /// Down in all.
    pub downtime_seconds: u64,
    /// Sessions now.
    pub sessions: u64,
    /// Sessions at most.
    pub sessions_max: u64,
    /// Sessions in all.
    pub sessions_total: u64,
    /// Requests that wait.
    pub queue: u64,
    /// Sessions in the last second.
    pub rate: u64,
    /// Sessions in one second, at most.
    pub rate_max: u64,
    /// HTTP requests in all; null in TCP mode.
    pub requests_total: Option<u64>,
    /// Answers by the first digit of their status, 1xx to 5xx; null in TCP mode.
    pub responses_total: Option<[u64; 5]>,
    /// Bytes from clients.
    pub bytes_in_total: u64,
    /// Bytes to clients.
    pub bytes_out_total: u64,
    /// Connections that couldn't be made.
    pub connection_errors_total: u64,
    /// Answers that broke.
    pub response_errors_total: u64,
    /// Connections tried again.
    pub retries_total: u64,
    /// Requests sent to another server after all.
    pub redispatches_total: u64,
    /// How long a connection to it took to stand, over the last 1,024 requests; one that was there already took none.
    pub connect_seconds_average: Option<f64>,
    /// From the request's end to the answer's first byte, over as many; null in TCP mode.
    pub response_seconds_average: Option<f64>,
    /// From the first byte to the last, over as many requests, or connections in TCP mode.
    pub total_seconds_average: Option<f64>,
}

fn ms_to_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

impl From<&Stat> for Traffic {
    fn from(stat: &Stat) -> Self {
        Self {
            status: stat.status.clone(),
            up: stat.is_up(),
            weight: stat.weight,
            check: stat.check.clone(),
            check_words: stat.check_words.clone(),
            check_seconds: stat.check_ms.map(ms_to_seconds),
            since_seconds: stat.last_change,
            downtime_seconds: stat.downtime,
            sessions: stat.sessions.now,
            sessions_max: stat.sessions.most,
            sessions_total: stat.sessions.total,
            queue: stat.queue.now,
            rate: stat.rate.now,
            rate_max: stat.rate.most,
            requests_total: stat.requests,
            responses_total: stat.responses,
            bytes_in_total: stat.bytes.0,
            bytes_out_total: stat.bytes.1,
            connection_errors_total: stat.connection_errors,
            response_errors_total: stat.response_errors,
            retries_total: stat.retries.0,
            redispatches_total: stat.retries.1,
            connect_seconds_average: stat.average.connect_ms.map(ms_to_seconds),
            response_seconds_average: stat.average.response_ms.map(ms_to_seconds),
            total_seconds_average: stat.average.total_ms.map(ms_to_seconds),
        }
    }
}

/// The upstreams of now, of one service or of all.
pub fn show_upstreams(report: &Status, counted: &Counted, of: Option<&str>) -> Upstreams {
    let figures = Figures::new(counted);
    let known = report.reconcile.desired.known_services().filter(|id| of.is_none_or(|of| id.to_string() == of));
    let upstreams = known.flat_map(|id| show_service_upstreams(report, &figures, id)).collect();
    Upstreams { haproxy_error: counted.as_ref().err().cloned(), applied: applied_revision(report), upstreams }
}

/// The upstreams of one service.
pub(super) fn show_service_upstreams(report: &Status, figures: &Figures, id: &ServiceId) -> Vec<UpstreamShown> {
    let standing = &report.reconcile;
    let settings = standing.desired.service(id).map(|wanted| &wanted.settings);
    let pending = standing.pending.contains(id);
    let explained = standing.desired.explain_upstreams(id);
    let judge = Judge::new(report, figures, id);
    let show = |upstream: &UpstreamExplanation| {
        let name = (id.clone(), upstream.id.clone());
        let (draining, held) = (report.draining.get(&name).copied(), standing.retained.get(&name));
        let mut shown = UpstreamShown {
            draining,
            pending,
            ..show_upstream(upstream, id, settings, judge.judge_upstream(upstream), figures)
        };
        if let Some(retained) = held {
            (shown.held, shown.held_by) = (true, Some(retained.by.name()));
            shown.held_since = retained.since.map(super::format_time);
            shown.why.push(retained.describe());
        }
        shown
    };
    explained.iter().map(show).collect()
}

fn show_upstream(
    upstream: &UpstreamExplanation,
    service: &ServiceId,
    settings: Option<&Settings>,
    verdict: Verdict,
    figures: &Figures,
) -> UpstreamShown {
    let UpstreamExplanation { id, server, previewed, announced, imposed, .. } = *upstream;
    let section = service.to_string();
    let says_no = verdict.gets_requests == Some(false);
    UpstreamShown {
        id: id.to_string(),
        address: server.map(|server| server.address).or(announced.map(|it| it.address)).map(|it| it.to_string()),
        weight: server.map(|server| server.weight),
        state: server.map(state_name),
        why: explain_state(upstream, settings),
        backup: announced.is_some_and(|it| it.backup),
        color: announced.and_then(|it| it.color.as_ref()).map(ToString::to_string),
        announced: announced.map(|it| Announced {
            state: match it.state {
                UpstreamState::Ready => "ready",
                UpstreamState::Drain => "drain",
                UpstreamState::Down => "down",
            },
            weight: it.weight.get(),
        }),
        imposed: imposed.map(|it| Imposed {
            state: it.state.map(|state| match state {
                OverrideState::Drain => "drain",
                OverrideState::Maint => "maint",
            }),
            weight: it.weight.map(discovery::Weight::get),
        }),
        held: false,
        held_by: None,
        held_since: None,
        pending: false,
        draining: None,
        line: server.map(Server::config_line),
        balanced: verdict.gets_requests,
        not_balanced: verdict.words().filter(|_| says_no).map(str::to_owned),
        verdict,
        haproxy: figures.find_server(&section, id.as_str()).map(Traffic::from),
        preview: previewed.map(|(color, server)| {
            let section = preview_section(service, color);
            PreviewShown {
                state: state_name(server),
                weight: server.weight,
                line: server.config_line(),
                haproxy: figures.find_server(&section, id.as_str()).map(Traffic::from),
                section,
            }
        }),
        service: section,
    }
}

fn state_name(server: &Server) -> &'static str {
    match server.state {
        ServerState::Ready => "ready",
        ServerState::Drain => "drain",
        ServerState::Maint => "maint",
    }
}

/// Who has a say in it besides its announcer's plain record, in words.
fn explain_state(upstream: &UpstreamExplanation, settings: Option<&Settings>) -> Vec<String> {
    let UpstreamExplanation { announced, imposed, .. } = *upstream;
    let mut words = Vec::new();
    match announced.map(|it| it.state) {
        None | Some(UpstreamState::Ready) => {}
        Some(UpstreamState::Drain) => words.push("its announcer says drain".to_owned()),
        Some(UpstreamState::Down) => words.push("its announcer says down".to_owned()),
    }
    match imposed.and_then(|it| it.state) {
        None => {}
        Some(OverrideState::Drain) => words.push("an override says drain".to_owned()),
        Some(OverrideState::Maint) => words.push("an override says maint".to_owned()),
    }
    words.extend(imposed.and_then(|it| it.weight).map(|weight| format!("an override says weight {weight}")));
    if let (Some(active), Some(announced)) = (settings.and_then(|it| it.active.as_ref()), announced) {
        words.push(match &announced.color {
            None => format!("it has no color, and active is {active}"),
            Some(color) if active.share_of(color).is_none() => format!("color {color} is not active: {active}"),
            Some(color) => format!("color {color} is active: {active}"),
        });
    }
    words
}
