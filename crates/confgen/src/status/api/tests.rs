use std::sync::Arc;

use discovery::balancer_api::{ServiceInFull, Upstream};
use expect_test::expect;
use haproxy::runtime::{Count, RowKind, Stat};
use haproxy::version::Version;

use super::*;
use crate::desired::tests::{settle, topology};
use crate::local_files::certificate::Certificate;
use crate::local_files::certificate::tests::certificate as make_certificate;
use crate::local_files::certificates::{Certificates, Choice};
use crate::status::problems::show_problems;
use crate::status::{ActionKind, ReconcileStatus, Retained, Retainer, RunningHaproxy};
use crate::store::StoreRevision;

/// Unix seconds.
const NOW: i64 = 1_790_000_000;

const STORE: &str = "\
http-services/shop/domain shop.test
http-services/shop/active blue=90 green=10
http-services/shop/preview 10.0.0.0/8
http-services/shop/upstreams/a {\"address\":\"10.0.0.1:80\",\"color\":\"blue\"}
http-services/shop/upstreams/b {\"address\":\"10.0.0.2:80\",\"color\":\"green\"}
http-services/shop/upstreams/c {\"address\":\"10.0.0.3:80\",\"color\":\"red\",\"state\":\"drain\"}
http-services/shop/upstreams/d 10.0.0.4:80
http-services/shop/overrides/b {\"state\":\"maint\",\"weight\":7}
http-services/shop/upstreams/bad not an address
http-services/gated/tls maybe
http-services/gated/upstreams/a 10.0.0.9:80
tcp-services/db/ports 3306
tcp-services/db/upstreams/a 10.0.0.5:3306
tcp-services/db/upstreams/spare {\"address\":\"10.0.0.6:3306\",\"backup\":true}
";

fn report() -> Status {
    let settled = settle(&topology(STORE), &Default::default(), &Default::default());
    let position = StoreRevision { cluster: 14_841_639_068_965_178_418, raft_term: 2, revision: 20 };
    let mut own = make_certificate("shop.test", "/state/a.pem");
    (own.not_before, own.not_after, own.fingerprint) = (Some(1_700_000_000), Some(1_800_000_000), "AB12".into());
    let mut old = Certificate { file: "/certs/old.pem".into(), not_after: Some(1_750_000_000), ..own.clone() };
    old.fingerprint = "CD34".into();
    let files = vec![own, old];
    let choice = Choice::choose(&files, NOW);
    let refused = [("/certs/b.pem".into(), "no key".into())].into();
    let standing = ReconcileStatus {
        certificates: Arc::new(Certificates { files, choice, rejected: refused, ..Certificates::default() }),
        quarantined: settled.quarantined_keys().into(),
        desired: settled.into(),
        applied: Some(position),
        operator_files: OperatorFilesStatus {
            remarks: vec!["mine.cfg:3: there is no service shop".into()],
            ..OperatorFilesStatus::default()
        },
        published: 19,
        ..ReconcileStatus::default()
    };
    let running =
        RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: Some("0123456789abcdef".into()) };
    let identity =
        Identity { node: "lb1".into(), prefix: "/haproxy-discover".into(), instance: "0123456789abcdef".into() };
    Status {
        seen: position,
        running: Some(running),
        reconcile: Arc::new(standing),
        identity: identity.into(),
        has_reconciled: true,
        ..Status::default()
    }
}

fn row(proxy: &str, name: &str, status: &str) -> Stat {
    Stat {
        proxy: proxy.into(),
        name: name.into(),
        status: status.into(),
        weight: 100,
        active: 1,
        sessions: Count { now: 3, most: 7, total: 120 },
        ..Stat::default()
    }
}

fn backend(proxy: &str) -> Stat {
    Stat { kind: RowKind::Backend, ..row(proxy, "BACKEND", "UP") }
}

fn counted() -> Counted {
    let spare = Stat { active: 0, backup: 1, ..row("tcp-db", "spare", "UP") };
    let down = Stat { check: Some("L4CON".into()), ..row("http-shop", "b", "DOWN") };
    Ok(vec![
        row("http-shop", "a", "UP"),
        down,
        row("http-shop", "c", "MAINT"),
        backend("http-shop"),
        row("tcp-db", "a", "no check"),
        spare,
        backend("tcp-db"),
    ])
}

fn db() -> ServiceId {
    ServiceId { kind: discovery::Kind::Tcp, name: "db".parse().unwrap() }
}

/// One line for each upstream: its name, its line in haproxy.cfg, the reasons for its state, and the verdict.
fn table(report: &Status, counted: &Counted) -> String {
    let line = |it: &Upstream| {
        let balanced = it.not_balanced.clone().unwrap_or_else(|| format!("{:?}", it.balanced));
        let line = it.line.as_deref().unwrap_or("-");
        format!("{}/{} {line} [{}] {balanced}\n", it.service, it.id, it.why.join("; "))
    };
    show_upstreams(report, counted, None).upstreams.iter().map(line).collect()
}

#[test]
fn each_upstream_is_explained() {
    expect![[r#"
        http-gated/a - [] the service has no domain: discoverctl set gated domain VALUE
        http-shop/a server a 10.0.0.1:80 weight 256 [color blue is active: blue=90 green=10] Some(true)
        http-shop/b server b 10.0.0.2:80 weight 7 disabled [an override says maint; an override says weight 7; color green is active: blue=90 green=10] an override says maint: discoverctl ready shop/b takes it back
        http-shop/bad - [] http-services/shop/upstreams/bad is not followed: `not an address`: an upstream is an IP address and a port: 172.17.8.101:8000, [fd00::1]:8000; no good value yet
        http-shop/c server c 10.0.0.3:80 disabled [its announcer says drain; color red is not active: blue=90 green=10] its announcer says drain
        http-shop/d server d 10.0.0.4:80 weight 0 [it has no color, and active is blue=90 green=10] it has no color, and active is blue=90 green=10
        tcp-db/a server a 10.0.0.5:3306 [] Some(true)
        tcp-db/spare server spare 10.0.0.6:3306 backup [] a backup, and others are up
    "#]]
    .assert_eq(&table(&report(), &counted()));
    let mut held = report();
    let retained = Retained { by: Retainer::Reset, since: Some(SystemTime::UNIX_EPOCH) };
    Arc::make_mut(&mut held.reconcile).retained.insert((db(), "a".parse().unwrap()), retained);
    let held = show_upstreams(&held, &counted(), Some("tcp-db")).upstreams.remove(0);
    assert_eq!((held.held, held.held_by.as_deref()), (true, Some("reset")));
    assert_eq!(held.held_since.as_deref(), Some("1970-01-01T00:00:00.000Z"));
    assert!(held.why[0].starts_with("the store was reset and lacks its key, since 1970"), "{:?}", held.why);
    let silent = show_upstreams(&report(), &Err("gone".into()), Some("http-shop"));
    assert_eq!((silent.upstreams.len(), silent.haproxy_error.as_deref()), (5, Some("gone")));
    assert!(silent.upstreams.iter().all(|it| it.balanced.is_none() && it.haproxy.is_none()));
}

#[test]
fn a_service_is_shown_with_what_is_refused_of_it() {
    let shop = find_service(&report(), &counted(), "http-shop").unwrap();
    assert_eq!((shop.service.upstreams.total, shop.service.upstreams.balanced), (5, 1));
    assert_eq!(shop.quarantine.keys().collect::<Vec<_>>(), ["http-services/shop/upstreams/bad"]);
    assert_eq!(shop.service.settings.get("active").map(String::as_str), Some("blue=90 green=10"));
    assert!(find_service(&report(), &counted(), "shop").is_none());
    let all = show_services(&report(), &counted()).services;
    assert_eq!(all.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["http-gated", "http-shop", "tcp-db"]);
}

#[test]
fn a_cluster_is_named_only_by_a_confgen_that_knows_what_it_serves() {
    let of = |change: fn(&mut Status)| {
        let mut report = report();
        change(&mut report);
        show_identity(&report).cluster
    };
    assert_eq!(of(|_| {}).as_deref(), Some("14841639068965178418"));
    assert_eq!(of(|report| report.has_reconciled = false), None, "no round is over");
    assert_eq!(of(|report| report.seen = StoreRevision::default()), None, "the store is not listed");
}

/// The names that others read: a change here is a change of the contract (docs/api.md).
#[test]
fn names_stay() {
    let mut report = report();
    report.record_action(HistoryEntry {
        began_at: SystemTime::UNIX_EPOCH,
        took: Duration::from_millis(20),
        kind: ActionKind::Restart,
        reason: "http-shop is new".into(),
        revision: 20,
        outcome: Err("no".into()),
        difference: None,
    });
    let one = find_service(&report, &counted(), "tcp-db").unwrap();
    let read: ServiceInFull = serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap();
    assert_eq!(read, one, "discoverctl reads all of it");
    let process = masters::OldProcess { pid: 42, uptime: Duration::from_secs(90), connections: 3, memory: Some(4_096) };
    report.old = Arc::new(masters::OldProcesses { list: vec![process], silent: 1 });
    report.cutoffs = Cutoffs { processes: 2, connections: 40, last: Some(SystemTime::UNIX_EPOCH) };
    let text = |value: serde_json::Value| serde_json::to_string_pretty(&value).unwrap();
    let all = serde_json::json!({
        "identity": show_identity(&report),
        "status": show_status(&report),
        "service": one,
        "history": show_history(&report),
        "quarantine": show_quarantine(&report),
        "certificates": show_certificates(&report, NOW),
        "problems": show_problems(&report, &counted(), SystemTime::UNIX_EPOCH),
    });
    expect_test::expect_file!["golden.json"].assert_eq(&(text(all) + "\n"));
}
