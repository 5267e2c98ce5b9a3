//! The status page: the API's answers as HTML. Pure: no I/O, no clock.

use askama::Template;
use discovery::balancer_api::{self, Act, ServiceInFull, Upstream};
use discovery::{Cause, Verdict};

use crate::status::Status;
use crate::status::api::{Counted, show_first_services, show_history, show_status};

/// The most services. A page of more is too long to read, and the API has them all.
const SERVICES: usize = 200;
/// The most upstreams of one service. The page has the number of the others.
const UPSTREAMS: usize = 50;
/// The most actions of the history. The API has all.
const ACTS: usize = 20;
/// The most quarantined keys. The page has the number of the others.
const KEYS: usize = 100;

/// The whole page. askama escapes all values as HTML.
#[derive(Template)]
#[template(path = "status.html")]
struct Page<'a> {
    status: balancer_api::Status,
    services: Vec<ServiceInFull>,
    more_services: usize,
    quarantine: Vec<(&'a String, &'a String)>,
    more_keys: usize,
    acts: Vec<Act>,
    haproxy_error: Option<&'a String>,
}

pub fn render_page(status: &Status, counted: &Counted) -> askama::Result<String> {
    let reconcile = &status.reconcile;
    let page = Page {
        status: show_status(status),
        services: show_first_services(status, counted, SERVICES),
        more_services: reconcile.desired.known_services().count().saturating_sub(SERVICES),
        quarantine: reconcile.quarantined.iter().take(KEYS).collect(),
        more_keys: reconcile.quarantined.len().saturating_sub(KEYS),
        acts: show_history(status).history.into_iter().take(ACTS).collect(),
        haproxy_error: counted.as_ref().err(),
    };
    page.render()
}

/// The upstreams that the page lists of a service.
fn listed_upstreams(service: &ServiceInFull) -> &[Upstream] {
    service.upstreams.get(..UPSTREAMS).unwrap_or(&service.upstreams)
}

/// The number of upstreams that the page leaves out.
fn count_unlisted(service: &ServiceInFull) -> usize {
    service.upstreams.len().saturating_sub(UPSTREAMS)
}

/// `yes` for an upstream that gets requests, else the cause why it gets none.
fn requests_word(upstream: &Upstream) -> &str {
    upstream.verdict.as_ref().and_then(Verdict::cause).map_or("yes", Cause::name)
}

/// The reason of the verdict in words; None for an upstream that gets requests.
fn verdict_words(upstream: &Upstream) -> Option<&str> {
    upstream.verdict.as_ref()?.words()
}

/// The style of the verdict, as the page's head defines it.
fn verdict_style(upstream: &Upstream) -> &'static str {
    match upstream.balanced {
        Some(true) => "good",
        Some(false) => "bad",
        None => "soft",
    }
}

/// A size in MiB, with one digit behind the point.
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
fn format_mib(bytes: &u64) -> String {
    format!("{:.1}", *bytes as f64 / f64::from(1 << 20))
}

/// The time that an action took, in ms with one digit behind the point.
fn format_ms(act: &Act) -> String {
    format!("{:.1}", act.seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::status::ReconcileStatus;

    #[test]
    fn nothing_from_the_store_becomes_markup() {
        let store = "http-services/a/domain a.com\nhttp-services/a/upstreams/1 10.0.0.1:80\n\
                     http-services/a/tls <script>alert(1)</script>\nhttp-services/a/url_reg ^/<b>&\"'";
        let desired = settle(&topology(store), &Default::default(), &Default::default());
        let quarantined = desired.quarantined_keys();
        assert!(quarantined.values().any(|reason| reason.contains("<script>")), "{quarantined:?}");
        let reconcile = ReconcileStatus { desired: desired.into(), quarantined, ..ReconcileStatus::default() };
        let status = Status { reconcile: Arc::new(reconcile), store_error: Some("<i>".into()), ..Status::default() };
        let page = render_page(&status, &Err("</td><img src=x>".into())).unwrap();
        for markup in ["<script", "<img", "<i>", "<b>"] {
            assert!(!page.contains(markup), "{markup} in {page}");
        }
        assert!(page.contains("a.com/") && page.contains("10.0.0.1:80"), "{page}");
    }
}
