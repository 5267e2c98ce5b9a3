//! The first page: what isn't right, then the services. Pure.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use askama::Template;
use discovery::{Active, ServiceId};

use super::format::{cut_text, format_count, sign_of};
use super::frame::Frame;
use super::plot::Plots;
use super::query::{Order, ROWS, ServiceQuery, Subject, count_pages};
use crate::desired::DesiredService;
use crate::status::Status;
use crate::status::figures::{Counted, Figures};
use crate::status::problems::{Harm, Problem, ProblemKind, find_problems};
use crate::status::series::Series;
use crate::status::tally::{Tally, tally_services};

/// The most problems. The API has them all.
const PROBLEMS: usize = 50;
/// The most hosts and ports of a row. The service's own page has them all.
const CLAIMS: usize = 3;
/// The longest text of a claim, a reason or a problem.
const LONGEST: usize = 600;

/// The time of a request: by the wall clock, and by the clock of the samples.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: SystemTime,
    pub instant: Instant,
}

/// The whole page.
#[derive(Template)]
#[template(path = "console/services.html")]
struct Page {
    frame: Frame,
    problems: Vec<ProblemRow>,
    more_problems: usize,
    query: ServiceQuery,
    orders: Vec<OrderOption>,
    colors: Vec<String>,
    rows: Vec<Row>,
    selected: String,
    all: String,
    pages: usize,
    earlier: Option<String>,
    later: Option<String>,
    figures_error: Option<String>,
}

/// A problem in the list.
struct ProblemRow {
    style: &'static str,
    harm: &'static str,
    what: String,
    reason: String,
    command: Option<String>,
    /// The page about it. `None` if no page has more.
    url: Option<String>,
    /// The link to all of several services.
    all: Option<AllLink>,
}

/// A link to the services of one problem.
struct AllLink {
    url: String,
    words: String,
}

/// A choice of the order, in the form and in the table's head.
struct OrderOption {
    order: Order,
    is_chosen: bool,
    url: String,
}

/// A service in the table.
struct Row {
    id: String,
    kind: &'static str,
    name: String,
    style: &'static str,
    state: &'static str,
    claims: Vec<String>,
    more_claims: usize,
    tls: String,
    colors: Vec<ColorCell>,
    serving: usize,
    standby: usize,
    failing: usize,
    unknown: usize,
    total: usize,
    is_pending: bool,
    sessions: String,
    plots: Plots,
}

struct ColorCell {
    name: String,
    /// Its share in percent of the requests. `None` if it isn't active.
    share: Option<String>,
    serving: usize,
    total: usize,
}

pub fn render_page(status: &Status, counted: &Counted, query: ServiceQuery, clock: Clock) -> askama::Result<String> {
    let figures = Figures::new(counted);
    let tallies = tally_services(status, &figures);
    let problems = find_problems(status, &tallies, figures.error(), clock.now);
    let by_service = list_by_service(&problems);
    // HAProxy's next reading waits for the lock, so no verdict is made under it.
    let series = status.series.lock();
    let mut found: Vec<(Subject, &Tally)> = Vec::new();
    for tally in &tallies {
        let problems = by_service.get(tally.id).map(Vec::as_slice).unwrap_or_default();
        let subject = make_subject(status, &figures, &series, tally, problems, &query);
        if query.selects(&subject) {
            found.push((subject, tally));
        }
    }
    found.sort_by(|(one, _), (other, _)| query.compare(one, other));
    let (count, pages) = (found.len(), count_pages(found.len()));
    // Services may have gone since the reader got the link.
    let page = query.page.clamp(1, pages);
    let shown = found.into_iter().skip((page - 1) * ROWS).take(ROWS);
    let rows = shown.map(|(subject, tally)| make_row(status, &series, subject, tally, clock.instant)).collect();
    drop(series);
    let query = ServiceQuery { page, ..query };
    let page = Page {
        frame: Frame::new(status, "services", "Services"),
        more_problems: problems.len().saturating_sub(PROBLEMS),
        problems: problems.into_iter().take(PROBLEMS).map(show_problem).collect(),
        orders: list_orders(&query),
        colors: list_colors(&tallies),
        rows,
        selected: format_count(count as u64),
        all: format_count(tallies.len() as u64),
        pages,
        earlier: (page > 1).then(|| query.url(query.order, page - 1)),
        later: (page < pages).then(|| query.url(query.order, page + 1)),
        figures_error: counted.as_ref().err().cloned(),
        query,
    };
    page.render()
}

/// The problems of each service, those with the most harm first, as `problems` are.
fn list_by_service(problems: &[Problem]) -> BTreeMap<&ServiceId, Vec<&Problem>> {
    let mut by_service: BTreeMap<&ServiceId, Vec<&Problem>> = BTreeMap::new();
    for problem in problems {
        for id in &problem.services {
            by_service.entry(id).or_default().push(problem);
        }
    }
    by_service
}

fn show_problem(problem: Problem) -> ProblemRow {
    // One service has its own page. Of many the list shows all, by the same words as this problem.
    let (url, all) = match (&*problem.services, problem.kind) {
        ([id], _) => (Some(format!("/services/{id}")), None),
        ([], ProblemKind::CertificateExpired | ProblemKind::CertificateExpires | ProblemKind::CertificateRefused) => {
            (Some("/certificates".to_owned()), None)
        }
        ([], ProblemKind::Held) => (Some("/store".to_owned()), None),
        ([], _) => (None, None),
        (services, _) => {
            let url = ServiceQuery { problem: problem.filter(), ..ServiceQuery::default() }.url(Order::default(), 1);
            let words = format!("all {} services", format_count(services.len() as u64));
            (None, Some(AllLink { url, words }))
        }
    };
    ProblemRow {
        style: problem.harm.name(),
        harm: problem.harm.words(),
        what: cut_text(&problem.what, LONGEST),
        reason: cut_text(&problem.reason, LONGEST),
        command: problem.command,
        url,
        all,
    }
}

fn list_orders(query: &ServiceQuery) -> Vec<OrderOption> {
    let option = |order| OrderOption { order, is_chosen: order == query.order, url: query.url(order, 1) };
    Order::ALL.map(option).into()
}

fn list_colors(tallies: &[Tally]) -> Vec<String> {
    let all: std::collections::BTreeSet<&str> = tallies.iter().flat_map(|tally| tally.colors.keys().copied()).collect();
    all.into_iter().map(str::to_owned).collect()
}

fn make_subject<'a>(
    status: &'a Status,
    figures: &Figures,
    series: &Series,
    tally: &'a Tally,
    problems: &[&Problem],
    query: &ServiceQuery,
) -> Subject<'a> {
    let wanted = status.reconcile.desired.service(tally.id).map(|wanted| &**wanted);
    let name = tally.id.to_string();
    let sessions = figures.find_backend(&name).map(|row| row.sessions.now).unwrap_or_default();
    let latest = series.latest(tally.id);
    let mut domains: Vec<String> =
        wanted.iter().flat_map(|wanted| &wanted.routes).map(|route| route.domain.to_string()).collect();
    // The routes are sorted by their domain.
    domains.dedup();
    Subject {
        harm: problems.first().map(|problem| problem.harm as usize),
        // Without the filter 1,000 services would have their words made for nothing.
        problems: problems.iter().filter(|_| !query.problem.is_empty()).map(|problem| problem.filter()).collect(),
        domains,
        machines: tally.machines.keys().copied().collect(),
        colors: tally.colors.keys().copied().collect(),
        texts: wanted.filter(|_| !query.text.is_empty()).map(list_texts).unwrap_or_default(),
        sessions,
        requests: latest.requests,
        errors: latest.errors,
        latency: latest.latency,
        name,
    }
}

/// The texts of a service that only a search reads.
fn list_texts(wanted: &DesiredService) -> Vec<String> {
    let servers = wanted.servers.iter().map(|server| format!("{} {}", server.id, server.address));
    list_claims(wanted).into_iter().chain(servers).collect()
}

/// The hosts with their paths, the expression and the ports.
fn list_claims(wanted: &DesiredService) -> Vec<String> {
    let routes = wanted.routes.iter().map(|route| {
        let path = route.path.to_string();
        format!("{}{}", route.domain, if path == "/" { "" } else { &path })
    });
    let regex = wanted.url_reg.iter().map(|(_, regex)| format!("url_reg {regex}"));
    routes.chain(regex).chain(wanted.binds.iter().map(ToString::to_string)).collect()
}

fn make_row(status: &Status, series: &Series, subject: Subject, tally: &Tally, now: Instant) -> Row {
    let desired = &status.reconcile.desired;
    let wanted = desired.service(tally.id);
    let mut claims = wanted.map(|wanted| list_claims(wanted)).unwrap_or_default();
    let more_claims = claims.len().saturating_sub(CLAIMS);
    claims.truncate(CLAIMS);
    let active = wanted.and_then(|wanted| wanted.settings.active.as_ref());
    let (style, state) = describe_state(subject.harm, tally);
    Row {
        id: subject.name,
        kind: if tally.id.kind == discovery::Kind::Http { "HTTP" } else { "TCP" },
        name: tally.id.name.to_string(),
        style,
        state,
        claims: claims.iter().map(|claim| cut_text(claim, LONGEST)).collect(),
        more_claims,
        tls: wanted.map(|wanted| wanted.settings.tls.to_string()).unwrap_or_default(),
        colors: tally.colors.iter().map(|(name, color)| make_color(name, active, color.serving, color.total)).collect(),
        serving: tally.serving,
        standby: tally.standby,
        failing: tally.failing,
        unknown: tally.unknown,
        total: tally.total,
        is_pending: status.reconcile.pending.contains(tally.id),
        sessions: format_count(subject.sessions),
        plots: Plots::new(&series.trend(tally.id, now)),
    }
}

fn make_color(name: &str, active: Option<&Active>, serving: usize, total: usize) -> ColorCell {
    // Shares are parts of any whole, 90 and 10 or 9 and 1. A reader thinks in percent.
    let shares = active.map(|active| active.iter().map(|(_, share)| u64::from(share)).sum::<u64>().max(1));
    let share = active.and_then(|active| active.iter().find(|(color, _)| color.as_str() == name));
    let share = share.zip(shares).map(|((_, share), sum)| format!("{} %", u64::from(share) * 100 / sum));
    ColorCell { name: name.to_owned(), share, serving, total }
}

/// The style and the word of a service's state.
fn describe_state(harm: Option<usize>, tally: &Tally) -> (&'static str, &'static str) {
    match harm {
        Some(rank) if rank == Harm::Outage as usize => ("outage", "fails"),
        Some(rank) if rank == Harm::Blocked as usize => ("blocked", "changes wait"),
        Some(rank) if rank == Harm::Degraded as usize => ("degraded", "partly failing"),
        Some(_) => ("risk", "needs attention"),
        None if tally.unknown > 0 => ("unknown", "unknown"),
        // Nothing leads to it, so no client misses it.
        None if tally.serving == 0 => ("standby", "without requests"),
        None => ("serving", "serves"),
    }
}
