//! Users, roles, tokens and TLS.

use std::time::{Duration, Instant};

use etcd_client::{Permission, PermissionType};
use lab::{Authority, Etcd, Scratch, write};
use registry::{Args, Client, Error, Event, FollowOptions, Operation, Txn};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Link, Mirror, PREFIX, args, eventually, raw_client, report};

const LIMIT: Duration = Duration::from_secs(20);

/// An etcd with a root user and the user `eve`, which may read and write below `<prefix>/own/`.
async fn guarded(flags: &[&str]) -> Etcd {
    let etcd = Etcd::with_flags(flags);
    let mut raw = raw_client(&etcd).await;
    raw.user_add("root", "root", None).await.expect("added");
    raw.user_grant_role("root", "root").await.expect("granted");
    raw.role_add("own").await.expect("added");
    let own = Permission::new(PermissionType::Readwrite, format!("{PREFIX}/own/")).with_prefix();
    raw.role_grant_permission("own", own).await.expect("granted");
    raw.user_add("eve", "secret", None).await.expect("added");
    raw.user_grant_role("eve", "own").await.expect("granted");
    raw.auth_enable().await.expect("enabled");
    etcd
}

async fn root(etcd: &Etcd) -> etcd_client::Client {
    let options = etcd_client::ConnectOptions::new().with_user("root", "root");
    etcd_client::Client::connect([etcd.endpoints()], Some(options)).await.expect("root may")
}

fn as_user(endpoint: String, user: &str) -> Args {
    Args { user: Some(user.parse().expect("a user")), ..args(&[endpoint]) }
}

fn connect(args: Args) -> Client {
    Client::new(args.resolve().expect("valid options"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_roles_forbid_is_named() {
    let etcd = guarded(&[]).await;
    let eve = connect(as_user(etcd.endpoints(), "eve:secret"));
    eve.commit(Txn::new().put("own/a", "", None)).await.expect("hers");
    let error = eve.get("other").await.expect_err("not hers");
    assert_eq!(
        error.to_string(),
        "etcd's roles forbid user eve reading /haproxy-discover/other: it needs the permission read; \
         one operation outside the roles denies a whole transaction"
    );
    let error = eve.commit(Txn::new().put("own/b", "", None).put("other", "", None)).await.expect_err("not hers");
    let keys = ["own/b", "other"].map(|key| format!("{PREFIX}/{key}")).to_vec();
    let is_named = matches!(&error, Error::PermissionDenied { operation: Operation::Commit { writes, .. }, .. } if *writes == keys);
    assert!(is_named && error.to_string().contains("readwrite on what it writes"), "{error}");
    assert_eq!(eve.get("own/b").await.expect("hers"), None, "the whole transaction is denied");
    assert!(matches!(
        connect(as_user(etcd.endpoints(), "eve:wrong")).get("own/a").await.expect_err("wrong"),
        Error::Login { .. }
    ));
    assert!(matches!(connect(args(&[etcd.endpoints()])).get("own/a").await.expect_err("nobody"), Error::Login { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permission_denied_until_it_is_granted() {
    let etcd = guarded(&[]).await;
    let eve = connect(as_user(etcd.endpoints(), "eve:secret"));
    let mut mirror = Mirror::of(&eve);
    mirror.until("the refusal", LIMIT, |mirror| mirror.losses.len() > 1).await;
    assert!(mirror.losses[0].1.contains("forbid user eve listing /haproxy-discover/"), "{:?}", mirror.losses);
    let all = Permission::new(PermissionType::Read, format!("{PREFIX}/")).with_prefix();
    root(&etcd).await.role_grant_permission("own", all).await.expect("granted");
    let took = mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    report("permission granted → followed", took);
    eve.commit(Txn::new().put("own/after", "", None)).await.expect("hers");
    mirror.until_key("own/after", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_where_nobody_has_to_be_one_is_no_error() {
    let etcd = Etcd::start();
    let eve = connect(as_user(etcd.endpoints(), "eve:secret"));
    eve.commit(Txn::new().put("a", "", None)).await.expect("committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_expired_is_replaced() {
    let etcd = guarded(&["--auth-token-ttl=2"]).await;
    let all = Permission::new(PermissionType::Readwrite, format!("{PREFIX}/")).with_prefix();
    root(&etcd).await.role_grant_permission("own", all).await.expect("granted");
    let link = Link::to(&etcd.endpoints()).await;
    let folder = Scratch::new();
    let password = folder.join("password");
    write(&password, "secret\n");
    let password_file = Some(password.clone());
    let eve = connect(Args { password_file, ..as_user(link.endpoint(), "eve") });
    let mut lease = eve.keep_lease(Duration::from_secs(3), CancellationToken::new());
    let mut mirror = Mirror::of(&eve);
    mirror.until("the snapshot", LIMIT, |mirror| mirror.snapshots == 1).await;
    let id = *lease.wait_for(Option::is_some).await.expect("held");
    sleep(Duration::from_secs(5)).await;

    let began = Instant::now();
    eve.commit(Txn::new().put("after", "", None)).await.expect("committed");
    report("token expired → committed", began.elapsed());
    mirror.until_key("after", LIMIT).await;
    link.cut();
    mirror.until("the loss", LIMIT, |mirror| !mirror.connected).await;
    link.mend();
    let took = mirror.until("the way back", LIMIT, |mirror| mirror.connected).await;
    report("cut for a moment with a token that has expired → back", took);
    assert_eq!(*lease.borrow(), id, "the lease lives on");

    // The password changes, and the file with it.
    root(&etcd).await.user_change_password("eve", "other").await.expect("changed");
    write(&password, "other");
    sleep(Duration::from_secs(4)).await;
    let put = Txn::new().put("last", "", None);
    let done = eventually("the new password", LIMIT, async || eve.commit(put.clone()).await.ok());
    done.await;
    mirror.until_key("last", LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_further_watch_after_the_token_has_expired_is_no_loss() {
    let etcd = guarded(&["--auth-token-ttl=2"]).await;
    let eve = connect(as_user(etcd.endpoints(), "eve:secret"));
    let options = FollowOptions { shares_stream: true, ..FollowOptions::default() };
    let mut first = eve.follow_key("own/a", options, CancellationToken::new());
    assert!(matches!(first.recv().await, Some(Event::Snapshot(_))));
    // Longer than the token lives on a stream that is only asked for signs of life.
    sleep(Duration::from_secs(5)).await;
    let mut second = eve.follow_key("own/b", options, CancellationToken::new());
    assert!(matches!(second.recv().await, Some(Event::Snapshot(_))));
    for (events, key) in [(&mut second, "own/b"), (&mut first, "own/a")] {
        eve.commit(Txn::new().put(key, "after", None)).await.expect("hers");
        let told = tokio::time::timeout(LIMIT, events.recv()).await.expect("in time");
        assert!(matches!(&told, Some(Event::Changes { changes, .. }) if changes.len() == 1), "{key}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_both_ways_and_read_at_each_connect() {
    let path = Scratch::new();
    issue(&path, "ca", &["server", "client"]);
    issue(&path, "other-ca", &["other-client"]);
    let flag = |flag: &str, file: &str| format!("--{flag}={}", path.join(file).display());
    let flags = [
        flag("cert-file", "server.pem"),
        flag("key-file", "server.key"),
        flag("trusted-ca-file", "ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let etcd = Etcd::with_flags(&flags.each_ref().map(String::as_str));
    let endpoint = etcd.endpoints().replace("127.0.0.1", "localhost");
    let with = |ca: &str, client: &str| {
        let file = |name: String| Some(path.join(name));
        let (cacert, cert, key) =
            (file(format!("{ca}.pem")), file(format!("{client}.pem")), file(format!("{client}.key")));
        connect(Args { cacert, cert, key, ..args(std::slice::from_ref(&endpoint)) })
    };
    with("ca", "client").commit(Txn::new().put("a", "", None)).await.expect("committed");
    let error = with("other-ca", "client").get("a").await.expect_err("another CA").to_string();
    assert!(error.contains("certificate"), "{error}");
    let stranger = with("ca", "other-client");
    assert!(stranger.get("a").await.expect_err("a stranger's certificate").is_unreachable());
    for suffix in ["pem", "key"] {
        let copy = |name: &str| path.join(format!("{name}.{suffix}"));
        std::fs::copy(copy("client"), copy("other-client")).expect("copied");
    }
    stranger.get("a").await.expect("the replaced certificate is taken");
    let error = with("ca", "missing").get("a").await.expect_err("no such file").to_string();
    assert!(error.contains("missing.pem (--cert) can't be read"), "{error}");
}

/// Writes an authority's certificate, and certificates with their keys that it issued.
fn issue(folder: &Scratch, name: &str, certificates: &[&str]) {
    let authority = Authority::new(name);
    write(folder.join(format!("{name}.pem")), authority.pem());
    for name in certificates {
        let certificate = authority.issue(&["localhost", "127.0.0.1"]);
        let (pem, key) = certificate.parts();
        write(folder.join(format!("{name}.pem")), pem);
        write(folder.join(format!("{name}.key")), key);
    }
}
