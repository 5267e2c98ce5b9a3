//! Single calls: reads, transactions, leases, and what they say when they fail.

use std::time::{Duration, Instant};

use discovery::Change;
use lab::Etcd;
use registry::{Condition, Error, LeaseId, Operation, Txn};
use tokio::time::sleep;

use crate::support::{Link, PREFIX, client, eventually, raw_client, report};

const KEY: &str = "http-services/shop/domain";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_writes_all_or_reads_instead() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let put = |condition| Txn::new().only_if(condition).put(KEY, "shop.test", None).or_get(KEY);

    let first = client.commit(put(Condition::Absent(KEY.into()))).await.expect("committed");
    assert!(first.succeeded && first.found.is_empty());
    let entry = client.get(KEY).await.expect("read").expect("there");
    assert_eq!((entry.key.as_str(), entry.value.as_slice()), (KEY, b"shop.test".as_slice()));
    assert_eq!((entry.create_revision, entry.lease), (first.revision, 0));
    let raw = raw_client(&etcd).await.get(format!("{PREFIX}/{KEY}"), None).await.expect("read");
    assert_eq!(raw.kvs().len(), 1, "the key is below the prefix");

    let second = client.commit(put(Condition::Absent(KEY.into()))).await.expect("committed");
    assert_eq!((second.succeeded, second.found), (false, vec![entry.clone()]));

    for holds in [
        Condition::Present(KEY.into()),
        Condition::LeaseIs(KEY.into(), LeaseId::from(0)),
        Condition::ModRevisionIs(KEY.into(), entry.mod_revision),
        Condition::ValueIs(KEY.into(), b"shop.test".to_vec()),
    ] {
        let txn = Txn::new().only_if(holds.clone()).put("probe", "", None);
        assert!(client.commit(txn).await.expect("committed").succeeded, "{holds:?}");
    }
    for fails in [
        Condition::Present("none".into()),
        Condition::LeaseIs(KEY.into(), LeaseId::from(7)),
        Condition::ModRevisionIs(KEY.into(), entry.mod_revision + 1),
        Condition::ValueIs(KEY.into(), b"shop".to_vec()),
    ] {
        let txn = Txn::new().only_if(fails.clone()).delete(KEY);
        assert!(!client.commit(txn).await.expect("committed").succeeded, "{fails:?}");
    }
    assert!(client.commit(Txn::new().delete(KEY)).await.expect("committed").succeeded);
    assert_eq!(client.get(KEY).await.expect("read"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lives_until_it_is_revoked_and_takes_its_keys_along() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let lease = client.grant_lease(Duration::from_secs(60)).await.expect("granted");
    assert!(client.time_to_live(lease).await.expect("asked").expect("alive") > Duration::from_secs(50));
    client.commit(Txn::new().put(KEY, "v", Some(lease))).await.expect("committed");
    assert_eq!(client.get(KEY).await.expect("read").expect("there").lease, lease.get());

    client.revoke_lease(lease).await.expect("revoked");
    assert_eq!(client.get(KEY).await.expect("read"), None);
    assert_eq!(client.time_to_live(lease).await.expect("asked"), None);
    client.revoke_lease(lease).await.expect("revoking what has ended is fine");
    let error = client.commit(Txn::new().put(KEY, "v", Some(lease))).await.expect_err("refused");
    assert!(error.is_lease_not_found(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twelve_thousand_keys_are_listed_at_one_revision() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    for batch in 0..120 {
        let txn = (0..100).fold(Txn::new(), |txn, n| txn.put(format!("services/s{batch}/upstreams/{n}"), "v", None));
        client.commit(txn).await.expect("committed");
    }
    client.commit(Txn::new().put("services2/x", "v", None)).await.expect("committed");
    let began = Instant::now();
    let everything = client.read_snapshot("").await.expect("listed");
    report("12,001 keys listed", began.elapsed());
    assert_eq!(everything.entries.len(), 12_001);
    assert!(everything.entries.is_sorted_by(|one, other| one.key < other.key));
    assert_eq!(everything.revision, 122);
    assert!(everything.cluster != 0 && everything.raft_term != 0);
    assert_eq!(client.read_snapshot("services").await.expect("listed").entries.len(), 12_000);
    assert_eq!(client.read_snapshot("services/s7/upstreams/").await.expect("listed").entries.len(), 100);
    assert_eq!(client.read_snapshot("balancers/").await.expect("listed").entries.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_larger_than_a_message_may_be_is_asked_for_in_smaller_ones() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    for n in 0..80 {
        client.commit(Txn::new().put(format!("big/{n}"), vec![b'x'; 1 << 20], None)).await.expect("committed");
    }
    let began = Instant::now();
    let snapshot = client.read_snapshot("").await.expect("listed");
    report("80 MiB listed", began.elapsed());
    assert_eq!(snapshot.entries.len(), 80);
    assert!(snapshot.entries.iter().all(|entry| entry.value.len() == 1 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_a_frozen_etcd_ends_in_time() {
    let mut etcd = Etcd::start();
    let connected = client(&[etcd.endpoints()]);
    connected.get(KEY).await.expect("read");
    let fresh = client(&[etcd.endpoints()]);
    etcd.freeze(0);
    let began = Instant::now();
    let error = connected.commit(Txn::new().put(KEY, "v", None)).await.expect_err("frozen");
    report("a commit on a frozen etcd gave up", began.elapsed());
    assert!(matches!(error, Error::Silent { operation: Operation::Commit { .. }, .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(12));
    let began = Instant::now();
    let error = fresh.get(KEY).await.expect_err("frozen");
    report("a connect to a frozen etcd gave up", began.elapsed());
    assert!(error.is_unreachable(), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(12));
    etcd.thaw(0);
    connected.get(KEY).await.expect("thawed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_endpoint_answers_where_one_refuses_or_is_silent() {
    let etcd = Etcd::start();
    let mut frozen = Etcd::start();
    frozen.freeze(0);
    let nobody = "http://127.0.0.1:1".to_owned();
    let client = client(&[nobody.clone(), frozen.endpoints(), etcd.endpoints()]);
    assert_eq!(client.current_endpoint(), nobody);
    let began = Instant::now();
    // A write, too: nothing was sent to the others.
    client.commit(Txn::new().put(KEY, "v", None)).await.expect("committed");
    report("a refusing and a silent endpoint passed by", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(12));
    assert_eq!(client.current_endpoint(), etcd.endpoints());
    frozen.thaw(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_cannot_have_left_goes_to_the_next_endpoint() {
    let (mut first, second) = (Etcd::start(), Etcd::start());
    let client = client(&[first.endpoints(), second.endpoints()]);
    client.get(KEY).await.expect("read");
    first.kill(0);
    // By then the client knows that the connection is lost, so the write begins with a connect. Before that, the client
    // may have sent the write.
    sleep(Duration::from_millis(500)).await;
    client.commit(Txn::new().put(KEY, "v", None)).await.expect("committed");
    assert_eq!(client.current_endpoint(), second.endpoints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_endpoint_the_act_and_the_cause() {
    let error = client(&["http://127.0.0.1:1".to_owned()]).get(KEY).await.expect_err("nobody listens");
    assert_eq!(
        error.to_string(),
        "etcd at http://127.0.0.1:1 can't be reached (connecting): Connection refused (os error 111)"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_after_an_idle_restart_of_etcd_just_works() {
    let mut etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    client.get(KEY).await.expect("read");
    etcd.restart(0);
    client.commit(Txn::new().put(KEY, "v", None)).await.expect("committed");
    assert!(client.get(KEY).await.expect("read").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_refuses_is_told_in_its_words() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let many = (0..129).fold(Txn::new(), |txn, n| txn.put(format!("k{n}"), "", None));
    let error = client.commit(many).await.expect_err("129 operations").to_string();
    assert!(error.ends_with("and 126 more: too many operations in txn request"), "{error}");
    let large = Txn::new().put(KEY, vec![b'x'; 1_700_000], None);
    let error = client.commit(large).await.expect_err("1.7 MB").to_string();
    assert!(error.ends_with("request is too large"), "{error}");
    assert!(client.get(KEY).await.expect("still connected").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_given_up_leaves_nothing_behind() {
    let etcd = Etcd::start();
    let link = Link::to(&etcd.endpoints()).await;
    let client = client(&[link.endpoint()]);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    client.get(KEY).await.expect("read");
    let before = tasks();
    for _ in 0..30 {
        link.cut();
        client.get(KEY).await.expect_err("cut");
        link.mend();
        client.get(KEY).await.expect("mended");
    }
    eventually("the tasks of old connections end", Duration::from_secs(10), async || (tasks() <= before).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_since_any_revision_that_is_left() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let nothing = client.changes_since("http-services/shop/", 0).await.expect("told");
    assert_eq!((nothing.before.revision, nothing.changes.len(), nothing.revision), (1, 0, 1));

    let put = async |value: &str| {
        let committed = client.commit(Txn::new().put(KEY, value, None).put("other/x", value, None)).await;
        committed.expect("committed").revision
    };
    // More revisions than etcd sends at once to a watcher that is behind.
    let first = put("0").await;
    for number in 1..1500 {
        put(&number.to_string()).await;
    }
    client.commit(Txn::new().delete(KEY)).await.expect("committed");
    let began = Instant::now();
    let all = client.changes_since("http-services/shop/", 0).await.expect("told");
    report("1,501 changes told", began.elapsed());
    assert_eq!((all.changes.len(), all.before.entries.len(), all.revision), (1501, 0, first + 1500));
    assert!(matches!(all.changes.last(), Some(Change::Delete { key, .. }) if key == KEY));
    let some = client.changes_since("http-services/shop/", first + 1490).await.expect("told");
    assert_eq!((some.before.entries.len(), some.changes.len()), (1, 10));
    assert_eq!(client.oldest_revision("http-services/shop/").await.expect("told"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compacted_away_is_not_told_and_the_oldest_revision_is() {
    let etcd = Etcd::start();
    let client = client(&[etcd.endpoints()]);
    let mut revisions = Vec::new();
    for value in ["a", "b", "c", "d"] {
        revisions.push(client.commit(Txn::new().put(KEY, value, None)).await.expect("committed").revision);
        client.commit(Txn::new().put("short", value, None)).await.expect("committed");
        revisions.push(client.commit(Txn::new().delete("short")).await.expect("committed").revision);
    }
    // At a deletion: what watches tell of that very revision is not whole any more.
    let compacted = revisions[3];
    raw_client(&etcd).await.compact(compacted, None).await.expect("compacted");
    assert_eq!(client.oldest_revision("").await.expect("told"), compacted);
    for since in [0, compacted - 1, compacted] {
        let told = client.changes_since("", since).await.expect("told");
        assert_eq!(told.before.revision, compacted, "since {since}");
        let values: Vec<_> = told.before.entries.iter().map(|entry| entry.value.as_slice()).collect();
        assert_eq!(values, [b"b"], "since {since}");
        assert_eq!(told.changes.len(), 6, "since {since}: {:?}", told.changes);
    }
    assert!(matches!(client.read_snapshot_at("", compacted - 1).await, Err(Error::Compacted { .. })));
    let error = client.changes_since("", 1_000_000).await.expect_err("still to come").to_string();
    assert!(error.contains("future revision"), "{error}");
}
