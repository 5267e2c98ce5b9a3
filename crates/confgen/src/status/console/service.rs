//! A service's page: its traffic, its upstreams, its keys, its last changes, its section of haproxy.cfg. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use askama::Template;
use discovery::balancer_api::{AppliedChange, ServiceInFull, Upstream};
use discovery::{Cause, Entry, Key, Service, ServiceId, UpstreamState};

use super::Balancer;
use super::balancers::{Agreement, safe_url};
use super::changes::{ChangeRow, show_changes};
use super::format::{Moment, cut_text, format_count, format_figure, format_latency, format_span, sign_of};
use super::frame::Frame;
use super::plot::{Plot, Plots};
use super::query::encode_query;
use super::services::Clock;
use crate::desired::names::parse_section;
use crate::status::Status;
use crate::status::api::find_service;
use crate::status::figures::Counted;
use crate::status::tally::Mood;

/// The upstreams of one page. The failing ones come first.
pub const UPSTREAMS: usize = 100;
/// The most keys. etcdctl has them all.
const KEYS: usize = 200;
/// The longest value and the longest reason.
const LONGEST: usize = 2_000;
/// The most lines of a section. The file has them all.
const LINES: usize = 300;

/// The facts that `admin` fetched for the page.
#[derive(Debug, Default)]
pub struct Fetched {
    /// The service's last changes, the oldest first. The error is the reason why the log can't be read.
    pub changes: Option<Result<Vec<AppliedChange>, String>>,
    /// haproxy.cfg. The error is the reason why it can't be read.
    pub config: Option<Result<String, String>>,
    /// The balancers of the store. `None` if etcd doesn't answer.
    pub balancers: Option<Vec<Balancer>>,
    /// By lease, the time that is left of it without a renewal. `None` for a lease that has ended.
    pub leases: BTreeMap<i64, Option<Duration>>,
}

#[derive(Template)]
#[template(path = "console/service.html")]
struct Page {
    frame: Frame,
    id: String,
    name: String,
    kind: &'static str,
    claims: Vec<String>,
    settings: BTreeMap<String, String>,
    refused: Option<String>,
    is_pending: bool,
    named_by: Vec<String>,
    plots: Plots,
    sessions: String,
    figures_error: Option<String>,
    upstreams: Vec<UpstreamRow>,
    total: usize,
    serving: usize,
    page: usize,
    pages: usize,
    balancers: Option<Vec<BalancerRow>>,
    keys: Vec<KeyRow>,
    more_keys: usize,
    changes: Vec<ChangeRow>,
    changes_error: Option<String>,
    section: Option<String>,
    more_lines: usize,
    section_error: Option<String>,
}

struct UpstreamRow {
    id: String,
    address: String,
    machine: Option<String>,
    color: Option<String>,
    weight: String,
    is_backup: bool,
    wanted: String,
    /// The reasons for the wanted state, then the verdict's.
    reasons: Vec<String>,
    mood: Mood,
    /// The verdict's word, or its cause's name.
    verdict: String,
    observed: String,
    check: Option<String>,
    /// The time since when HAProxy's state is as it is.
    since: Option<Moment>,
    sessions: String,
    rate: String,
    latency: String,
    draining: Option<u64>,
    lease: String,
    balancers: Vec<String>,
}

struct BalancerRow {
    node: String,
    url: Option<String>,
    style: &'static str,
    words: String,
    notes: Vec<String>,
}

struct KeyRow {
    key: String,
    value: String,
    revision: i64,
    lease: Option<String>,
    refused: Option<String>,
}

/// The leases of the upstreams that the page shows, for `admin` to ask etcd about.
pub fn list_leases(status: &Status, id: &str, most: usize) -> Vec<i64> {
    let Some(source) = parse_section(id).and_then(|id| status.reconcile.desired.explain_service(&id).source) else {
        return Vec::new();
    };
    let mut leases: Vec<i64> = source.upstreams().map(|(_, record)| record.entry.lease).filter(|it| *it != 0).collect();
    // An agent has one lease for all upstreams of its host, so a few leases cover most services.
    leases.sort_unstable();
    leases.dedup();
    leases.truncate(most);
    leases
}

/// `None` if there is no such service.
pub fn render_page(
    status: &Status,
    counted: &Counted,
    id: &str,
    page: usize,
    fetched: &Fetched,
    clock: Clock,
) -> Option<askama::Result<String>> {
    let service_id = parse_section(id).filter(|parsed| parsed.to_string() == id)?;
    let ServiceInFull { service, upstreams, quarantine, .. } = find_service(status, counted, id)?;
    let source = status.reconcile.desired.explain_service(&service_id).source;
    let mut upstreams: Vec<(Mood, Upstream)> = upstreams.into_iter().map(|it| (find_mood(&it), it)).collect();
    // The order of the ids stays, but for the failing ones.
    upstreams.sort_by_key(|(mood, _)| *mood != Mood::Failing);
    let pages = upstreams.len().div_ceil(UPSTREAMS).max(1);
    // Upstreams may have gone since the reader got the link.
    let page = page.clamp(1, pages);
    let (total, serving) = (service.upstreams.total, service.upstreams.balanced);
    let shown = upstreams.into_iter().skip((page - 1) * UPSTREAMS).take(UPSTREAMS);
    let context = Context { id: &service_id, source, fetched, status, now: clock.now };
    let upstreams = shown.map(|(mood, upstream)| context.make_upstream(mood, upstream)).collect();
    let (keys, more_keys) = context.list_keys(&quarantine);
    let (section, more_lines) = match fetched.config.as_ref().map(|it| it.as_ref().map(|text| find_section(text, id))) {
        Some(Ok(Some((text, more)))) => (Some(text), more),
        _ => (None, 0),
    };
    let (changes, changes_error) = match fetched.changes.clone() {
        Some(Ok(changes)) => (show_changes(changes), None),
        Some(Err(error)) => (Vec::new(), Some(error)),
        None => (Vec::new(), None),
    };
    let page = Page {
        frame: Frame::new(status, "service", id),
        balancers: fetched.balancers.as_ref().map(|all| context.list_balancers(all)),
        name: service.name.clone(),
        kind: if service.kind == "http" { "HTTP" } else { "TCP" },
        claims: service.list_claims().into_iter().map(|claim| cut_text(&claim, LONGEST)).collect(),
        settings: service.settings,
        refused: service.refused.map(|words| cut_text(&words, LONGEST)),
        is_pending: service.pending,
        named_by: service.named_by,
        plots: Plots::new(&status.series.lock().trend(&service_id, clock.instant)),
        sessions: service.haproxy.map_or_else(|| "–".to_owned(), |row| format_count(row.sessions)),
        figures_error: counted.as_ref().err().cloned(),
        upstreams,
        total,
        serving,
        page,
        pages,
        keys,
        more_keys,
        changes,
        changes_error,
        section,
        more_lines,
        section_error: fetched.config.as_ref().and_then(|it| it.as_ref().err().cloned()),
        id: service.id,
    };
    Some(page.render())
}

fn find_mood(upstream: &Upstream) -> Mood {
    let announced = upstream.announced.as_ref().map(|it| match it.state.as_str() {
        "down" => UpstreamState::Down,
        "drain" => UpstreamState::Drain,
        _ => UpstreamState::Ready,
    });
    upstream.verdict.as_ref().map_or(Mood::Unknown, |verdict| Mood::of(verdict, announced))
}

/// The facts that each row needs.
struct Context<'a> {
    id: &'a ServiceId,
    source: Option<&'a Service>,
    fetched: &'a Fetched,
    status: &'a Status,
    now: SystemTime,
}

impl Context<'_> {
    fn make_upstream(&self, mood: Mood, upstream: Upstream) -> UpstreamRow {
        let entry = upstream.id.parse().ok().and_then(|id| Some(&self.source?.upstream(&id)?.entry));
        let verdict = upstream.verdict.as_ref();
        let words = verdict.into_iter().flat_map(discovery::Verdict::reasons).map(|reason| reason.words.clone());
        let mut reasons: Vec<String> = upstream.why.clone();
        for reason in words {
            // The verdict repeats most reasons for the wanted state, with the command that takes it back.
            reasons.retain(|known| !reason.starts_with(known.as_str()));
            reasons.push(cut_text(&reason, LONGEST));
        }
        let row = upstream.haproxy.as_ref();
        UpstreamRow {
            balancers: self.describe_balancers(&upstream, entry),
            lease: self.describe_lease(entry),
            address: upstream.address.unwrap_or_else(|| "no readable address".to_owned()),
            machine: upstream.host,
            color: upstream.color,
            weight: upstream.weight.map_or_else(|| "–".to_owned(), |weight| weight.to_string()),
            is_backup: upstream.backup,
            wanted: upstream.state.unwrap_or_else(|| "not served".to_owned()),
            reasons,
            mood,
            verdict: verdict.and_then(discovery::Verdict::cause).map_or("yes", Cause::name).to_owned(),
            observed: row.map_or_else(|| "–".to_owned(), |row| row.status.clone()),
            check: row.and_then(|row| row.check.clone()),
            since: row.and_then(|row| Moment::before(self.now, row.since_seconds)),
            sessions: row.map_or_else(|| "–".to_owned(), |row| format_count(row.sessions)),
            rate: row.map_or_else(|| "–".to_owned(), |row| format_count(row.rate)),
            latency: format_latency(row.and_then(|row| {
                let seconds = row.response_seconds_average.or(row.total_seconds_average)?;
                (row.sessions_total > 0).then_some((seconds * 1_000.0) as f32)
            })),
            draining: upstream.draining,
            id: upstream.id,
        }
    }

    /// The words on the lease of an upstream's key.
    fn describe_lease(&self, entry: Option<&Entry>) -> String {
        let Some(entry) = entry else { return "no key".to_owned() };
        match (entry.lease, self.fetched.leases.get(&entry.lease)) {
            (0, _) => "none, it stays".to_owned(),
            (_, Some(Some(left))) => format!("{} left", format_span(left.as_secs())),
            (_, Some(None)) => "has ended".to_owned(),
            (lease, None) => format!("{lease:x}"),
        }
    }

    /// The other balancers' words on an upstream, as far as they differ from "has it".
    fn describe_balancers(&self, upstream: &Upstream, entry: Option<&Entry>) -> Vec<String> {
        let Some(all) = &self.fetched.balancers else { return Vec::new() };
        let Ok(id) = upstream.id.parse() else { return Vec::new() };
        let revision = entry.map_or(0, |entry| entry.mod_revision);
        let name = discovery::BalancerRecord::server_name(self.id, &id);
        let mut words = Vec::new();
        let mut have = 0_usize;
        for balancer in all {
            let Ok(record) = &balancer.record else {
                words.push(format!("{}: unreadable", balancer.node));
                continue;
            };
            if let Some(sessions) = record.draining.get(&name) {
                words.push(format!("{}: draining, {sessions} open", balancer.node));
            } else if record.held.contains(&name) {
                words.push(format!("{}: retained", balancer.node));
            } else if record.has_applied_upstream(self.status.seen.cluster, revision, self.id, &id) {
                have += 1;
            } else {
                words.push(format!("{}: not yet", balancer.node));
            }
        }
        // A word for each balancer that has it would fill the cell.
        words.insert(0, format!("{have} of {} have it", all.len()));
        words
    }

    /// The balancers' words on the service.
    fn list_balancers(&self, all: &[Balancer]) -> Vec<BalancerRow> {
        let newest = self.source.map(|source| source.entries().map(|entry| entry.mod_revision).max());
        let newest = newest.flatten().unwrap_or_default();
        all.iter().map(|balancer| self.make_balancer(balancer, newest)).collect()
    }

    fn make_balancer(&self, balancer: &Balancer, newest: i64) -> BalancerRow {
        let agreement = Agreement::of(balancer, self.status);
        let (section, prefix) = (self.id.to_string(), format!("{}/", self.id));
        let mut row = BalancerRow {
            node: balancer.node.clone(),
            url: None,
            style: agreement.style(),
            words: agreement.words(),
            notes: Vec::new(),
        };
        let Ok(record) = &balancer.record else { return row };
        row.url = safe_url(record.url.as_deref()).map(|url| format!("{url}/services/{section}"));
        // The revisions of two stores have no common order.
        if agreement == Agreement::OtherStore {
            return row;
        }
        let is_pending = record.pending.contains(&section);
        (row.style, row.words) = match record.applied >= newest {
            _ if is_pending => ("standby", "waits for a restart".to_owned()),
            true => ("serving", format!("has it as of revision {newest}")),
            false => ("standby", format!("applied {} of {newest}", record.applied)),
        };
        let draining = record.draining.iter().filter(|(name, _)| name.starts_with(&prefix));
        row.notes.extend(draining.map(|(name, sessions)| format!("{name} drains, {sessions} open")).take(3));
        let held = record.held.iter().filter(|name| name.starts_with(&prefix)).count();
        row.notes.extend((held > 0).then(|| format!("{held} retained")));
        let folder = self.id.folder_path();
        let quarantined = record.quarantined.keys().filter(|key| key.starts_with(&folder)).count();
        row.notes.extend((quarantined > 0).then(|| format!("{quarantined} keys not followed")));
        row
    }

    /// The service's keys with their values, and the number of the others.
    fn list_keys(&self, quarantine: &BTreeMap<String, String>) -> (Vec<KeyRow>, usize) {
        let Some(source) = self.source else { return (Vec::new(), 0) };
        let count = source.entries().count();
        let rows = source.entries().take(KEYS).map(|entry| KeyRow {
            key: entry.key.clone(),
            value: show_value(entry),
            revision: entry.mod_revision,
            lease: (entry.lease != 0).then(|| self.describe_lease(Some(entry))),
            refused: quarantine.get(&entry.key).map(|reason| cut_text(reason, LONGEST)),
        });
        (rows.collect(), count.saturating_sub(KEYS))
    }
}

/// A value as text. A secret is `…`, as in the log of changes.
fn show_value(entry: &Entry) -> String {
    if entry.key.parse::<Key>().is_ok_and(|key| key.is_secret()) {
        return "…".to_owned();
    }
    cut_text(&String::from_utf8_lossy(&entry.value), LONGEST)
}

/// A section of haproxy.cfg, and the number of its lines that are left out. `None` if the file has none.
fn find_section(config: &str, section: &str) -> Option<(String, usize)> {
    let is_header = |line: &str| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("backend" | "listen")) && words.next() == Some(section)
    };
    let mut lines = config.lines().skip_while(|line| !is_header(line));
    let header = lines.next()?;
    // A line that isn't indented begins another section.
    let body = lines.take_while(|line| line.is_empty() || line.starts_with([' ', '\t', '#']));
    let mut all: Vec<&str> = std::iter::once(header).chain(body).collect();
    while all.last().is_some_and(|line| line.trim().is_empty() || line.starts_with('#')) {
        all.pop();
    }
    let more = all.len().saturating_sub(LINES);
    all.truncate(LINES);
    Some((all.join("\n"), more))
}

/// The figure of a plot that the page shows beside it.
fn show_most(plot: &Plot) -> String {
    if plot.path.is_empty() { format_figure(None) } else { plot.most.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_ends_where_the_next_one_begins() {
        let config = "global\n    a\n\nbackend http-shop from x\n    server a 10.0.0.1:80\n\n# Next.\nbackend http-shop2\n    b\n";
        let found = |name| find_section(config, name);
        assert_eq!(found("http-shop").unwrap(), ("backend http-shop from x\n    server a 10.0.0.1:80".to_owned(), 0));
        assert_eq!(found("http-shop2").unwrap().0, "backend http-shop2\n    b");
        assert_eq!((found("http-sho"), found("global")), (None, None));
        let long = format!("listen tcp-db\n{}", "    server\n".repeat(1_000));
        assert_eq!(find_section(&long, "tcp-db").unwrap().1, 701);
    }
}
