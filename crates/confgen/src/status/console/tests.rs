use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ::haproxy::masters::{OldProcess, OldProcesses};
use ::haproxy::runtime::{Limits, Turns};
use ::haproxy::version::Version;
use discovery::balancer_api::AppliedChange;
use discovery::{Author, BalancerRecord};

use super::query::{RawQuery, ServiceQuery};
use super::service::Fetched;
use super::services::Clock;
use super::*;
use crate::desired::tests::{settle, topology};
use crate::status::{ActionKind, HistoryEntry, Identity, ReconcileStatus, Retained, Retainer, RunningHaproxy, Status};
use crate::store::StoreRevision;

/// Everything that a writer of the store, an app or a file can choose is as bad as it can be.
const BAD: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>";

const STORE: &str = "http-services/a/domain a.com\nhttp-services/a/upstreams/1 10.0.0.1:80\n\
                     http-services/a/tls <script>alert(1)</script>\nhttp-services/a/url_reg ^/<b>&\"'\n\
                     http-services/a/upstreams/2 \"'><script>\nhttp-services/b/domain b.com\n\
                     http-services/b/active blue\n\
                     http-services/b/upstreams/1 {\"address\":\"10.0.0.2:80\",\"color\":\"blue\",\"host\":\"web-1\"}\n\
                     http-services/b/upstreams/2 {\"address\":\"10.0.0.3:80\",\"color\":\"green\"}\ntcp-services/db/ports 3306";

fn clock() -> Clock {
    Clock { now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000), instant: Instant::now() }
}

fn hostile() -> Status {
    let desired = settle(&topology(STORE), &Default::default(), &Default::default());
    let mut quarantined = desired.quarantined_keys();
    assert!(quarantined.values().any(|reason| reason.contains("<script>")), "{quarantined:?}");
    quarantined.insert(BAD.into(), BAD.into());
    let revision = StoreRevision { cluster: 7, raft_term: 2, revision: 20 };
    let db = crate::desired::names::parse_section("tcp-db").unwrap();
    let retained = Retained { by: Retainer::Guard, since: Some(SystemTime::UNIX_EPOCH) };
    let mut reconcile =
        ReconcileStatus { desired: desired.into(), quarantined: quarantined.into(), ..ReconcileStatus::default() };
    reconcile.retained.insert((db, "x".parse().unwrap()), retained);
    reconcile.applied = Some(revision);
    reconcile.operator_files.remarks = vec![BAD.into()];
    reconcile.operator_files.not_filled = vec![BAD.into()];
    let mut status = Status {
        seen: revision,
        reconcile: Arc::new(reconcile),
        store_error: Some(BAD.into()),
        running: Some(RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: Some(BAD.into()) }),
        limits: Some(Limits { connections: 20, first_connections: 500, ..Limits::default() }),
        has_reconciled: true,
        ..Status::default()
    };
    status.identity = Identity { node: "lb<b>1".into(), prefix: BAD.into(), ..Identity::default() }.into();
    let old = OldProcess { pid: 42, uptime: Duration::from_secs(90), connections: 3, memory: Some(4_096) };
    status.old = Arc::new(OldProcesses { list: vec![old], silent: 1 });
    status.record_action(HistoryEntry {
        began_at: SystemTime::UNIX_EPOCH,
        took: Duration::from_millis(20),
        kind: ActionKind::File,
        reason: BAD.into(),
        revision: 20,
        outcome: Err(BAD.into()),
        difference: Some(format!("  backend a\n+ {BAD}").into()),
    });
    let row = Turns { proxy: "http-b", requests: Some(10), ..Turns::default() };
    status.series.keep_samples();
    status.series.observe_backends(Instant::now(), 7, &[row]);
    status
}

fn balancers() -> Vec<Balancer> {
    let url = |url: &str| Some(url.to_owned());
    let bad =
        BalancerRecord { cluster: 7, url: url("javascript:alert(1)"), haproxy: url(BAD), ..BalancerRecord::default() };
    let good =
        BalancerRecord { cluster: 7, applied: 20, url: url("http://10.0.0.9:9101"), ..BalancerRecord::default() };
    vec![
        Balancer { node: "lb2".into(), record: Ok(bad) },
        Balancer { node: "lb3".into(), record: Ok(good) },
        Balancer { node: "lb4".into(), record: Err(BAD.into()) },
    ]
}

fn fetched() -> Fetched {
    let author = Author { user: BAD.into(), host: BAD.into(), command: BAD.into(), reason: Some(BAD.into()) };
    let change = AppliedChange {
        time: BAD.into(),
        key: BAD.into(),
        before: Some("x".into()),
        after: Some(BAD.into()),
        author: Some(author),
        refused: Some(BAD.into()),
        ..AppliedChange::default()
    };
    Fetched {
        changes: Some(Ok(vec![change])),
        config: Some(Ok(format!("backend http-a\n    # {BAD}\n    server 1 10.0.0.1:80\n"))),
        balancers: Some(balancers()),
        ..Fetched::default()
    }
}

/// Panics if a page has markup or an attribute that isn't the templates' own.
#[track_caller]
fn assert_clean(page: &str) {
    let scripts = page.matches("<script").count();
    assert_eq!((scripts, page.matches("<script src=\"/console.js\" defer></script>").count()), (1, 1), "{page}");
    for markup in ["<img", "<i>", "lb<b>", "style=", "javascript:", " onerror=\"", "onclick"] {
        assert!(!page.contains(markup), "{markup} in {page}");
    }
    // Inside of a tag no value may end its attribute: each has an even number of quotes and no `<`.
    for tag in page.split('<').skip(1) {
        let Some((head, _)) = tag.split_once('>') else { panic!("an open tag: <{tag}") };
        assert_eq!(head.matches('"').count() % 2, 0, "<{head}>");
    }
}

#[test]
fn nothing_from_the_store_becomes_markup() {
    let status = hostile();
    for counted in [Ok(Vec::new()), Err(BAD.to_owned())] {
        let query = ServiceQuery { text: String::new(), ..ServiceQuery::default() };
        let list = services::render_page(&status, &counted, query, clock()).unwrap();
        assert_clean(&list);
        assert!(list.contains("data-service=\"http-a\"") && list.contains("a.com"), "{list}");
        let bad = ServiceQuery { text: BAD.into(), host: BAD.into(), color: BAD.into(), ..ServiceQuery::default() };
        assert_clean(&services::render_page(&status, &counted, bad, clock()).unwrap());
        let one = service::render_page(&status, &counted, "http-a", 1, &fetched(), clock()).unwrap().unwrap();
        assert_clean(&one);
        assert!(one.contains("10.0.0.1:80") && one.contains("data-upstream=\"1\""), "{one}");
        let errors = Fetched { changes: Some(Err(BAD.into())), config: Some(Err(BAD.into())), ..Fetched::default() };
        assert_clean(&service::render_page(&status, &counted, "http-b", 9, &errors, clock()).unwrap().unwrap());
    }
    assert_clean(&certificates::render_page(&status, clock()).unwrap());
    let store = store::render_page(&status, Some(&balancers())).unwrap();
    assert_clean(&store);
    assert!(store.contains("href=\"http://10.0.0.9:9101/\""), "{store}");
    assert_clean(&store::render_page(&status, None).unwrap());
    assert_clean(&haproxy::render_page(&status, clock().now).unwrap());
    assert_clean(&haproxy::render_page(&Status::default(), clock().now).unwrap());
    assert_clean(
        &services::render_page(&Status::default(), &Ok(Vec::new()), ServiceQuery::default(), clock()).unwrap(),
    );
}

#[test]
fn a_page_has_the_marks_that_others_look_for() {
    let status = hostile();
    let list = services::render_page(&status, &Ok(Vec::new()), RawQuery::default().read(), clock()).unwrap();
    for mark in [
        "data-page=\"services\"",
        "data-node>lb",
        "data-sync>not in sync<",
        "data-live-state",
        "id=\"problems\"",
        "data-problem=",
        "id=\"services\"",
        "id=\"filter\"",
        "name=\"q\"",
        "name=\"host\"",
        "name=\"color\"",
        "name=\"wrong\" value=\"1\"",
        "name=\"sort\"",
    ] {
        assert!(list.contains(mark), "{mark} in {list}");
    }
    let one = service::render_page(&status, &Ok(Vec::new()), "http-b", 1, &fetched(), clock()).unwrap().unwrap();
    for mark in [
        "data-page=\"service\"",
        "id=\"upstreams\"",
        "data-upstream=\"1\"",
        "data-verdict=",
        "id=\"keys\"",
        "id=\"changes\"",
        "id=\"section\"",
    ] {
        assert!(one.contains(mark), "{mark} in {one}");
    }
    assert!(service::render_page(&status, &Ok(Vec::new()), "http-nobody", 1, &Fetched::default(), clock()).is_none());
    assert!(service::render_page(&status, &Ok(Vec::new()), BAD, 1, &Fetched::default(), clock()).is_none());
    let store = store::render_page(&status, Some(&balancers())).unwrap();
    for mark in ["data-page=\"store\"", "id=\"quarantine\"", "id=\"retained\"", "id=\"balancers\""] {
        assert!(store.contains(mark), "{mark} in {store}");
    }
    let haproxy = haproxy::render_page(&status, clock().now).unwrap();
    for mark in ["data-page=\"haproxy\"", "id=\"processes\"", "id=\"acts\""] {
        assert!(haproxy.contains(mark), "{mark} in {haproxy}");
    }
    assert!(certificates::render_page(&status, clock()).unwrap().contains("id=\"certificates\""));
}

#[test]
fn the_list_is_filtered_and_in_pages() {
    let store: String = (0..250)
        .map(|n| {
            format!("http-services/s{n:03}/domain s{n:03}.test\nhttp-services/s{n:03}/upstreams/a 10.0.{n}.1:80\n")
        })
        .collect();
    let desired = settle(&topology(&store), &Default::default(), &Default::default());
    let reconcile = ReconcileStatus { desired: desired.into(), ..ReconcileStatus::default() };
    let status = Status { reconcile: Arc::new(reconcile), ..Status::default() };
    let render = |query| services::render_page(&status, &Ok(Vec::new()), query, clock()).unwrap();
    let rows = |page: &str| page.matches("data-service=").count();
    let first = render(ServiceQuery { page: 1, ..ServiceQuery::default() });
    assert_eq!(rows(&first), query::ROWS);
    assert!(first.contains("page 1 of 3") && first.contains("href=\"/?page=2\""));
    assert_eq!(rows(&render(ServiceQuery { page: 99, ..ServiceQuery::default() })), 50);
    let found = render(ServiceQuery { text: "s007".into(), page: 1, ..ServiceQuery::default() });
    assert!(rows(&found) == 1 && found.contains("1 of 250 services"), "{found}");
    let by_address = render(ServiceQuery { text: "10.0.77.1".into(), page: 1, ..ServiceQuery::default() });
    assert!(by_address.contains("data-service=\"http-s077\"") && rows(&by_address) == 1);
}

#[test]
fn a_page_shows_the_certificates_that_end_first_and_the_number_of_the_others() {
    let make = |number: u16| {
        let it = crate::local_files::certificate::tests::certificate("a.test", "/state/a.pem");
        let (file, end) = (format!("/certs/{number:03}.pem").into(), Some(2_000_000_000 - i64::from(number)));
        crate::local_files::certificate::Certificate { file, not_after: end, ..it }
    };
    let files: Vec<_> = (0..600).map(make).collect();
    let all = crate::local_files::certificates::Certificates { files, ..Default::default() };
    let reconcile = ReconcileStatus { certificates: Arc::new(all), ..ReconcileStatus::default() };
    let page =
        certificates::render_page(&Status { reconcile: reconcile.into(), ..Status::default() }, clock()).unwrap();
    assert!(page.matches("data-certificate=").count() == 500 && page.contains("100 more, which end later"));
    assert!(page.contains("/certs/599.pem") && !page.contains("/certs/000.pem"), "the first to end");
}

#[test]
fn many_like_problems_are_one_entry_with_a_link_to_all() {
    let store: String = (0..1_000).map(|n| format!("http-services/s{n:03}/domain s{n:03}.test\n")).collect();
    let mut status = hostile();
    let reconcile = Arc::make_mut(&mut status.reconcile);
    reconcile.desired = settle(&topology(&store), &Default::default(), &Default::default()).into();
    let render = |query: ServiceQuery| services::render_page(&status, &Ok(Vec::new()), query, clock()).unwrap();
    let page = render(ServiceQuery { page: 1, ..ServiceQuery::default() });
    assert!(page.matches("data-problem=").count() < 12, "{page}");
    assert!(page.contains("1000 services have no upstream: http-s000, http-s001, http-s002, http-s003, 996 more"));
    assert!(page.contains("<a class=\"all\" href=\"/?problem=no_upstream\">all 1,000 services</a>"), "{page}");
    let filtered = render(ServiceQuery { problem: "no_upstream".into(), page: 1, ..ServiceQuery::default() });
    assert!(filtered.contains("1,000 of 1,000 services with the problem <code>no_upstream</code>"), "{filtered}");
    assert!(filtered.contains("<input type=\"hidden\" name=\"problem\" value=\"no_upstream\">"));
    assert!(filtered.contains("href=\"/?problem=no_upstream&#38;page=2\""), "{filtered}");
    let none = render(ServiceQuery { problem: BAD.into(), page: 1, ..ServiceQuery::default() });
    assert!(none.contains("0 of 1,000 services"), "{none}");
    assert_clean(&none);
}

#[test]
fn an_asset_has_a_tag_of_its_text() {
    assert_ne!(assets::SCRIPT.tag(), assets::STYLE.tag());
    assert_eq!(assets::STYLE.tag(), assets::STYLE.tag());
    // The content security policy allows neither.
    for text in [assets::SCRIPT.text, assets::STYLE.text] {
        assert!(!text.contains("innerHTML") && !text.contains("eval(") && !text.contains("http:"), "{text}");
    }
}
