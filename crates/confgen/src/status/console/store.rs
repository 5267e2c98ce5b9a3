//! The page of the store: quarantined keys, retained upstreams, the balancers. Pure.

use askama::Template;

use super::Balancer;
use super::balancers::{Agreement, safe_url};
use super::format::{Moment, cut_text, format_count, sign_of};
use super::frame::Frame;
use crate::status::Status;

/// The most rows of a table. The API has all.
const ROWS: usize = 500;
const LONGEST: usize = 2_000;

#[derive(Template)]
#[template(path = "console/store.html")]
struct Page {
    frame: Frame,
    error: Option<String>,
    cluster: String,
    prefix: String,
    seen: i64,
    applied: Option<i64>,
    published: i64,
    quarantine: Vec<(String, String)>,
    more_keys: usize,
    retained: Vec<RetainedRow>,
    more_retained: usize,
    lost_keys: usize,
    balancers: Option<Vec<BalancerRow>>,
}

struct RetainedRow {
    service: String,
    upstream: String,
    by: &'static str,
    since: Option<Moment>,
    reason: String,
}

struct BalancerRow {
    node: String,
    url: Option<String>,
    style: &'static str,
    words: String,
    seen: String,
    applied: String,
    haproxy: String,
    pending: usize,
    held: usize,
    quarantined: usize,
    draining: usize,
}

/// `balancers` is `None` if etcd doesn't answer.
pub fn render_page(status: &Status, balancers: Option<&[Balancer]>) -> askama::Result<String> {
    let reconcile = &status.reconcile;
    let quarantine = reconcile.quarantined.iter().take(ROWS);
    let retained = reconcile.retained.iter().take(ROWS).map(|((service, upstream), retained)| RetainedRow {
        service: service.to_string(),
        upstream: upstream.to_string(),
        by: retained.by.name(),
        since: retained.since.map(Moment::of),
        reason: retained.describe(),
    });
    let page = Page {
        frame: Frame::new(status, "store", "Store"),
        error: status.store_error.as_ref().map(|error| cut_text(error, LONGEST)),
        cluster: status.seen.cluster.to_string(),
        prefix: status.identity.prefix.clone(),
        seen: status.seen.revision,
        applied: reconcile.applied.map(|applied| applied.revision),
        published: reconcile.published,
        quarantine: quarantine.map(|(key, reason)| (key.clone(), cut_text(reason, LONGEST))).collect(),
        more_keys: reconcile.quarantined.len().saturating_sub(ROWS),
        retained: retained.collect(),
        more_retained: reconcile.retained.len().saturating_sub(ROWS),
        lost_keys: reconcile.reset_lost.keys,
        balancers: balancers.map(|all| all.iter().map(|it| make_balancer(it, status)).collect()),
    };
    page.render()
}

fn make_balancer(balancer: &Balancer, status: &Status) -> BalancerRow {
    let agreement = Agreement::of(balancer, status);
    let record = balancer.record.as_ref().ok();
    let number = |value: Option<i64>| value.map_or_else(|| "–".to_owned(), |value| format_count(value.unsigned_abs()));
    BalancerRow {
        node: balancer.node.clone(),
        url: record.and_then(|record| safe_url(record.url.as_deref())),
        style: agreement.style(),
        words: agreement.words(),
        seen: number(record.map(|record| record.seen)),
        applied: number(record.map(|record| record.applied)),
        haproxy: record
            .and_then(|record| record.haproxy.clone())
            .map_or_else(|| "–".to_owned(), |it| cut_text(&it, 40)),
        pending: record.map_or(0, |record| record.pending.len()),
        held: record.map_or(0, |record| record.held.len()),
        quarantined: record.map_or(0, |record| record.quarantined.len()),
        draining: record.map_or(0, |record| record.draining.len()),
    }
}
