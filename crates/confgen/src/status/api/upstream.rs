//! Builds the answers about upstreams: the wanted state with its reasons, and HAProxy's counters. Pure.

use discovery::balancer_api::{Announced, Imposed, Preview, Traffic, Upstream, Upstreams};
use discovery::{Color, OverrideState, ServiceId, UpstreamState, Verdict};
use haproxy::runtime::Stat;

use super::{Counted, applied_revision};
use crate::desired::names::preview_section;
use crate::desired::{Server, ServerState, Settings, UpstreamExplanation};
use crate::status::Status;
use crate::status::figures::Figures;
use crate::status::verdict::Judge;

/// HAProxy's counters under the names of the API. `show stat` gives times in milliseconds.
pub(super) fn show_traffic(stat: &Stat) -> Traffic {
    Traffic {
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

fn ms_to_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The answer to `/api/v1/upstreams`: all of them, or those of the service `of`.
pub fn show_upstreams(report: &Status, counted: &Counted, of: Option<&str>) -> Upstreams {
    let figures = Figures::new(counted);
    let known = report.reconcile.desired.known_services().filter(|id| of.is_none_or(|of| id.to_string() == of));
    let upstreams = known.flat_map(|id| show_service_upstreams(report, &figures, id)).collect();
    Upstreams { haproxy_error: counted.as_ref().err().cloned(), applied: applied_revision(report), upstreams }
}

/// The upstreams of one service, retained ones and those without a good record included.
pub(super) fn show_service_upstreams(report: &Status, figures: &Figures, id: &ServiceId) -> Vec<Upstream> {
    let reconcile = &report.reconcile;
    let settings = reconcile.desired.service(id).map(|wanted| &wanted.settings);
    let judge = Judge::new(report, figures, id);
    let mut all = Vec::new();
    for explained in &reconcile.desired.explain_upstreams(id) {
        let name = (id.clone(), explained.id.clone());
        let mut upstream = show_upstream(explained, id, settings, judge.judge_upstream(explained), figures);
        upstream.pending = reconcile.pending.contains(id);
        upstream.draining = report.draining.get(&name).copied();
        if let Some(retained) = reconcile.retained.get(&name) {
            upstream.held = true;
            upstream.held_by = Some(retained.by.name().to_owned());
            upstream.held_since = retained.since.map(super::format_time);
            upstream.why.push(retained.describe());
        }
        all.push(upstream);
    }
    all
}

/// One upstream, apart from what only the status knows: `pending`, `draining` and `held`.
fn show_upstream(
    upstream: &UpstreamExplanation,
    service: &ServiceId,
    settings: Option<&Settings>,
    verdict: Verdict,
    figures: &Figures,
) -> Upstream {
    let UpstreamExplanation { id, server, previewed, announced, imposed, .. } = *upstream;
    let section = service.to_string();
    let says_no = verdict.gets_requests == Some(false);
    Upstream {
        id: id.to_string(),
        address: server.map(|server| server.address).or(announced.map(|it| it.address)).map(|it| it.to_string()),
        host: announced.and_then(|it| it.host.as_ref()).map(ToString::to_string),
        weight: server.map(|server| server.weight),
        state: server.map(|server| state_name(server).to_owned()),
        why: explain_state(upstream, settings),
        backup: announced.is_some_and(|it| it.backup),
        color: announced.and_then(|it| it.color.as_ref()).map(ToString::to_string),
        announced: announced
            .map(|it| Announced { state: announced_name(it.state).to_owned(), weight: it.weight.get() }),
        imposed: imposed.map(|it| Imposed {
            state: it.state.map(|state| imposed_name(state).to_owned()),
            weight: it.weight.map(discovery::Weight::get),
        }),
        line: server.map(Server::config_line),
        balanced: verdict.gets_requests,
        not_balanced: verdict.words().filter(|_| says_no).map(str::to_owned),
        verdict: Some(verdict),
        haproxy: figures.find_server(&section, id.as_str()).map(show_traffic),
        preview: previewed.map(|(color, server)| show_preview(service, color, server, figures)),
        service: section,
        ..Upstream::default()
    }
}

fn show_preview(service: &ServiceId, color: &Color, server: &Server, figures: &Figures) -> Preview {
    let section = preview_section(service, color);
    Preview {
        state: state_name(server).to_owned(),
        weight: server.weight,
        line: server.config_line(),
        haproxy: figures.find_server(&section, server.id.as_str()).map(show_traffic),
        section,
    }
}

fn announced_name(state: UpstreamState) -> &'static str {
    match state {
        UpstreamState::Ready => "ready",
        UpstreamState::Drain => "drain",
        UpstreamState::Down => "down",
    }
}

fn imposed_name(state: OverrideState) -> &'static str {
    match state {
        OverrideState::Drain => "drain",
        OverrideState::Maint => "maint",
    }
}

fn state_name(server: &Server) -> &'static str {
    match server.state {
        ServerState::Ready => "ready",
        ServerState::Drain => "drain",
        ServerState::Maint => "maint",
    }
}

/// The reasons for the wanted state, in words. None for a record that says `ready` and nothing else.
fn explain_state(upstream: &UpstreamExplanation, settings: Option<&Settings>) -> Vec<String> {
    let UpstreamExplanation { announced, imposed, .. } = *upstream;
    let mut words = Vec::new();
    if let Some(record) = announced.filter(|it| it.state != UpstreamState::Ready) {
        words.push(format!("its announcer says {}", announced_name(record.state)));
    }
    if let Some(state) = imposed.and_then(|it| it.state) {
        words.push(format!("an override says {}", imposed_name(state)));
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
