use super::*;
use crate::store::tests::store;

const DOMAIN: (&str, &str) = ("http-services/shop/domain", "shop.test");
const A: (&str, &str) = ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue"}"#);
const UP: &str = r#""state":"ready","balanced":true,"haproxy":{"status":"UP","up":true,"weight":100}"#;
const NAMED: &str = r#""service":{"id":"http-shop","routes":[{"host":"shop.test","path":"/"}]}"#;

/// A balancer of this store, in sync, whose answer for the service is this.
fn said(service: &str) -> Said {
    let key = r#"{"cluster":"7","applied":20,"pending":[],"held":[],"draining":{}}"#;
    Said {
        key: Balancer::parse(key.as_bytes()).ok(),
        status: Ok(Status { in_sync: true, words: "in sync at revision 20".into(), applied: Some(20) }),
        service: Ok(serde_json::from_str(&format!("{{{service}}}")).unwrap()),
    }
}

/// The service with its name and with this of upstream `a`.
fn with_a(there: &str) -> Said {
    said(&format!(r#"{NAMED},"upstreams":[{{"service":"http-shop","id":"a",{there}}}]"#))
}

fn at(keys: &[(&str, &str)], said: Option<&Said>, last: Option<&Last>) -> Verdict {
    let store = store(keys);
    let key: Key = "http-services/shop/upstreams/a".parse().unwrap();
    let Key::Upstream { service, id, .. } = key else { panic!() };
    verdict(&Facts { store: &store, service: &service, id: &id, last }, said)
}

/// The names of the causes, the verdict first.
#[track_caller]
fn assert_causes(verdict: &Verdict, gets_requests: Option<bool>, names: &[&str]) {
    let causes: Vec<&str> = verdict.because.iter().chain(&verdict.also).map(Cause::name).collect();
    assert_eq!((verdict.gets_requests, causes.as_slice()), (gets_requests, names), "{verdict:?}");
    assert_eq!(verdict.because.is_none(), gets_requests == Some(true));
}

fn words(verdict: &Verdict) -> String {
    verdict.because.as_ref().map(Cause::words).unwrap_or_default()
}

#[test]
fn one_that_works_has_no_cause() {
    assert_causes(&at(&[DOMAIN, A], Some(&with_a(UP)), None), Some(true), &[]);
    let default = at(&[("http-services/default/domain", "x")], None, None);
    assert_causes(&default, Some(false), &["no_balancer", "no_record"]);
}

#[test]
fn a_balancer_that_is_none_of_this_store() {
    let garbled = Said { key: None, ..with_a(UP) };
    assert_causes(&at(&[DOMAIN, A], Some(&garbled), None), Some(true), &["balancer_garbled"]);
    let mut other = with_a(&UP.replace("true", "false"));
    other.key.as_mut().unwrap().cluster = 8;
    assert_eq!(at(&[DOMAIN, A], Some(&other), None).because, Some(Cause::OtherStore));
}

#[test]
fn no_balancer_and_one_that_can_not_be_asked() {
    let drained = ("http-services/shop/overrides/a", r#"{"state":"drain"}"#);
    assert_causes(&at(&[DOMAIN, A, drained], None, None), Some(false), &["no_balancer", "override"]);
    let silent = Said { service: Err("refused".into()), status: Err("refused".into()), ..with_a(UP) };
    assert_causes(&at(&[DOMAIN, A], Some(&silent), None), None, &["unasked"]);
    assert_causes(&at(&[DOMAIN, A, drained], Some(&silent), None), None, &["override", "unasked"]);
    let mut mute = with_a(r#""state":"ready""#);
    mute.service.as_mut().unwrap().haproxy_error = Some("no socket".into());
    mute.status.as_mut().unwrap().in_sync = false;
    assert_causes(&at(&[DOMAIN, A], Some(&mute), None), None, &["haproxy_silent", "out_of_sync"]);
}

#[test]
fn a_service_that_nobody_finds() {
    let up = |quarantine: &str| {
        said(&format!(r#""quarantine":{{{quarantine}}},"upstreams":[{{"service":"http-shop","id":"a",{UP}}}]"#))
    };
    let nameless = at(&[A], Some(&up("")), None);
    assert_causes(&nameless, Some(false), &["no_domain"]);
    assert!(words(&nameless).contains("discoverctl set"), "{nameless:?}");
    let lost = up(r#""http-services/shop/domain":"shop.test/ belongs to http-api, which had it first""#);
    let rival = ("http-services/api/domain", "shop.test");
    let outbid = at(&[DOMAIN, rival, A], Some(&lost), None);
    assert_causes(&outbid, Some(false), &["claim_held"]);
    assert!(words(&outbid).starts_with("http-api has the claim: shop.test/ belongs"), "{outbid:?}");
    let reserved = at(&[DOMAIN, A], Some(&lost), None);
    assert_causes(&reserved, Some(false), &["domain_quarantined"]);
    let garbage = at(&[("http-services/shop/domain", "b\"c"), A], Some(&up("")), None);
    assert_causes(&garbage, Some(false), &["domain_quarantined"]);
    // One of two hosts is lost, the other leads there.
    let partly = said(&format!(
        r#"{NAMED},"quarantine":{{"http-services/shop/domain":"x.test/ belongs to http-api"}},
           "upstreams":[{{"service":"http-shop","id":"a",{UP}}}]"#
    ));
    assert_causes(&at(&[DOMAIN, A], Some(&partly), None), Some(true), &["quarantined"]);
}

#[test]
fn a_service_that_is_not_taken() {
    let refused = said(r#""service":{"refused":"unknown keyword"},"upstreams":[{"id":"a","balanced":false}]"#);
    let refused = at(&[DOMAIN, A], Some(&refused), None);
    assert_eq!(refused.because, Some(Cause::Refused("unknown keyword".into())));
    let gated = said(&format!(
        r#"{NAMED},"quarantine":{{"http-services/shop/tls":"`maybe`"}},"upstreams":[{{"id":"a","balanced":false}}]"#
    ));
    let gated = at(&[DOMAIN, A, ("http-services/shop/tls", "maybe")], Some(&gated), None);
    assert_causes(&gated, Some(false), &["service_quarantined"]);
    assert!(words(&gated).contains("http-services/shop/tls can't be read: `maybe`"), "{gated:?}");
}

#[test]
fn a_record_that_is_gone_or_does_not_count() {
    let nobody = said(NAMED);
    let gone = at(&[DOMAIN], Some(&nobody), None);
    assert_causes(&gone, Some(false), &["no_record"]);
    assert!(words(&gone).ends_with("nor in the revisions that etcd keeps"), "{gone:?}");
    let mut last =
        Last { revision: 5, value: "10.0.0.1:80".into(), lease: Some("abc".into()), lease_lives: Some(false) };
    assert!(words(&at(&[DOMAIN], Some(&nobody), Some(&last))).ends_with("under lease abc, which has ended"));
    last.lease_lives = Some(true);
    assert!(words(&at(&[DOMAIN], Some(&nobody), Some(&last))).ends_with("somebody deleted the key"));
    let held = with_a(&format!(r#""held":true,"why":["its key has gone in a crowd"],{UP}"#));
    assert_causes(&at(&[DOMAIN], Some(&held), None), Some(true), &["held"]);
    let bad = said(&format!(r#"{NAMED},"quarantine":{{"http-services/shop/upstreams/a":"`?`: an address"}}"#));
    assert_causes(&at(&[DOMAIN, (A.0, "?")], Some(&bad), None), Some(false), &["record_quarantined"]);
    let last_good = said(&format!(
        r#"{NAMED},"quarantine":{{"http-services/shop/upstreams/a":"`?`"}},"upstreams":[{{"id":"a",{UP}}}]"#
    ));
    assert_causes(&at(&[DOMAIN, (A.0, "?")], Some(&last_good), None), Some(true), &["record_quarantined"]);
}

#[test]
fn one_that_is_not_wanted_says_everybody_who_does_not_want_it() {
    let drained = with_a(r#""state":"maint","balanced":false,"haproxy":{"status":"MAINT","weight":0}"#);
    let keys = [
        DOMAIN,
        ("http-services/shop/active", "green"),
        (A.0, r#"{"address":"10.0.0.1:80","color":"blue","state":"down","weight":0}"#),
        ("http-services/shop/overrides/a", r#"{"state":"maint"}"#),
    ];
    let all = at(&keys, Some(&drained), None);
    assert_causes(&all, Some(false), &["announcer", "override", "inactive_color", "weight"]);
    let say: Vec<String> = all.because.iter().chain(&all.also).map(Cause::words).collect();
    assert_eq!(say[0], "its announcer says down");
    assert_eq!(say[1], "an override says maint: discoverctl ready shop/a takes it back");
    assert_eq!(say[2], "color blue is not active: green");
    assert_eq!(say[3], "its weight is 0, says its announcer");
    let plain = at(&[DOMAIN, keys[1], (A.0, "10.0.0.1:80")], Some(&drained), None);
    assert_eq!(words(&plain), "it has no color, and active is green");
}

#[test]
fn one_that_does_not_work_there() {
    let down = with_a(
        r#""state":"ready","balanced":false,
           "haproxy":{"status":"DOWN","check":"L4CON","check_words":"Connection refused","since_seconds":7}"#,
    );
    let mut down_and_out = down.clone();
    down_and_out.status.as_mut().unwrap().in_sync = false;
    assert_causes(&at(&[DOMAIN, A], Some(&down_and_out), None), Some(false), &["check", "out_of_sync"]);
    let down = at(&[DOMAIN, A], Some(&down), None);
    assert_eq!(words(&down), "HAProxy's check fails: L4CON, Connection refused, for 7 s");
    let spare = with_a(r#""state":"ready","balanced":false,"haproxy":{"status":"UP","up":true,"weight":100}"#);
    assert_causes(&at(&[DOMAIN, A], Some(&spare), None), Some(false), &["backup"]);
}

#[test]
fn one_that_haproxy_was_not_told_of() {
    let mut out = with_a(r#""state":"ready","balanced":false"#);
    out.status = Ok(Status { in_sync: false, words: "out of sync: no disk".into(), applied: Some(9) });
    let out = at(&[DOMAIN, A], Some(&out), None);
    assert_causes(&out, Some(false), &["out_of_sync", "absent"]);
    assert_eq!(words(&out), "out of sync: no disk");
    let waits = with_a(r#""state":"ready","pending":true,"balanced":false"#);
    assert_causes(&at(&[DOMAIN, A], Some(&waits), None), Some(false), &["pending", "absent"]);
    assert_causes(&at(&[DOMAIN, A], Some(&said(NAMED)), None), Some(false), &["behind"]);
    let strays = with_a(
        r#""state":"ready","balanced":false,"not_balanced":"HAProxy has it DRAIN",
        "haproxy":{"status":"DRAIN","weight":0}"#,
    );
    let strays = at(&[DOMAIN, A], Some(&strays), None);
    assert_causes(&strays, Some(false), &["otherwise"]);
    assert_eq!(words(&strays), "HAProxy has it DRAIN");
    let weightless = with_a(
        r#""state":"ready","balanced":false,"not_balanced":"its weight is 0",
        "haproxy":{"status":"UP","up":true,"weight":0}"#,
    );
    assert_eq!(words(&at(&[DOMAIN, A], Some(&weightless), None)), "its weight is 0");
}
