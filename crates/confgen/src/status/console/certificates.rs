//! The page of the certificates: their names, the days that are left, and what they serve. Pure.

use askama::Template;
use discovery::balancer_api;

use super::format::{Moment, cut_text, format_count, sign_of};
use super::frame::Frame;
use super::services::Clock;
use crate::local_files::expiry::{DAY, SOON};
use crate::status::Status;
use crate::status::api::show_certificates;

/// The most names of one certificate, and the most hosts without one.
const NAMES: usize = 20;
/// The most certificates. The API has all.
const ROWS: usize = 500;
/// The most hosts of the second table.
const HOSTS: usize = 500;
const LONGEST: usize = 600;

#[derive(Template)]
#[template(path = "console/certificates.html")]
struct Page {
    frame: Frame,
    rows: Vec<Row>,
    more_rows: usize,
    refused: Vec<(String, String)>,
    unused: Vec<(String, String)>,
    hosts: Vec<HostRow>,
    more_hosts: usize,
}

struct Row {
    file: String,
    names: Vec<String>,
    more_names: usize,
    serves: Vec<String>,
    more_serves: usize,
    is_default: bool,
    key_type: String,
    /// `serving`, `standby`, `risk` or `outage`.
    style: &'static str,
    left: String,
    until: Option<Moment>,
    fingerprint: String,
}

struct HostRow {
    host: String,
    service: String,
    tls: String,
    is_default: bool,
    certificates: Vec<(String, String)>,
}

pub fn render_page(status: &Status, clock: Clock) -> askama::Result<String> {
    let now = clock.now.duration_since(std::time::SystemTime::UNIX_EPOCH).map_or(0, |it| it.as_secs().cast_signed());
    let shown = show_certificates(status, now);
    let reasons = |files: std::collections::BTreeMap<String, String>| {
        files.into_iter().map(|(file, reason)| (file, cut_text(&reason, LONGEST))).collect()
    };
    let hosts = shown.hosts.len();
    // The order of `show_certificates` is that of the files, and a certificate that is made here comes last.
    let ends = status.reconcile.certificates.files.iter().map(|it| it.not_after).chain(std::iter::repeat(None));
    let rows = shown.certificates.into_iter().zip(ends).map(|(it, end)| {
        let end = end.or_else(|| it.not_after.as_deref().and_then(parse_unix));
        make_row(it, end, now)
    });
    let mut rows: Vec<(i64, Row)> = rows.collect();
    // What ends first is what a reader looks for.
    rows.sort_by(|(one, a), (other, b)| one.cmp(other).then_with(|| a.file.cmp(&b.file)));
    let page = Page {
        frame: Frame::new(status, "certificates", "Certificates"),
        more_rows: rows.len().saturating_sub(ROWS),
        rows: rows.into_iter().take(ROWS).map(|(_, row)| row).collect(),
        refused: reasons(shown.refused),
        unused: reasons(shown.unused),
        hosts: shown.hosts.into_iter().take(HOSTS).map(make_host).collect(),
        more_hosts: hosts.saturating_sub(HOSTS),
    };
    page.render()
}

fn parse_unix(stamp: &str) -> Option<i64> {
    let at = humantime::parse_rfc3339(stamp).ok()?;
    Some(at.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?.as_secs().cast_signed())
}

fn make_row(it: balancer_api::Certificate, end: Option<i64>, now: i64) -> (i64, Row) {
    let is_used = it.default || !it.serves.is_empty();
    let left = end.map(|end| end - now);
    let style = match left {
        _ if !is_used => "standby",
        Some(..0) => "outage",
        Some(left) if left < SOON => "risk",
        None => "risk",
        Some(_) => "serving",
    };
    let words = match left {
        None => "unreadable date".to_owned(),
        Some(..0) => "expired".to_owned(),
        Some(left) if left < DAY => "less than a day".to_owned(),
        Some(left) if left < 2 * DAY => "1 day".to_owned(),
        Some(left) => format!("{} days", format_count((left / DAY).unsigned_abs())),
    };
    let words = if it.validity == "not valid yet" { it.validity.clone() } else { words };
    let first = |names: Vec<String>| {
        let more = names.len().saturating_sub(NAMES);
        (names.into_iter().take(NAMES).map(|name| cut_text(&name, LONGEST)).collect::<Vec<_>>(), more)
    };
    let (names, more_names) = first(it.names);
    let (serves, more_serves) = first(it.serves);
    let row = Row {
        file: it.file,
        names,
        more_names,
        serves,
        more_serves,
        is_default: it.default,
        key_type: it.key_type,
        style,
        left: words,
        until: it.not_after.as_deref().map(Moment::parse),
        fingerprint: it.fingerprint,
    };
    (left.unwrap_or(i64::MIN), row)
}

fn make_host(host: balancer_api::Host) -> HostRow {
    HostRow {
        certificates: host.certificates.into_iter().map(|it| (it.file, it.why)).collect(),
        host: host.host,
        service: host.service,
        tls: host.tls,
        is_default: host.default,
    }
}
