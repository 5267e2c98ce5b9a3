mod openapi;

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::Claim;

/// One answer as JSON in one line.
fn to_line(answer: &impl Serialize) -> String {
    serde_json::to_string(answer).unwrap() + "\n"
}

/// An upstream with every optional part, so that the names of the parts are in it.
fn whole_upstream() -> Upstream {
    Upstream {
        announced: Some(Announced::default()),
        imposed: Some(Imposed::default()),
        verdict: Some(crate::Verdict::default()),
        haproxy: Some(Traffic::default()),
        preview: Some(Preview::default()),
        ..Upstream::default()
    }
}

/// Programs read these names, and people compare the lines.
#[test]
fn names_and_their_order_stay() {
    let status = Status {
        haproxy: Some(HaproxyStatus::default()),
        old_haproxys: OldProcesses { list: vec![OldProcess::default()], ..OldProcesses::default() },
        under_way: vec![UnfinishedAct::default()],
        ..Status::default()
    };
    let host = Host { certificates: vec![ServedBy::default()], ..Host::default() };
    let certificates =
        Certificates { certificates: vec![Certificate::default()], hosts: vec![host], ..Certificates::default() };
    let service =
        Service { routes: vec![Route::default()], previews: vec![PreviewColor::default()], ..Service::default() };
    let full = ServiceInFull { service: service.clone(), ..ServiceInFull::default() };
    let applied = AppliedChange { author: Some(crate::Author::default()), ..AppliedChange::default() };
    let text = [
        to_line(&Identity::default()),
        to_line(&status),
        to_line(&Quarantine::default()),
        to_line(&History { history: vec![Act::default()] }),
        to_line(&certificates),
        to_line(&Services { services: vec![service], ..Services::default() }),
        to_line(&full),
        to_line(&Upstreams { upstreams: vec![whole_upstream()], ..Upstreams::default() }),
        to_line(&Changes { changes: vec![applied], ..Changes::default() }),
        to_line(&Problems { problems: vec![Problem::default()], ..Problems::default() }),
    ];
    expect_test::expect_file!["names.jsonl"].assert_eq(&text.concat());
}

/// Reads an answer of a balancer that knows none of the fields, and one of a balancer that knows a further one.
#[track_caller]
fn assert_reads_other_releases<T: DeserializeOwned + Default + PartialEq + Debug>() {
    let older: T = serde_json::from_str(r#"{"identity":{"node":"lb1"}}"#).unwrap();
    assert_eq!(older, T::default());
    let newer: T = serde_json::from_str(r#"{"tomorrow":{"unknown":[1]}}"#).unwrap();
    assert_eq!(newer, T::default());
}

#[test]
fn a_missing_field_is_empty_and_an_unknown_one_is_ignored() {
    assert_reads_other_releases::<Identity>();
    assert_reads_other_releases::<Status>();
    assert_reads_other_releases::<Quarantine>();
    assert_reads_other_releases::<History>();
    assert_reads_other_releases::<Certificates>();
    assert_reads_other_releases::<Services>();
    assert_reads_other_releases::<ServiceInFull>();
    assert_reads_other_releases::<Upstreams>();
    assert_reads_other_releases::<Changes>();
    assert_reads_other_releases::<Problems>();
    let nested: Upstreams =
        serde_json::from_str(r#"{"upstreams":[{"id":"a","haproxy":{"status":"UP","new":1},"preview":{}}]}"#).unwrap();
    let traffic = Traffic { status: "UP".into(), ..Traffic::default() };
    let upstream =
        Upstream { id: "a".into(), haproxy: Some(traffic), preview: Some(Preview::default()), ..Upstream::default() };
    assert_eq!(nested.upstreams, [upstream]);
}

#[test]
fn an_answer_is_read_as_it_was_written() {
    let upstreams = Upstreams { upstreams: vec![whole_upstream()], applied: Some(7), ..Upstreams::default() };
    let read: Upstreams = serde_json::from_str(&to_line(&upstreams)).unwrap();
    assert_eq!(read, upstreams);
}

#[test]
fn a_service_has_the_claims_that_it_names() {
    let route = Route { host: "shop.test".into(), path: "/cart".into() };
    let ports = vec!["*:3306".to_owned(), "[fd00::1]:3307".to_owned()];
    let service = Service { routes: vec![route], url_reg: Some("^/a".into()), ports, ..Service::default() };
    assert_eq!(service.list_claims(), ["shop.test/cart", "url_reg ^/a", "*:3306", "[fd00::1]:3307"]);
    let route = |path: &str| Claim::Route("shop.test".parse().unwrap(), path.parse().unwrap());
    assert!(service.has_claim(&route("/cart")) && !service.has_claim(&route("/")));
    assert!(service.has_claim(&Claim::Port(3306)) && service.has_claim(&Claim::Port(3307)));
    assert!(!service.has_claim(&Claim::Port(80)));
}
