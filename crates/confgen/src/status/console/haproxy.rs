//! The page of HAProxy: its processes, its limits, and confgen's last acts. Pure.

use askama::Template;

use super::format::{Moment, cut_text, format_count, format_mib, format_span, format_taken};
use super::frame::Frame;
use crate::status::{HistoryEntry, Status};

/// The most acts. The API has the last 200.
const ACTS: usize = 50;
const LONGEST: usize = 2_000;

#[derive(Template)]
#[template(path = "console/haproxy.html")]
struct Page {
    frame: Frame,
    processes: Vec<ProcessRow>,
    silent: usize,
    cutoffs: Option<String>,
    generation: Option<String>,
    published: i64,
    under_way: Vec<String>,
    acts: Vec<ActRow>,
    limits: Vec<LimitRow>,
    operator_refused: Option<String>,
    not_filled: Vec<String>,
    remarks: Vec<String>,
}

struct ProcessRow {
    pid: u32,
    is_running: bool,
    role: &'static str,
    since: Option<Moment>,
    age: String,
    connections: String,
    memory: String,
}

struct ActRow {
    at: Moment,
    kind: &'static str,
    reason: String,
    revision: i64,
    took: String,
    is_ok: bool,
    outcome: String,
    /// The lines that the act took from haproxy.cfg and added to it, each with its sign.
    difference: Vec<(&'static str, String)>,
}

struct LimitRow {
    keyword: &'static str,
    now: String,
    /// The words on a limit that isn't as its files say.
    changed: Option<String>,
}

pub fn render_page(status: &Status, now: std::time::SystemTime) -> askama::Result<String> {
    let files = &status.reconcile.operator_files;
    let under_way = status.activities.under_way().into_iter();
    let cutoffs = status.cutoffs;
    let page = Page {
        frame: Frame::new(status, "haproxy", "HAProxy"),
        processes: list_processes(status, now),
        silent: status.old.silent,
        cutoffs: cutoffs.last.map(|last| {
            let (processes, connections) = (cutoffs.processes, cutoffs.connections);
            let last = Moment::of(last).words;
            format!("handover has ended {processes} old processes with {connections} connections early, the last at {last} UTC")
        }),
        generation: status.running.as_ref().and_then(|running| running.generation.clone()),
        published: status.reconcile.published,
        under_way: under_way.map(|it| format!("{}: {}, for {}", it.kind, it.reason, format_taken(it.taken.as_secs_f64()))).collect(),
        acts: status.history.iter().take(ACTS).map(|act| make_act(act)).collect(),
        limits: list_limits(status),
        operator_refused: files.refused.as_ref().map(|it| cut_text(&it.to_string(), LONGEST)),
        not_filled: files.not_filled.iter().map(|it| cut_text(it, LONGEST)).collect(),
        remarks: files.remarks.iter().map(|it| cut_text(it, LONGEST)).collect(),
    };
    page.render()
}

fn list_processes(status: &Status, now: std::time::SystemTime) -> Vec<ProcessRow> {
    let running = status.running.iter().map(|running| ProcessRow {
        pid: running.pid,
        is_running: true,
        role: "serves",
        since: status.started.map(Moment::of),
        age: status
            .started
            .and_then(|at| now.duration_since(at).ok())
            .map_or_else(|| "–".to_owned(), |it| format_span(it.as_secs())),
        connections: "–".to_owned(),
        memory: "–".to_owned(),
    });
    let old = status.old.list.iter().map(|old| ProcessRow {
        pid: old.pid,
        is_running: false,
        role: "finishes its requests",
        since: now.checked_sub(old.uptime).map(Moment::of),
        age: format_span(old.uptime.as_secs()),
        connections: format_count(old.connections),
        memory: old.memory.map_or_else(|| "–".to_owned(), format_mib),
    });
    running.chain(old).collect()
}

fn make_act(act: &HistoryEntry) -> ActRow {
    let (Ok(words) | Err(words)) = &act.outcome;
    ActRow {
        at: Moment::of(act.began_at),
        kind: act.kind.name(),
        reason: cut_text(&act.reason, LONGEST),
        revision: act.revision,
        took: format_taken(act.took.as_secs_f64()),
        is_ok: act.outcome.is_ok(),
        outcome: cut_text(words, LONGEST),
        difference: act.difference.iter().flat_map(|text| text.lines()).map(sign_line).collect(),
    }
}

/// The style of a line of a difference, and the line.
fn sign_line(line: &str) -> (&'static str, String) {
    let style = match line.as_bytes().first() {
        Some(b'+') => "came",
        Some(b'-') => "went",
        _ => "stayed",
    };
    (style, cut_text(line, LONGEST))
}

fn list_limits(status: &Status) -> Vec<LimitRow> {
    let Some(limits) = status.limits else { return Vec::new() };
    let changed = status.changed_limits();
    let all = [
        ("maxconn", limits.connections),
        ("maxconnrate", limits.connection_rate),
        ("maxsessrate", limits.session_rate),
        ("maxsslrate", limits.tls_rate),
        ("maxcomprate", limits.compression_rate / 1_024),
    ];
    let rows = all.map(|(keyword, now)| LimitRow {
        keyword,
        now: if now == 0 { "no limit".to_owned() } else { format_count(now) },
        changed: changed.iter().find(|limit| limit.keyword == keyword).map(ToString::to_string),
    });
    rows.into()
}
