use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::Upstream;
use haproxy::runtime::RowKind;
use haproxy::version::Version;
use prometheus_client::registry::Registry;

use super::*;
use crate::desired::domain_allowlist::DomainAllowlist;
use crate::desired::tests::topology;
use crate::desired::{DesiredState, Policy};
use crate::operator_files::parse::{OperatorConfig, ReferencedSection};
use crate::status::figures::Counted;
use crate::status::{ReconcileStatus, RunningHaproxy};
use crate::status::{api, console, metrics};
use crate::store::Changed;
use crate::store::StoreRevision;

const DOMAIN: &str = "http-services/shop/domain shop.test\n";
const A: &str = "http-services/shop/upstreams/a 10.0.0.1:80\n";

/// A balancer that runs the store, with HAProxy's figures.
struct Scene {
    desired: DesiredState,
    rows: Vec<Stat>,
    error: Option<&'static str>,
    tweak: fn(&mut Status),
    service: &'static str,
}

fn row(kind: RowKind, proxy: &str, name: &str, status: &str) -> Stat {
    let (proxy, name, status) = (proxy.into(), name.into(), status.into());
    Stat { kind, proxy, name, status, weight: 100, active: 1, ..Stat::default() }
}

fn server(name: &str, status: &str) -> Stat {
    row(RowKind::Server, "http-shop", name, status)
}

fn backend(active: u64) -> Stat {
    Stat { active, ..row(RowKind::Backend, "http-shop", "BACKEND", "UP") }
}

fn web(status: &str) -> Stat {
    row(RowKind::Frontend, "discover-web", "FRONTEND", status)
}

fn desired(store: &str, limits: Policy) -> DesiredState {
    let mut desired = DesiredState::default();
    desired.set_policy(limits);
    desired.update_services(&topology(store), &Changed::All);
    desired
}

/// A store, and one server that is up.
fn scene(store: &str) -> Scene {
    let rows = vec![web("OPEN"), server("a", "UP"), backend(1)];
    let desired = desired(store, Policy::default());
    Scene { desired, rows, error: None, tweak: |_| {}, service: "http-shop" }
}

impl Scene {
    fn rows(self, rows: Vec<Stat>) -> Self {
        Self { rows, ..self }
    }

    fn desired(self, desired: DesiredState) -> Self {
        Self { desired, ..self }
    }

    fn tweak(self, tweak: fn(&mut Status)) -> Self {
        Self { tweak, ..self }
    }

    fn status(&self) -> Status {
        let position = StoreRevision { cluster: 7, raft_term: 2, revision: 20 };
        let running = RunningHaproxy { pid: 7, version: Version::new(2, 6, 12), generation: None };
        let reconcile = ReconcileStatus {
            quarantined: self.desired.quarantined_keys().into(),
            desired: Arc::new(self.desired.clone()),
            applied: Some(position),
            ..ReconcileStatus::default()
        };
        let mut status =
            Status { seen: position, running: Some(running), reconcile: Arc::new(reconcile), ..Status::default() };
        (self.tweak)(&mut status);
        status
    }

    fn counted(&self) -> Counted {
        self.error.map_or_else(|| Ok(self.rows.clone()), |error| Err(error.into()))
    }

    /// The verdict on an upstream, once everything that shows it has been found to say the same.
    #[track_caller]
    fn verdict(&self, id: &str) -> Verdict {
        let (status, counted) = (self.status(), self.counted());
        let upstreams = api::show_upstreams(&status, &counted, None).upstreams;
        let shown = upstreams.iter().find(|it| it.service == self.service && it.id == id).expect("it is listed");
        let verdict = shown.verdict.clone().expect("confgen judges every upstream");
        assert_eq!(shown.balanced, verdict.gets_requests);
        let words = verdict.words().filter(|_| verdict.gets_requests == Some(false));
        assert_eq!(shown.not_balanced.as_deref(), words);

        let balanced = upstreams.iter().filter(|it| it.balanced == Some(true)).count();
        let services = api::show_services(&status, &counted).services;
        assert_eq!(services.iter().map(|it| it.upstreams.balanced).sum::<usize>(), balanced);
        let service = api::find_service(&status, &counted, self.service).expect("it is known");
        assert!(service.upstreams.iter().any(|it| it.id == id && it.verdict.as_ref() == Some(&verdict)));

        let fetched = console::service::Fetched::default();
        let clock = console::services::Clock { now: std::time::SystemTime::now(), instant: std::time::Instant::now() };
        let page = console::service::render_page(&status, &counted, self.service, 1, &fetched, clock);
        let page = page.expect("the service has a page").unwrap();
        let (_, row) = page.split_once(&format!("<tr data-upstream=\"{id}\"")).expect("it is on the page");
        let (row, _) = row.split_once("</tr>").unwrap();
        let requests = verdict.cause().map_or("yes", Cause::name);
        assert!(row.contains(&format!(" data-verdict=\"{requests}\"")), "{requests}: {row}");

        let mut registry = Registry::default();
        metrics::register_all(&status, &counted, &mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
        for cause in upstreams.iter().filter_map(|it| it.verdict.as_ref()?.cause()) {
            *causes.entry(cause.name()).or_default() += 1;
        }
        assert!(text.contains(&format!("\nconfgen_balanced_upstreams {balanced}\n")), "{text}");
        for (cause, count) in causes {
            let line = format!("\nconfgen_unbalanced_upstreams{{cause=\"{cause}\"}} {count}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
        verdict
    }

    /// The names of the causes, the verdict's own first; the first is `ok` where requests come.
    #[track_caller]
    fn assert(&self, id: &str, gets_requests: Option<bool>, wanted: &str) -> Verdict {
        let verdict = self.verdict(id);
        let ok = (verdict.gets_requests == Some(true)).then_some("ok");
        let causes: Vec<&str> = ok.into_iter().chain(verdict.reasons().map(|it| it.cause.name())).collect();
        assert_eq!((verdict.gets_requests, causes.join(" ").as_str()), (gets_requests, wanted), "{verdict:?}");
        verdict
    }
}

fn reconcile(status: &mut Status) -> &mut ReconcileStatus {
    Arc::make_mut(&mut status.reconcile)
}

fn shop() -> ServiceId {
    "http-services/shop/domain".parse::<Key>().unwrap().service_id().cloned().unwrap()
}

#[test]
fn an_upstream_that_works_has_no_cause() {
    scene(&format!("{DOMAIN}{A}")).assert("a", Some(true), "ok");
    scene(&format!("http-services/shop/url_reg ^/x\n{A}")).assert("a", Some(true), "ok");
    let full = vec![web("FULL"), server("a", "no check"), backend(1)];
    scene(&format!("{DOMAIN}{A}")).rows(full).assert("a", Some(true), "ok");
    let tcp = vec![
        row(RowKind::Frontend, "tcp-db", "FRONTEND", "OPEN"),
        row(RowKind::Server, "tcp-db", "a", "UP"),
        row(RowKind::Backend, "tcp-db", "BACKEND", "UP"),
    ];
    let db = scene("tcp-services/db/ports 3306\ntcp-services/db/upstreams/a 10.0.0.1:80").rows(tcp);
    Scene { service: "tcp-db", ..db }.assert("a", Some(true), "ok");
    let default = vec![row(RowKind::Server, "http-default", "a", "UP")];
    let default = scene("http-services/default/upstreams/a 10.0.0.1:80").rows(default);
    Scene { service: "http-default", ..default }.assert("a", Some(true), "ok");
}

#[test]
fn a_server_that_bears_the_name_of_an_aggregate_row_is_judged_by_its_own_row() {
    let store = format!(
        "{DOMAIN}http-services/shop/upstreams/BACKEND 10.0.0.1:80\nhttp-services/shop/upstreams/FRONTEND 10.0.0.2:80"
    );
    let rows = vec![web("OPEN"), server("BACKEND", "DOWN"), server("FRONTEND", "UP"), backend(1)];
    let scene = scene(&store).rows(rows);
    scene.assert("BACKEND", Some(false), "check");
    scene.assert("FRONTEND", Some(true), "ok");
}

#[test]
fn a_closed_frontend_lets_nothing_in() {
    let paused = vec![web("PAUSED"), server("a", "UP"), backend(1)];
    let verdict = scene(&format!("{DOMAIN}{A}")).rows(paused).assert("a", Some(false), "frontend_closed");
    assert_eq!(
        verdict.words().unwrap(),
        "HAProxy has the frontend discover-web PAUSED: it was closed over the Runtime API"
    );
    let through = format!("http-services/shop/tls passthrough\n{DOMAIN}{A}");
    let tls = row(RowKind::Frontend, "discover-tls", "FRONTEND", "STOP");
    scene(&through).rows(vec![web("OPEN"), tls, server("a", "UP"), backend(1)]).assert(
        "a",
        Some(false),
        "frontend_closed",
    );
}

#[test]
fn a_service_that_no_request_finds_gets_none() {
    let nameless = scene(A).assert("a", Some(false), "no_domain");
    assert_eq!(nameless.words().unwrap(), "the service has no domain: discoverctl set shop domain VALUE");
    let path = scene(&format!("http-services/shop/path /x\n{A}"));
    path.assert("a", Some(false), "no_domain");
    // ACME's challenges reach it all the same.
    scene(A).tweak(|status| reconcile(status).acme = Some(shop())).assert("a", Some(true), "ok");
    // So do those of an operator's own frontend.
    let led: fn(&mut Status) = |status| {
        let named = ReferencedSection { gets_requests: true, ..ReferencedSection::default() };
        reconcile(status).operator_files.named_sections.insert("http-shop".to_owned(), named);
    };
    scene(A).tweak(led).assert("a", Some(true), "ok");
    let asked: fn(&mut Status) = |status| {
        _ = reconcile(status)
            .operator_files
            .named_sections
            .insert("http-shop".to_owned(), ReferencedSection::default());
    };
    scene(A).tweak(asked).assert("a", Some(false), "no_domain");
    scene(&format!("http-services/api/domain shop.test\n{DOMAIN}{A}")).tweak(led).assert(
        "a",
        Some(true),
        "ok claim_held",
    );
    let paused = || vec![web("PAUSED"), server("a", "UP"), backend(1)];
    scene(A).rows(paused()).tweak(led).assert("a", Some(true), "ok");
    scene(&format!("{DOMAIN}{A}")).rows(paused()).tweak(led).assert("a", Some(true), "ok frontend_closed");
    let rival = scene(&format!("http-services/api/domain shop.test\n{DOMAIN}{A}"));
    let verdict = rival.assert("a", Some(false), "claim_held");
    assert!(
        verdict.words().unwrap().starts_with("http-api has the claim: shop.test/ belongs to http-api"),
        "{verdict:?}"
    );
    // The one that has the claim by now waits for a restart.
    let meanwhile: fn(&mut Status) = |status| _ = reconcile(status).reached_until_restart.insert(shop());
    rival.tweak(meanwhile).assert("a", Some(true), "ok claim_held");
    let whole = "http-services/api/tls passthrough\nhttp-services/api/domain shop.test\n";
    scene(&format!("{whole}{DOMAIN}{A}")).assert("a", Some(false), "claim_held");
    let part = "http-services/api/domain shop.test\nhttp-services/api/path /x\nhttp-services/shop/tls passthrough\n";
    let verdict = scene(&format!("{part}{DOMAIN}{A}")).assert("a", Some(false), "claim_held");
    assert!(verdict.words().unwrap().starts_with("http-api has the claim"), "{verdict:?}");
    // One of two hosts is lost, the other leads there.
    let partly = format!("http-services/api/domain x.test\nhttp-services/shop/domain shop.test x.test\n{A}");
    scene(&partly).assert("a", Some(true), "ok quarantined");
    for key in ["domain b\"c", "url_reg [", "domain shop.test\nhttp-services/shop/path x"] {
        scene(&format!("http-services/shop/{key}\n{A}")).assert("a", Some(false), "domain_quarantined");
    }
    let limits =
        || Policy { domain_allowlist: Some(DomainAllowlist::parse("other other.test").unwrap()), ..Policy::default() };
    let domains = Scene { desired: desired(&format!("{DOMAIN}{A}"), limits()), ..scene("") };
    domains.assert("a", Some(false), "domain_quarantined");
    let store = "http-services/default/upstreams/a 10.0.0.1:80";
    let forbidden = Scene { desired: desired(store, limits()), service: "http-default", ..scene("") };
    forbidden.assert("a", Some(false), "service_quarantined");
    let stats = Policy {
        reserved_hosts: [("shop.test".parse().unwrap(), "--stats-domain".to_owned())].into(),
        ..Policy::default()
    };
    Scene { desired: desired(&format!("{DOMAIN}{A}"), stats), ..scene("") }.assert(
        "a",
        Some(false),
        "domain_quarantined",
    );
}

#[test]
fn a_tcp_service_is_found_by_its_ports() {
    let rows = || vec![row(RowKind::Server, "tcp-db", "a", "UP"), row(RowKind::Backend, "tcp-db", "BACKEND", "UP")];
    let store = "tcp-services/db/upstreams/a 10.0.0.1:80\n";
    let of = |store: &str, limits: Policy| Scene {
        desired: desired(store, limits),
        service: "tcp-db",
        ..scene("").rows(rows())
    };
    let verdict = of(store, Policy::default()).assert("a", Some(false), "no_domain");
    assert!(verdict.words().unwrap().contains("no ports"), "{verdict:?}");
    let taken = format!("tcp-services/sql/ports 3306\ntcp-services/db/ports 3306\n{store}");
    of(&taken, Policy::default()).assert("a", Some(false), "claim_held");
    let reserved = Policy { tcp_ports: Some(4000..=5000), ..Policy::default() };
    of(&format!("tcp-services/db/ports 3306\n{store}"), reserved).assert("a", Some(false), "domain_quarantined");
}

#[test]
fn a_service_that_is_not_taken_gets_none() {
    let gated = scene(&format!("{DOMAIN}http-services/shop/tls maybe\n{A}")).rows(vec![web("OPEN"), backend(0)]);
    let verdict = gated.assert("a", Some(false), "service_quarantined");
    assert!(verdict.words().unwrap().contains("http-services/shop/tls can't be read: `maybe`"), "{verdict:?}");
    // A bad value of another key, such as `balance`, doesn't take the upstreams away.
    scene(&format!("{DOMAIN}http-services/shop/balance mood\n{A}")).assert("a", Some(true), "ok quarantined");
    let mut refused = scene(&format!("{DOMAIN}{A}"));
    let then = refused.desired.clone();
    refused.desired.reject_services(&[(shop(), "unknown keyword".to_owned())].into(), &then);
    refused.rows.clear();
    let verdict = refused.assert("a", Some(false), "service_refused");
    assert_eq!(verdict.words().unwrap(), "HAProxy refuses the service: unknown keyword");
    // Its last accepted form serves.
    let mut serves = scene(&format!("{DOMAIN}{A}"));
    serves.desired.mark_accepted(&serves.desired.clone());
    serves.desired.update_services(&topology(&format!("{DOMAIN}http-services/shop/url_reg ^/x\n{A}")), &Changed::All);
    let then = serves.desired.clone();
    serves.desired.reject_services(&[(shop(), "unknown keyword".to_owned())].into(), &then);
    serves.assert("a", Some(true), "ok service_refused");
    serves.rows(vec![web("OPEN"), server("a", "DOWN"), backend(0)]).assert("a", Some(false), "check service_refused");
}

#[test]
fn a_record_that_is_gone_or_does_not_count() {
    let bad = scene(&format!("{DOMAIN}http-services/shop/upstreams/a ?"));
    bad.rows(vec![web("OPEN"), backend(0)]).assert("a", Some(false), "record_quarantined");
    let loopback = scene(&format!("{DOMAIN}http-services/shop/upstreams/a 127.0.0.1:80"));
    let verdict = loopback.rows(vec![web("OPEN"), backend(0)]).assert("a", Some(false), "record_quarantined");
    assert!(verdict.words().unwrap().contains("--upstream-networks"), "{verdict:?}");
    let mut last_good = scene(&format!("{DOMAIN}{A}"));
    last_good.desired.update_services(&topology(&format!("{DOMAIN}http-services/shop/upstreams/a ?")), &Changed::All);
    last_good.assert("a", Some(true), "ok record_quarantined");
    let override_ = scene(&format!("{DOMAIN}{A}http-services/shop/overrides/a ?"));
    override_.assert("a", Some(true), "ok quarantined");
    // One that is retained.
    let mut kept = scene(DOMAIN);
    let record = Upstream::parse(b"10.0.0.1:80").unwrap();
    kept.desired.set_retained(
        &shop(),
        [("a".parse().unwrap(), crate::store::removal_guard::RetainedUpstream { record, is_unproven: false })].into(),
    );
    let kept = kept.tweak(|status| {
        let retained = Retained { by: Retainer::Guard, since: Some(std::time::SystemTime::UNIX_EPOCH) };
        reconcile(status).retained.insert((shop(), "a".parse().unwrap()), retained);
    });
    let verdict = kept.assert("a", Some(true), "ok held");
    assert!(verdict.also[0].words.contains("since 1970-01-01T00:00:00Z; it is retained"), "{verdict:?}");
    kept.rows(vec![web("OPEN"), server("a", "DOWN"), backend(0)]).assert("a", Some(false), "check held");
}

#[test]
fn a_deleted_service_with_retained_upstreams_says_so() {
    let deleted = scene(A).tweak(|status| {
        let retained = Retained { by: Retainer::Guard, since: None };
        reconcile(status).retained.insert((shop(), "a".parse().unwrap()), retained);
    });
    let verdict = deleted.assert("a", Some(false), "no_domain held");
    let words = "the service was deleted, and its retained upstreams serve no host or port; the service has no domain: discoverctl set \
                 shop domain VALUE";
    assert_eq!(verdict.words().unwrap(), words);
}

#[test]
fn an_upstream_that_is_not_wanted_names_everybody_who_does_not_want_it() {
    let drained = || vec![web("OPEN"), Stat { weight: 0, ..server("a", "MAINT") }, backend(0)];
    let all = format!(
        "{DOMAIN}http-services/shop/active green\nhttp-services/shop/overrides/a {{\"state\":\"maint\"}}\n\
         http-services/shop/upstreams/a {{\"address\":\"10.0.0.1:80\",\"color\":\"blue\",\"state\":\"down\",\"weight\":0}}"
    );
    scene(&all).rows(drained()).assert("a", Some(false), "announcer override inactive_color weight");
    // The store asks HAProxy to stop sending requests, and HAProxy still sends some.
    let still = scene(&format!("{DOMAIN}{A}http-services/shop/overrides/a {{\"state\":\"drain\"}}"));
    still.assert("a", Some(true), "ok override");
}

#[test]
fn an_upstream_that_does_not_work_there() {
    let store = format!("{DOMAIN}{A}http-services/shop/upstreams/b {{\"address\":\"10.0.0.2:80\",\"backup\":true}}");
    let down = Stat {
        check: Some("L4CON".into()),
        check_words: Some("Connection refused".into()),
        last_change: 7,
        ..server("a", "DOWN")
    };
    let spare = || Stat { active: 0, backup: 1, ..server("b", "UP") };
    let dead = scene(&store).rows(vec![web("OPEN"), down.clone(), spare(), backend(0)]);
    let verdict = dead.assert("a", Some(false), "check");
    assert_eq!(verdict.words().unwrap(), "HAProxy's check fails: L4CON, Connection refused, for 7 s");
    dead.assert("b", Some(true), "ok");
    scene(&store).rows(vec![web("OPEN"), server("a", "UP"), spare(), backend(1)]).assert("b", Some(false), "backup");
    // Of two backups HAProxy uses the first one that is up.
    let two = format!("{store}\nhttp-services/shop/upstreams/c {{\"address\":\"10.0.0.3:80\",\"backup\":true}}");
    let second = Stat { name: "c".into(), ..spare() };
    let two = scene(&two).rows(vec![web("OPEN"), down.clone(), spare(), second, backend(0)]);
    two.assert("b", Some(true), "ok");
    let verdict = two.assert("c", Some(false), "backup");
    assert_eq!(verdict.words().unwrap(), "a backup, and the backup b serves");
    // A profile's `default-server` may make a backup of each.
    let profiled = |tweak: fn(&mut Status)| {
        let store = format!("{DOMAIN}{A}http-services/shop/upstreams/b 10.0.0.2:80\nhttp-services/shop/profile spare");
        let policy = Policy { profiles: ["spare".parse().unwrap()].into(), ..Policy::default() };
        let both = vec![web("OPEN"), Stat { name: "a".into(), ..spare() }, spare(), backend(0)];
        Scene { desired: desired(&store, policy), ..scene(&store) }.rows(both).tweak(tweak)
    };
    profiled(|_| {}).assert("a", Some(true), "ok");
    profiled(|_| {}).assert("b", Some(false), "backup");
    let all = |status: &mut Status| {
        reconcile(status).operator_files.all_backup_profiles.insert("spare".parse().unwrap());
    };
    profiled(all).assert("b", Some(true), "ok");
    // A drained server is checked all the same.
    let drained = format!("{DOMAIN}{A}http-services/shop/overrides/a {{\"state\":\"drain\"}}");
    let row = Stat { status: "DRAIN".into(), weight: 0, ..down };
    scene(&drained).rows(vec![web("OPEN"), row, backend(0)]).assert("a", Some(false), "override check");
}

#[test]
fn an_upstream_behind_an_expression_that_an_older_service_has() {
    let older = "http-services/aaa/url_reg ^/x\nhttp-services/shop/url_reg";
    let verdict = scene(&format!("{older} ^/x\n{A}")).assert("a", Some(false), "claim_held");
    assert_eq!(verdict.words().unwrap(), "http-aaa has the same url_reg for longer, and gets the requests");
    scene(&format!("{older} ^/y/x\n{A}")).assert("a", Some(true), "ok");
    scene(&format!("{DOMAIN}{older} ^/x\n{A}")).assert("a", Some(true), "ok");
    scene(&format!("http-services/shop/url_reg ^/x\nhttp-services/zzz/url_reg ^/x\n{A}")).assert("a", Some(true), "ok");
}

#[test]
fn an_upstream_behind_a_wider_expression_of_an_older_service() {
    let shop =
        |older: &str, own: &str| format!("http-services/aaa/url_reg {older}\nhttp-services/shop/url_reg {own}\n{A}");
    for (older, own) in [(".*", "^/x/[0-9]+$"), ("^/", "[.]php$"), ("^/x", "^/x/y"), ("^", ".*")] {
        let verdict = scene(&shop(older, own)).assert("a", Some(false), "claim_held");
        assert_eq!(verdict.words().unwrap(), "http-aaa has a wider url_reg for longer, and gets the requests");
    }
    for (older, own) in [("^/x/y", "^/x"), ("[.]php$", "^/"), ("^/a", "/a")] {
        scene(&shop(older, own)).assert("a", Some(true), "ok");
    }
    // HAProxy reads expressions at its start only.
    let waits = scene(&shop(".*", "^/x")).tweak(|status| {
        reconcile(status)
            .unrouted
            .insert("http-services/aaa/domain".parse::<Key>().unwrap().service_id().cloned().unwrap());
    });
    waits.assert("a", Some(true), "ok");
}

#[test]
fn the_default_service_behind_an_expression_for_every_path() {
    let default = |store: &str| {
        let rows = vec![web("OPEN"), row(RowKind::Server, "http-default", "a", "UP")];
        let store = format!("{store}http-services/default/upstreams/a 10.0.0.1:80");
        Scene { service: "http-default", ..scene(&store).rows(rows) }
    };
    for order in ["zzz", "aaa"] {
        let verdict = default(&format!("http-services/{order}/url_reg ^/\n")).assert("a", Some(false), "claim_held");
        let words = format!("http-{order} has a url_reg that matches every path, and gets the requests");
        assert_eq!(verdict.words().unwrap(), words);
    }
    default("http-services/zzz/url_reg ^/x\n").assert("a", Some(true), "ok");
    default("http-services/default/domain x.test\nhttp-services/zzz/url_reg ^/\n").assert("a", Some(true), "ok");
    default("http-services/aaa/url_reg ^/x\nhttp-services/default/url_reg ^/x/y\n").assert("a", Some(true), "ok");
}

#[test]
fn an_expression_that_no_path_begins_with_leads_nowhere() {
    let verdict = scene(&format!("http-services/shop/url_reg ^api\n{A}")).assert("a", Some(false), "no_domain");
    assert_eq!(verdict.words().unwrap(), "no path begins as the service's url_reg says: each begins with `/`");
    scene(&format!("{DOMAIN}http-services/shop/url_reg ^api\n{A}")).assert("a", Some(true), "ok");
}

#[test]
fn a_profile_that_lets_no_request_through() {
    let profiles = ["shut", "open", "off"].map(|name| name.parse().unwrap()).to_vec();
    let limits = || Policy { profiles: profiles.clone(), ..Policy::default() };
    let with = |store: &str| {
        scene("").tweak(|status| {
            let text = "defaults shut\n http-request deny\ndefaults open\n http-request deny if { path / }\ndefaults off\n disabled\n";
            let files = OperatorConfig::from_texts([("mine.cfg", text)]);
            reconcile(status).operator_files.closing_lines = files.closing_lines;
        })
        .desired(desired(store, limits()))
    };
    let verdict = with(&format!("{DOMAIN}http-services/shop/profile shut\n{A}")).assert("a", Some(false), "profile");
    let words =
        "no request gets past a line of the service's profile: mine.cfg:2 (`http-request deny` in `defaults shut`)";
    assert_eq!(verdict.words().unwrap(), words);
    with(&format!("{DOMAIN}http-services/shop/profile open\n{A}")).assert("a", Some(true), "ok");
    // HAProxy doesn't list the servers of such a section.
    let off = with(&format!("{DOMAIN}http-services/shop/profile off\n{A}")).rows(vec![web("OPEN")]);
    off.assert("a", Some(false), "profile absent");
    // HAProxy reads no request of a service whose TLS it passes through.
    let passed = format!("{DOMAIN}http-services/shop/tls passthrough\nhttp-services/shop/profile shut\n{A}");
    with(&passed).assert("a", Some(true), "ok");
}

#[test]
fn an_upstream_that_a_lower_one_keeps_from_requests() {
    let store = format!("{DOMAIN}{A}http-services/shop/upstreams/b 10.0.0.2:80");
    let first = Stat { algorithm: Some("first".into()), ..backend(2) };
    let server = |name: &str, server_id| Stat { server_id, ..server(name, "UP") };
    let rows = |limit| vec![web("OPEN"), server("a", 9), Stat { limit, ..server("b", 4) }, first.clone()];
    let both = scene(&store).rows(rows(None));
    both.assert("b", Some(true), "ok");
    let verdict = both.assert("a", Some(false), "backup");
    assert_eq!(verdict.words().unwrap(), "the service's profile says `balance first`, and b serves");
    // The first server has a limit, so the next server gets the requests above it.
    scene(&store).rows(rows(Some(10))).assert("a", Some(true), "ok");
}

#[test]
fn an_upstream_that_haproxy_has_at_another_address() {
    let moved = |address: &str| Stat { address: address.parse().ok(), ..server("a", "DOWN") };
    let at = |address: &str| scene(&format!("{DOMAIN}{A}")).rows(vec![web("OPEN"), moved(address), backend(0)]);
    let verdict = at("10.0.0.1:81").assert("a", Some(false), "otherwise");
    assert_eq!(verdict.words().unwrap(), "HAProxy has it at 10.0.0.1:81: it was moved over the Runtime API");
    at("10.0.0.1:80").assert("a", Some(false), "check");
    let up = vec![web("OPEN"), Stat { status: "UP".into(), ..moved("10.0.0.9:80") }, backend(1)];
    scene(&format!("{DOMAIN}{A}")).rows(up).assert("a", Some(false), "otherwise");
}

#[test]
fn an_upstream_that_haproxy_was_not_told_of() {
    let store = format!("{DOMAIN}{A}");
    let empty = || vec![web("OPEN"), backend(0)];
    scene(&store).rows(empty()).assert("a", Some(false), "absent");
    let pending: fn(&mut Status) = |status| _ = reconcile(status).pending.insert(shop());
    scene(&store).rows(empty()).tweak(pending).assert("a", Some(false), "pending absent");
    scene(&store).tweak(pending).assert("a", Some(true), "ok pending");
    // The section is there, and HAProxy's maps don't lead there yet.
    let unrouted = scene(&store).tweak(|status| {
        reconcile(status).pending.insert(shop());
        reconcile(status).unrouted.insert(shop());
    });
    unrouted.assert("a", Some(false), "pending");
    let strays = vec![web("OPEN"), Stat { weight: 0, ..server("a", "DRAIN") }, backend(0)];
    scene(&store).rows(strays).assert("a", Some(false), "otherwise");
    let weightless = vec![web("OPEN"), Stat { weight: 0, ..server("a", "UP") }, backend(0)];
    let verdict = scene(&store).rows(weightless).assert("a", Some(false), "otherwise");
    assert_eq!(verdict.words().unwrap(), "its weight is 0");
    scene(&store).rows(vec![web("OPEN"), server("a", "NOLB"), backend(0)]).assert("a", Some(false), "otherwise");
    let out: fn(&mut Status) = |status| status.out_of_sync = Some("no disk".into());
    scene(&store).rows(empty()).tweak(out).assert("a", Some(false), "out_of_sync absent");
    scene(&store).tweak(out).assert("a", Some(true), "ok out_of_sync");
    let silent = Scene { error: Some("no socket"), ..scene(&store) };
    silent.assert("a", None, "haproxy_silent");
    Scene { tweak: out, ..silent }.assert("a", None, "haproxy_silent out_of_sync");
}

#[test]
fn a_starved_upstream_gets_requests_again_with_the_first_one() {
    let store = format!("{DOMAIN}{A}http-services/shop/upstreams/b 10.0.0.2:80");
    let starving: fn(&mut Status) = |status| {
        let starved = Starved { chosen: 3, requests: 240, share: 120 };
        status.starving = Arc::new([(("http-shop".to_owned(), "a".to_owned()), starved)].into());
    };
    let rows = |chosen, status| {
        let a = Stat { chosen, ..server("a", status) };
        scene(&store).rows(vec![web("OPEN"), a, server("b", "UP"), backend(2)]).tweak(starving)
    };
    let verdict = rows(3, "UP").assert("a", Some(false), "starved");
    assert!(verdict.words().unwrap().contains("none of 240 requests, of which 120 were its share"), "{verdict:?}");
    rows(3, "UP").assert("b", Some(true), "ok");
    rows(4, "UP").assert("a", Some(true), "ok");
    rows(3, "DOWN").assert("a", Some(false), "check");
}
