use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use discovery::Cause;
use registry::MemberStatus;

use super::super::checked::{list_checked, list_unknown};
use super::super::facts::{Facts, Refusal};
use super::*;
use crate::balancer_api::{ClockReading, Problem, Problems, Status};
use crate::commands::lint;
use crate::store::tests::store;

const BALANCER: &str =
    r#"{"cluster":"7","applied":20,"url":"http://10.0.0.9:9101","pending":[],"held":[],"draining":{}}"#;

fn member() -> MemberStatus {
    MemberStatus {
        version: "3.5.16".into(),
        latency: Duration::from_millis(2),
        cluster: 7,
        has_leader: true,
        ..MemberStatus::default()
    }
}

fn status() -> Status {
    let json = r#"{"version":"0.1.0","in_sync":true,"applied":20,"store":{"connected":true,"cluster":"7"},
        "haproxy":{"version":"3.0.11"}}"#;
    serde_json::from_str(json).expect("a status")
}

/// An installation in which all is well.
fn sound() -> Facts {
    let keys = [("balancers/lb1", BALANCER), ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80"}"#)];
    Facts {
        release: "0.1.0".into(),
        prefix: "/haproxy-discover".into(),
        members: vec![("http://10.0.0.1:2379".into(), Ok(member()))],
        store: Some(store(&keys)),
        rights: vec![("http-services/", Ok(()))],
        status: BTreeMap::from([("lb1".parse().expect("a name"), Ok(status()))]),
        ..Facts::default()
    }
}

/// The findings, a line each.
fn lines(facts: &Facts) -> Vec<String> {
    let line = |Finding { severity, area, subject, what, .. }: &Finding| {
        format!("{severity:?} {area:?} {subject}: {what}").to_lowercase()
    };
    let findings = find_faults(facts);
    assert!(findings.iter().all(|it| !it.todo.is_empty()), "{findings:?}");
    findings.iter().map(line).collect()
}

#[track_caller]
fn assert_lines(facts: &Facts, wanted: &[&str]) {
    assert_eq!(lines(facts), wanted);
}

#[test]
fn a_sound_installation_has_no_finding_and_says_what_was_checked() {
    let facts = sound();
    assert_lines(&facts, &[]);
    assert_eq!(
        list_checked(&facts),
        [
            "store: 1 of 1 endpoints answer, etcd 3.5.16, within 2 ms",
            "store: 2 keys below /haproxy-discover at revision 20",
            "rights: read all keys, write below http-services/",
            "balancers: lb1: problems, revision, old processes, releases",
            "certificates: ends within 30 days, hosts without one, at lb1",
            "clocks: none",
            "keys: everything that lint checks, ports, addresses on loopback",
        ]
    );
    assert!(list_unknown(&facts).is_empty());
}

#[test]
fn each_fault_of_etcd_is_a_finding() {
    let faulty = |change: fn(&mut MemberStatus)| {
        let mut it = member();
        change(&mut it);
        lines(&Facts { members: vec![("e1".into(), Ok(it))], ..sound() })
    };
    assert_eq!(faulty(|it| it.has_leader = false), ["error store e1: the member has no leader"]);
    assert_eq!(faulty(|it| it.is_learner = true), ["error store e1: the member is a learner"]);
    assert_eq!(faulty(|it| it.faults = vec!["alarm:NOSPACE".into()]), ["error store e1: alarm:nospace"]);
    assert_eq!(faulty(|it| it.version = "3.3.27".into()), ["error store e1: etcd 3.3.27 is too old"]);
    assert_eq!(faulty(|it| it.version = "odd".into()), [""; 0]);
    assert_eq!(faulty(|it| it.latency = Duration::from_millis(400)), ["warning store e1: an answer took 400 ms"]);
    assert_eq!(
        faulty(|it| (it.database_bytes, it.quota_bytes) = (90 << 20, Some(100 << 20))),
        ["warning store e1: the database has 90 mib of 100 mib"]
    );
    assert_eq!(
        faulty(|it| it.database_bytes = 2 << 30),
        ["warning store e1: the database has 2048 mib of 2048 mib, unless --quota-backend-bytes is set"]
    );
    let other = MemberStatus { cluster: 8, version: "3.4.23".into(), ..member() };
    let members = vec![("e1".into(), Ok(member())), ("e2".into(), Ok(other)), ("e3".into(), Err("refused".into()))];
    assert_lines(
        &Facts { members, ..sound() },
        &[
            "error store --endpoints: the endpoints belong to different clusters",
            "error store e3: refused",
            "warning store etcd: the members have different releases: 3.4.23, 3.5.16",
        ],
    );
}

#[test]
fn the_store_and_the_rights_in_it_are_judged() {
    let mut facts = sound();
    facts.rights = vec![("log/", Err(Refusal::Roles)), ("control/", Err(Refusal::Store("no space".into())))];
    assert_lines(
        &facts,
        &["error rights control/: no space", "warning rights log/: etcd's roles forbid this user to write below it"],
    );
    let empty = Facts { store: Some(store(&[])), status: BTreeMap::new(), ..sound() };
    assert_lines(&empty, &["warning store /haproxy-discover: no key is below the prefix"]);
    let alone = Facts { store: Some(store(&[("http-services/a/domain", "a.com")])), ..empty };
    assert_lines(&alone, &["error balancers balancers/: no balancer lives"]);
    let unread = Facts { store: None, status: BTreeMap::new(), ..sound() };
    assert_lines(&unread, &[]);
    assert_eq!(list_unknown(&unread).into_keys().collect::<Vec<_>>(), ["everything else"]);
}

#[test]
fn each_fault_of_a_balancer_is_a_finding() {
    for (more, wanted) in [
        (r#""applied":1"#, "warning balancers lb1: it has applied revision 1 of 2"),
        (
            r#""old_haproxys":{"processes":2,"oldest_seconds":7300,"connections":3}"#,
            "warning balancers lb1: 2 old haproxy processes stay, the oldest for 2 h, with 3 connections",
        ),
        (r#""version":"0.2.0""#, "warning versions discoverctl: discoverctl is 0.1.0, confgen is 0.2.0 on lb1"),
    ] {
        assert_eq!(lines_with(more), [wanted], "{more}");
    }
}

/// The findings of a status in which this field replaces the sound one.
fn lines_with(more: &str) -> Vec<String> {
    let mut sound_status = serde_json::to_value(status()).expect("JSON");
    let more: serde_json::Value = serde_json::from_str(&format!("{{{more}}}")).expect("JSON");
    let fields = more.as_object().expect("fields").clone();
    sound_status.as_object_mut().expect("fields").extend(fields);
    let status = serde_json::from_value(sound_status).expect("a status");
    lines(&Facts { status: BTreeMap::from([("lb1".parse().expect("a name"), Ok(status))]), ..sound() })
}

/// Installation in which these balancers find these problems.
fn with_problems(all: &[(&str, &[Problem])]) -> Facts {
    let answer = |problems: &[Problem]| Ok(Problems { problems: problems.to_vec(), ..Problems::default() });
    let problems = all.iter().map(|(node, problems)| (node.parse().expect("a name"), answer(problems))).collect();
    Facts { problems, ..sound() }
}

fn problem(harm: &str, kind: &str, service: Option<&str>, words: (&str, &str), command: Option<&str>) -> Problem {
    Problem {
        harm: harm.into(),
        kind: kind.into(),
        service: service.map(Into::into),
        services: service.into_iter().map(Into::into).collect(),
        what: words.0.into(),
        reason: words.1.into(),
        command: command.map(Into::into),
        count: 1,
        cause: None,
    }
}

#[test]
fn the_problems_of_balancers_are_findings_and_the_same_ones_are_one() {
    let fails = |reason| {
        let words = ("http-shop: 1 of 2 upstreams fail", reason);
        problem("degraded", "upstreams_fail", Some("http-shop"), words, Some("discoverctl explain shop/a"))
    };
    let down = problem(
        "outage",
        "haproxy_down",
        None,
        ("HAProxy doesn't answer", "refused"),
        Some("supervisorctl status haproxy"),
    );
    let refused = problem("blocked", "out_of_sync", None, ("HAProxy doesn't run it", "x.cfg:3: bnid"), None);
    let facts = with_problems(&[
        ("lb1", &[fails("for 3 s"), refused]),
        ("lb2", &[down, fails("for 4 s"), problem("risk", "quarantined", Some("http-shop"), ("1 key", "bad"), None)]),
    ]);
    assert_lines(
        &facts,
        &[
            "error balancers lb1: haproxy doesn't run it: x.cfg:3: bnid",
            "error balancers lb2: haproxy doesn't answer: refused",
            "warning services http-services/shop/: http-shop: 1 of 2 upstreams fail, at lb1, lb2: for 3 s",
        ],
    );
    let todos: Vec<_> = find_faults(&facts).into_iter().map(|it| it.todo).collect();
    assert_eq!(
        todos,
        [
            "mend the file on lb1; confgen reads it again",
            "supervisorctl status haproxy, on lb2",
            "discoverctl explain shop/a",
        ]
    );
}

#[test]
fn a_fault_that_a_balancer_tells_is_not_told_again() {
    let fault = |key: &str, kind, cause| lint::Finding {
        key: key.into(),
        kind,
        what: "it is so".into(),
        todo: "mend it".into(),
        cause,
    };
    let none = problem("outage", "no_upstream", Some("http-shop"), ("http-shop has no upstream", "no record"), None);
    let starved = Problem {
        cause: Some(Cause::Starved),
        ..problem("outage", "no_requests", Some("http-blog"), ("http-blog", "starved"), None)
    };
    let silent = problem("risk", "haproxy_silent", None, ("1 HAProxy is silent", "it waits"), None);
    let facts = Facts {
        lint: vec![
            fault("http-services/shop/", "no_upstream", None),
            fault("http-services/shop-2/", "no_upstream", None),
            fault("http-services/blog/", "no_requests", Some(Cause::Starved)),
            fault("balancers/lb1", "haproxy_silent", None),
            fault("balancers/lb2", "haproxy_silent", None),
        ],
        ..with_problems(&[("lb1", &[none, starved, silent])])
    };
    assert_lines(
        &facts,
        &[
            "error services http-services/blog/: http-blog, at lb1: starved",
            "error services http-services/shop/: http-shop has no upstream, at lb1: no record",
            "error keys http-services/shop-2/: it is so",
            "warning balancers lb1: 1 haproxy is silent: it waits",
            "warning balancers lb2: it is so",
        ],
    );
}

#[test]
fn a_balancer_that_cannot_be_asked_is_found_and_nothing_is_guessed_about_it() {
    let silent = |reason: &str, url: &str| {
        let record = BALANCER.replace("http://10.0.0.9:9101", url);
        let status = BTreeMap::from([("lb1".parse().expect("a name"), Err(reason.to_owned()))]);
        Facts { store: Some(store(&[("balancers/lb1", &record)])), status, ..sound() }
    };
    for (reason, url, area, todo) in [
        ("it asks for a token: --api-token-file", "https://10.0.0.9:1", Area::Api, "--api-token-file FILE"),
        ("invalid peer certificate", "https://10.0.0.9:1", Area::Api, "--api-cacert FILE"),
        ("lb2 answers there, not lb1", "http://10.0.0.9:1", Area::Api, "--node"),
        ("Connection refused", "http://10.0.0.9:1", Area::Api, "curl http://10.0.0.9:1/live"),
        ("Connection refused", "http://127.0.0.1:1", Area::Loopback, "run discoverctl on that host"),
    ] {
        let facts = silent(reason, url);
        let [finding] = &*find_faults(&facts) else { panic!("{:?}", find_faults(&facts)) };
        assert_eq!((finding.severity, finding.area), (Severity::Error, area), "{reason}");
        assert!(finding.todo.contains(todo), "{finding:?}");
        assert!(list_unknown(&facts).values().any(|reason| reason == "lb1 can't be asked"));
    }
}

#[test]
fn releases_that_differ_between_balancers_are_found() {
    let mut facts = sound();
    let mut other = status();
    other.haproxy.as_mut().expect("HAProxy runs").version = "2.6.12".into();
    facts.status.insert("lb2".parse().expect("a name"), Ok(other));
    assert_lines(
        &facts,
        &["warning versions balancers/: balancers have different releases of haproxy: 2.6.12 on lb2, 3.0.11 on lb1"],
    );
}

#[test]
fn a_clock_that_is_certainly_wrong_is_found() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let reading = |date| ClockReading { sent_at: now, date, received_at: now };
    let mut facts = sound();
    facts.clocks = BTreeMap::from([
        ("lb1".to_owned(), reading(now + Duration::from_secs(60))),
        ("lb2".to_owned(), reading(now - Duration::from_secs(61))),
        ("lb3".to_owned(), reading(now - Duration::from_secs(3))),
    ]);
    assert_lines(
        &facts,
        &[
            "warning clocks lb1: its clock is 60 s ahead of this host's",
            "warning clocks lb2: its clock is 60 s behind this host's",
        ],
    );
}

#[test]
fn a_record_on_loopback_is_found_if_a_balancer_is_certainly_elsewhere() {
    let with = |record: &str, balancers: &[(&str, &str)]| {
        let mut keys = vec![("http-services/shop/upstreams/a", record)];
        keys.extend(balancers);
        lines(&Facts { store: Some(store(&keys)), ..sound() })
    };
    let local = BALANCER.replace("10.0.0.9", "127.0.0.1");
    let of_web_1 = r#"{"address":"127.0.0.1:80","host":"web-1"}"#;
    let found = "error loopback http-services/shop/upstreams/a: 127.0.0.1:80 is lb1's own address, not the app's";
    assert_eq!(with("127.0.0.1:80", &[("balancers/lb1", &local)]), [""; 0], "one host has it all");
    assert_eq!(with(of_web_1, &[("balancers/lb1", &local)]), [""; 0], "the node may have any name");
    assert_eq!(with(of_web_1, &[("balancers/lb1", BALANCER)]), [found]);
    assert_eq!(with(of_web_1, &[("balancers/web-1", BALANCER)]), [""; 0]);
    assert_eq!(with("10.0.0.1:80", &[("balancers/lb1", BALANCER), ("balancers/lb2", BALANCER)]), [""; 0]);
    let both = with("127.0.0.1:80", &[("balancers/lb1", BALANCER), ("balancers/lb2", BALANCER)]);
    assert!(both.len() == 1 && both[0].contains("lb1 and lb2's own address"), "{both:?}");
}

#[test]
fn what_lint_finds_has_a_weight_and_an_area() {
    let fault = |key: &str, kind| lint::Finding {
        key: key.into(),
        kind,
        what: "it is so".into(),
        todo: "mend it".into(),
        cause: None,
    };
    let facts = Facts {
        lint: vec![
            fault("balancers/lb1", "certificate_expires"),
            fault("tcp-services/db/ports", "rival_claim"),
            fault("http-services/shop/domain", "old_layout"),
            fault("tcp-services/db/ports", "quarantined"),
        ],
        ..sound()
    };
    assert_lines(
        &facts,
        &[
            "error ports tcp-services/db/ports: it is so",
            "error ports tcp-services/db/ports: it is so",
            "warning certificates lb1: it is so",
            "warning keys http-services/shop/domain: it is so",
        ],
    );
}
