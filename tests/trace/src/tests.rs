use super::*;

const KEY: &str = "http-services/shop/upstreams/a";
const ADDRESS: &str = "10.0.0.1:80";

fn listing(cluster: u64, revision: i64) -> Observation {
    Observation::Listing { cluster: cluster.to_string(), revision }
}

fn put(revision: i64, key: &str, value: &str) -> Observation {
    leased(revision, key, value, 7)
}

fn leased(revision: i64, key: &str, value: &str, lease: i64) -> Observation {
    Observation::Put { revision, key: key.into(), value: value.into(), lease }
}

fn delete(revision: i64, key: &str) -> Observation {
    Observation::Delete { revision, key: key.into() }
}

fn stop(revision: i64) -> Observation {
    Observation::Stop { address: ADDRESS.into(), revision }
}

fn old(count: u64) -> Observation {
    Observation::Old { node: "lb1".into(), sessions: [("http-shop/a".to_owned(), count)].into() }
}

/// A record as confgen writes it.
fn applied(revision: i64, draining: &str) -> String {
    format!(
        r#"{{"cluster":"7","instance":"i","seen":{revision},"applied":{revision},"pending":[],"held":[],"draining":{draining}}}"#
    )
}

fn drain() -> String {
    format!(r#"{{"address":"{ADDRESS}","state":"drain"}}"#)
}

/// A polite stop, and the end of the record.
fn drained() -> Vec<Observation> {
    vec![
        listing(7, 2),
        put(3, KEY, ADDRESS),
        put(4, "balancers/lb1", &applied(3, "{}")),
        put(5, KEY, &drain()),
        put(6, "balancers/lb1", &applied(5, r#"{"http-shop/a":1}"#)),
        put(7, "balancers/lb1", &applied(6, "{}")),
        stop(7),
        old(0),
        delete(8, KEY),
    ]
}

#[track_caller]
fn assert_unexplained(trace: &[Observation], expected: &str) {
    assert_eq!(explain(trace).unwrap_err().to_string(), expected);
}

#[test]
fn a_polite_stop_is_explained_and_reads_back() {
    assert_eq!(explain(&drained()), Ok(()));
    let text: String = drained().iter().map(|it| format!("{it}\n")).collect();
    assert_eq!(parse_trace(&text), Ok(drained()));
    assert_eq!(parse_trace("{}").unwrap_err().line, 1);
    let counts = Counts { listings: 1, puts: 5, deletions: 1, stops: 1, questions: 1 };
    assert_eq!(Counts::of_trace(&drained()), counts);
}

#[test]
fn a_stop_before_the_last_acknowledgement_is_not_explained() {
    let mut early = drained();
    early.remove(5);
    assert_unexplained(&early, "line 6: the app of http-shop/a is stopped, and lb1 has not acknowledged 5");
    let mut second = drained();
    second.insert(5, put(6, "balancers/lb2", &applied(3, "{}")));
    assert_unexplained(&second, "line 8: the app of http-shop/a is stopped, and lb2 has not acknowledged 5");
    let mut unreadable = drained();
    unreadable.insert(5, leased(6, "balancers/lb2", "?", 0));
    assert_unexplained(&unreadable, "line 8: the app of http-shop/a is stopped, and lb2 has not acknowledged 5");
}

#[test]
fn an_acknowledgement_after_the_stop_explains_nothing() {
    let mut late = drained();
    late.swap(5, 6);
    late[5] = stop(6);
    assert_unexplained(&late, "line 6: the app of http-shop/a is stopped, and lb1 has not acknowledged 5");
    late[5] = stop(7);
    late.swap(5, 6);
    assert_eq!(explain(&late), Ok(()));
}

#[test]
fn a_stop_of_a_ready_app_is_not_explained() {
    let mut ready = drained();
    ready.remove(3);
    assert_unexplained(&ready, "line 6: the app of http-shop/a is stopped while its record is ready");
    let mut by_hand = drained();
    by_hand.insert(6, leased(8, KEY, ADDRESS, 0));
    by_hand[7] = stop(8);
    assert_unexplained(&by_hand, "line 8: the app of http-shop/a is stopped while its record is ready");
}

#[test]
fn an_acknowledgement_once_is_enough() {
    let mut gone = drained();
    gone.insert(6, delete(8, KEY));
    gone.insert(7, put(9, "balancers/lb1", &applied(8, r#"{"http-shop/a":1}"#)));
    gone.insert(8, put(10, "balancers/lb2", &applied(3, "{}")));
    gone.truncate(9);
    gone.push(stop(10));
    assert_eq!(explain(&gone), Ok(()));
}

#[test]
fn a_drain_that_begins_again_is_acknowledged_again() {
    let mut again = drained();
    again.splice(6.., [leased(8, KEY, ADDRESS, 0), put(9, KEY, &drain()), stop(9)]);
    assert_unexplained(&again, "line 9: the app of http-shop/a is stopped, and lb1 has not acknowledged 9");
    again.insert(8, put(10, "balancers/lb1", &applied(9, "{}")));
    again[9] = stop(10);
    assert_eq!(explain(&again), Ok(()));
}

#[test]
fn a_record_that_is_deleted_or_replaced_is_acknowledged_too() {
    for end in [delete(5, KEY), put(5, KEY, "10.0.0.2:80")] {
        let mut gone = drained();
        gone[3] = end;
        gone.truncate(8);
        assert_eq!(explain(&gone), Ok(()));
        gone.remove(5);
        assert_unexplained(&gone, "line 6: the app of http-shop/a is stopped, and lb1 has not acknowledged 5");
    }
}

#[test]
fn an_operators_own_record_has_no_announcer() {
    let mut own = drained();
    own.insert(1, leased(2, "http-services/blog/upstreams/b", ADDRESS, 0));
    assert_eq!(explain(&own), Ok(()));
}

#[test]
fn a_session_on_a_stopped_app_is_not_explained() {
    let mut open = drained();
    open[7] = old(2);
    assert_unexplained(&open, "line 8: an old process of lb1 has 2 sessions on http-shop/a, whose app is stopped");
    let mut before = drained();
    before.insert(6, old(2));
    assert_eq!(explain(&before), Ok(()), "the app still runs");
    let mut next = drained();
    next.extend([leased(9, KEY, ADDRESS, 8), old(2)]);
    assert_eq!(explain(&next), Ok(()), "another app has the name");
}

#[test]
fn a_stop_that_is_taken_back_is_not_explained() {
    let mut back = drained();
    back.insert(8, put(8, KEY, ADDRESS));
    assert_unexplained(&back, "line 9: http-shop/a is ready again under the lease of its stopped app");
    let mut next = drained();
    next.push(put(9, KEY, ADDRESS));
    assert_eq!(explain(&next), Ok(()), "the app starts again");
}

#[test]
fn a_revision_that_goes_back_is_not_explained() {
    let trace = [listing(7, 4), put(3, KEY, ADDRESS), put(2, "x", ""), put(6, "x", ""), delete(5, "x")];
    assert_unexplained(&trace, "line 5: the store goes back from revision 6 to 5");
    assert_unexplained(&[listing(7, 4), stop(3)], "line 2: the stop at revision 3 stands after revision 4");
    assert_unexplained(&[listing(7, 4), listing(7, 2), put(3, "x", ""), put(4, "x", ""), put(3, "x", "")], {
        "line 5: the store goes back from revision 4 to 3"
    });
}

#[test]
fn a_balancer_has_seen_only_what_there_is() {
    let mut early = drained();
    early[2] = put(4, "balancers/lb1", &applied(4, "{}"));
    assert_unexplained(&early, "line 3: lb1 has seen revision 4, and writes its record at 4");
    early[2] = leased(4, "balancers/lb1", &applied(9, "{}"), 0);
    assert_eq!(explain(&early), Ok(()), "an operator may write anything");
}

#[test]
fn a_balancer_forgets_nothing_in_one_store() {
    let mut back = drained();
    back[5] = put(7, "balancers/lb1", &applied(3, "{}"));
    assert_unexplained(&back, "line 6: lb1 has applied 3 after 5");
    let restarted = applied(3, "{}").replace(r#""instance":"i""#, r#""instance":"j""#);
    let restarted = [drained()[..5].to_vec(), vec![put(7, "balancers/lb1", &restarted)]].concat();
    assert_eq!(explain(&restarted), Ok(()), "a confgen that has restarted");
    let wiped = [drained(), vec![listing(7, 1), put(3, "balancers/lb1", &applied(2, "{}"))]].concat();
    assert_eq!(explain(&wiped), Ok(()), "a wiped store counts from 1");
    let other = applied(9, "{}").replace(r#""cluster":"7""#, r#""cluster":"8""#);
    assert_eq!(explain(&[listing(7, 1), put(2, "balancers/lb1", &other)]), Ok(()), "a balancer of another store");
}

#[test]
fn a_balancer_writes_nothing_of_the_store_before_a_wipe() {
    let stale = put(4, "balancers/lb1", &applied(9, "{}"));
    let mut wiped = drained();
    wiped.extend([listing(7, 1), put(2, KEY, ADDRESS), put(3, KEY, &drain()), stale]);
    assert_unexplained(&wiped, "line 13: lb1 has seen revision 9, and writes its record at 4");
    wiped.splice(12.., [put(4, "balancers/lb1", &applied(3, "{}")), stop(5)]);
    assert_eq!(explain(&wiped), Ok(()));
    let restored =
        [listing(7, 4), put(4, "balancers/lb1", &applied(3, "{}")), put(5, "balancers/lb1", &applied(4, "{}"))];
    assert_eq!(explain(&[drained(), restored.to_vec()].concat()), Ok(()), "the restored record is one from before");
}
