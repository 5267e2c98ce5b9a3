//! The status page: what the API answers, for people. Pure.

use askama::Template;
use discovery::Cause;

use crate::status::Status;
use crate::status::api::{
    Act, Counted, ServiceInFull, StatusShown, UpstreamShown, show_first_services, show_history, show_status,
};

/// A page with more services is no page; the API has them all.
const SERVICES: usize = 200;
/// Upstreams of one service.
const UPSTREAMS: usize = 50;
/// What lies further back, the API has.
const ACTS: usize = 20;
/// Keys that are not followed.
const KEYS: usize = 100;

/// The whole page. Whatever is printed in it is escaped as HTML.
#[derive(Template)]
#[template(path = "status.html")]
struct Page<'a> {
    status: StatusShown,
    services: Vec<ServiceInFull>,
    more_services: usize,
    quarantine: Vec<(&'a String, &'a String)>,
    more_keys: usize,
    acts: Vec<Act>,
    haproxy_error: Option<&'a String>,
}

/// The page of now.
pub fn render_page(report: &Status, counted: &Counted) -> askama::Result<String> {
    let standing = &report.reconcile;
    let page = Page {
        status: show_status(report),
        services: show_first_services(report, counted, SERVICES),
        more_services: standing.desired.known_services().count().saturating_sub(SERVICES),
        quarantine: standing.quarantined.iter().take(KEYS).collect(),
        more_keys: standing.quarantined.len().saturating_sub(KEYS),
        acts: show_history(report).history.into_iter().take(ACTS).collect(),
        haproxy_error: counted.as_ref().err(),
    };
    page.render()
}

impl ServiceInFull {
    fn shown(&self) -> &[UpstreamShown] {
        self.upstreams.get(..UPSTREAMS).unwrap_or(&self.upstreams)
    }

    fn more(&self) -> usize {
        self.upstreams.len().saturating_sub(UPSTREAMS)
    }
}

impl UpstreamShown {
    /// It gets requests, or the cause why it gets none.
    fn requests(&self) -> &str {
        self.verdict.cause().map_or("yes", Cause::name)
    }

    fn tone(&self) -> &'static str {
        match self.verdict.gets_requests {
            Some(true) => "good",
            Some(false) => "bad",
            None => "soft",
        }
    }
}

impl Act {
    /// How long it took, in ms with one digit behind the point.
    fn ms(&self) -> String {
        format!("{:.1}", self.seconds * 1000.0)
    }
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
        let settled = settle(&topology(store), &Default::default(), &Default::default());
        let quarantined = settled.quarantined_keys();
        assert!(quarantined.values().any(|reason| reason.contains("<script>")), "{quarantined:?}");
        let standing = ReconcileStatus { desired: settled.into(), quarantined, ..ReconcileStatus::default() };
        let report = Status { reconcile: Arc::new(standing), store_error: Some("<i>".into()), ..Status::default() };
        let page = render_page(&report, &Err("</td><img src=x>".into())).unwrap();
        for markup in ["<script", "<img", "<i>", "<b>"] {
            assert!(!page.contains(markup), "{markup} in {page}");
        }
        assert!(page.contains("a.com/") && page.contains("10.0.0.1:80"), "{page}");
    }
}
