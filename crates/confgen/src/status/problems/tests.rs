use std::sync::Arc;

use expect_test::expect;
use haproxy::cutoffs::Cutoffs;
use haproxy::masters::OldProcesses;
use haproxy::runtime::{Limits, RowKind, Stat};
use haproxy::version::Version;

use super::*;
use crate::desired::tests::{settle, topology};
use crate::local_files::certificate::Certificate;
use crate::local_files::certificate::tests::certificate as make_certificate;
use crate::local_files::certificates::{Certificates, Choice};
use crate::operator_files::validate::Rejection;
use crate::status::{OperatorFilesStatus, ReconcileStatus, Retained, RunningHaproxy};
use crate::store::StoreRevision;

/// Unix seconds.
const NOW: i64 = 1_790_000_000;

const STORE: &str = "\
http-services/blog/domain blog.test
http-services/blog/upstreams/a 10.0.0.5:80
http-services/blog/upstreams/b {\"address\":\"10.0.0.6:80\",\"state\":\"drain\"}
http-services/colors/active blue
http-services/colors/domain colors.test
http-services/colors/upstreams/a {\"address\":\"10.0.0.7:80\",\"color\":\"blue\"}
http-services/colors/upstreams/b {\"address\":\"10.0.0.8:80\",\"color\":\"green\",\"state\":\"down\"}
http-services/empty/domain empty.test
http-services/lost/upstreams/a 10.0.0.9:80
http-services/paused/domain paused.test
http-services/paused/overrides/a {\"state\":\"maint\"}
http-services/paused/upstreams/a 10.0.0.10:80
http-services/shop/balance by mood
http-services/shop/domain shop.test
http-services/shop/upstreams/a 10.0.0.1:80
http-services/shop/upstreams/b 10.0.0.2:80
http-services/shop/upstreams/c 10.0.0.3:80
http-services/shop/upstreams/d {\"address\":\"10.0.0.4:80\",\"state\":\"down\"}
tcp-services/db/ports 3306
tcp-services/db/upstreams/a 10.0.0.11:3306
";

fn report() -> Status {
    let settled = settle(&topology(STORE), &Default::default(), &Default::default());
    let position = StoreRevision { cluster: 7, raft_term: 2, revision: 20 };
    let reconcile = ReconcileStatus {
        quarantined: settled.quarantined_keys().into(),
        desired: settled.into(),
        applied: Some(position),
        ..ReconcileStatus::default()
    };
    let running = RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: None };
    Status {
        seen: position,
        running: Some(running),
        reconcile: Arc::new(reconcile),
        has_reconciled: true,
        ..Status::default()
    }
}

fn row(proxy: &str, name: &str, status: &str) -> Stat {
    let check = status.starts_with("DOWN").then(|| "L4CON".to_owned());
    let (proxy, name, status) = (proxy.into(), name.into(), status.into());
    Stat { proxy, name, status, check, weight: 100, active: 1, ..Stat::default() }
}

fn counted() -> Counted {
    Ok(vec![
        row("http-blog", "a", "UP"),
        row("http-blog", "b", "DRAIN"),
        row("http-colors", "a", "UP"),
        row("http-colors", "b", "DRAIN"),
        row("http-paused", "a", "MAINT"),
        row("http-shop", "a", "UP"),
        row("http-shop", "b", "DOWN"),
        row("http-shop", "c", "DOWN"),
        row("http-shop", "d", "MAINT"),
        Stat { kind: RowKind::Backend, ..row("http-shop", "BACKEND", "UP") },
        row("tcp-db", "a", "DOWN"),
    ])
}

fn table(status: &Status, counted: &Counted) -> String {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
    let line = |it: balancer_api::Problem| {
        let command = it.command.as_deref().unwrap_or("-");
        format!("{} [{}] {}: {} ({command})\n", it.harm, it.service.unwrap_or_default(), it.what, it.reason)
    };
    show_problems(status, counted, now).problems.into_iter().map(line).collect()
}

#[test]
fn services_are_in_the_order_of_harm_and_a_standby_is_no_problem() {
    expect![[r#"
        outage [http-empty] http-empty has no upstream: no upstream has a record (discoverctl explain empty)
        outage [http-paused] http-paused: its only upstream gets no requests: an override says maint: discoverctl ready paused/a takes it back (discoverctl explain paused)
        outage [tcp-db] tcp-db: its only upstream gets no requests: HAProxy's check fails: L4CON, for 0 s (discoverctl explain db/a)
        degraded [http-lost] no request leads to http-lost: the service has no domain: discoverctl set lost domain VALUE (discoverctl explain lost)
        degraded [http-shop] http-shop: 1 of 4 upstreams fail: its announcer says down (discoverctl explain shop/d)
        degraded [http-shop] http-shop: 2 of 4 upstreams fail: HAProxy's check fails: L4CON, for 0 s (discoverctl explain shop/b)
        risk [http-shop] 1 key of http-shop is not followed: http-services/shop/balance: `by mood`: expected roundrobin, leastconn, random, source or uri; no good value yet (discoverctl lint)
    "#]].assert_eq(&table(&report(), &counted()));
}

#[test]
fn the_balancer_comes_before_its_services() {
    let mut status = report();
    let reconcile = Arc::make_mut(&mut status.reconcile);
    reconcile.pending = ["http-shop", "tcp-db"].into_iter().filter_map(crate::desired::names::parse_section).collect();
    reconcile.operator_files = OperatorFilesStatus {
        refused: Some(Rejection::Haproxy("mine.cfg:3: bnid".into())),
        remarks: vec!["mine.cfg:9: there is no service shop".into()],
        ..OperatorFilesStatus::default()
    };
    status.store_error = Some("refused".into());
    status.limits = Some(Limits { connections: 20, first_connections: 500, ..Limits::default() });
    status.old = Arc::new(OldProcesses { list: Vec::new(), silent: 1 });
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs() - 60);
    status.cutoffs = Cutoffs { processes: 2, connections: 40, last: Some(last) };
    expect![[r#"
        outage [http-empty] http-empty has no upstream: no upstream has a record (discoverctl explain empty)
        blocked [] HAProxy doesn't run what the store asks for: out of sync: HAProxy refuses the operator's own files, mend them first: mine.cfg:3: bnid (-)
        blocked [] the store is away, and HAProxy keeps what it has: refused (etcdctl endpoint health --cluster)
        blocked [] 2 services wait for a restart of HAProxy: http-shop, tcp-db: confgen restarts HAProxy once --restart-interval allows it (supervisorctl restart haproxy)
        degraded [] HAProxy's maxconn was changed over the Runtime API: HAProxy's maxconn is 20, and 500 by its files: it was changed over the Runtime API; `set maxconn global 500` undoes that (set maxconn global 500)
        risk [http-shop] 1 key of http-shop is not followed: http-services/shop/balance: `by mood`: expected roundrobin, leastconn, random, source or uri; no good value yet (discoverctl lint)
        risk [] a remark on the operator's files: mine.cfg:9: there is no service shop (-)
        risk [] 1 HAProxy process or master does not answer: a drain waits for those that may be old HAProxy processes (ps -C haproxy -o pid,etime,args)
        risk [] handover has ended 2 old HAProxy processes early, with 40 connections: there were too many or they had too much memory, the last at 2026-09-21T14:12:20.000Z (-)
    "#]].assert_eq(&table(&status, &Err("it is silent".into())));
    status.running = None;
    expect!["outage [] HAProxy doesn't answer: it is gone (supervisorctl status haproxy)"]
        .assert_eq(table(&status, &Err("it is gone".into())).lines().next().unwrap_or_default());
}

#[test]
fn certificates_and_keys_need_attention_before_requests_fail() {
    let mut status = report();
    let make = |name: &str, end: i64| {
        let mut it = make_certificate(name, &format!("/state/{name}.pem"));
        (it.not_before, it.not_after) = (Some(1_700_000_000), Some(end));
        Certificate { file: format!("/certs/{name}.pem").into(), ..it }
    };
    let files = vec![make("shop.test", NOW - 5), make("blog.test", NOW + 3 * DAY), make("empty.test", NOW + 90 * DAY)];
    let choice = Choice::choose(&files, NOW);
    let rejected = [("/certs/b.pem".into(), "no key".into())].into();
    let reconcile = Arc::make_mut(&mut status.reconcile);
    reconcile.certificates = Arc::new(Certificates { files, choice, rejected, ..Certificates::default() });
    reconcile.refused_error_pages = 2;
    let db = crate::desired::names::parse_section("tcp-db").unwrap();
    for (id, by) in [("a", Retainer::Reset), ("b", Retainer::Guard)] {
        reconcile.retained.insert((db.clone(), id.parse().unwrap()), Retained { by, since: None });
    }
    let found = table(&status, &counted());
    let about: Vec<&str> = found.lines().filter(|line| line.contains(" [] ")).collect();
    expect![[r#"
        outage [] the certificate of shop.test has expired: /certs/shop.test.pem (-)
        risk [] the certificate of blog.test expires in 3 days: /certs/blog.test.pem (-)
        risk [] the certificate file /certs/b.pem is refused: no key (-)
        risk [] 2 error pages are refused: the log names each with its reason (journalctl -u confgen -n 50)
        risk [] 1 upstream is served without a key: tcp-db/b: they disappeared together while their checks pass; the command drops them, if that is meant (discoverctl accept-store)
        risk [] 1 upstream is served without a key: tcp-db/a: the store was reset and lacks their keys; the command drops them, if that is meant (discoverctl accept-store)"#]].assert_eq(&about.join("\n"));
}

#[test]
fn a_thousand_services_that_wait_for_a_restart_are_two_entries() {
    let store: String = (0..1_000)
        .map(|n| format!("http-services/s{n:03}/domain s{n:03}.test\nhttp-services/s{n:03}/upstreams/a 10.0.0.1:80\n"))
        .collect();
    let settled = settle(&topology(&store), &Default::default(), &Default::default());
    let mut status = report();
    let reconcile = Arc::make_mut(&mut status.reconcile);
    reconcile.pending =
        (0..1_000).filter_map(|n| crate::desired::names::parse_section(&format!("http-s{n:03}"))).collect();
    reconcile.unrouted = reconcile.pending.clone();
    (reconcile.desired, reconcile.quarantined) = (settled.into(), Arc::default());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
    let found = show_problems(&status, &Ok(Vec::new()), now).problems;
    let lines: Vec<String> = found
        .iter()
        .map(|it| {
            let cause = it.cause.as_ref().map(Cause::name);
            let (one, all) = (it.service.as_deref(), it.services.len());
            format!("{} {} {cause:?} {} of {one:?} and {all}: {}: {}", it.harm, it.kind, it.count, it.what, it.reason)
        })
        .collect();
    expect![[r#"
        outage no_requests Some("pending") 1000 of None and 1000: 1000 services have no upstream that gets requests: http-s000, http-s001, http-s002, http-s003, 996 more: a change of its service waits for HAProxy's restart
        blocked restart_due None 1000 of None and 1000: 1000 services wait for a restart of HAProxy: http-s000, http-s001, http-s002, http-s003, 996 more: 1000 of them get no request before it; confgen restarts HAProxy once --restart-interval allows it"#]].assert_eq(&lines.join("\n"));
}
