//! etcd, leases and confgen fail while requests go on: none is lost, and the state converges by itself.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::thread::{scope, sleep};
use std::time::Duration;

use lab::http::Request;
use lab::load::Kind;
use lab::{App, Etcd, Ground, Signal, medium, until};

/// Requests a second: enough to see any outage, few enough to leave the cores to what is tested. On a busy machine half of it has
/// to come about, which sees an outage of some milliseconds.
const RATE: u32 = 500;

/// How long etcd is away: longer than the announcers' leases, whose TTL is 10 s.
const AWAY: Duration = Duration::from_secs(12);

/// What a fault still has to bring, it brings within this: a lease that ends late, a round that waited.
const AFTERMATH: Duration = Duration::from_secs(4);

/// Everybody has connected, registered and rendered again: a back-off, a lease's end, a restart.
const CONVERGES: Duration = Duration::from_secs(40);

fn nothing_lost(ground: &mut Ground, act: impl FnOnce(&mut Ground)) {
    let act = |ground: &mut Ground| {
        act(ground);
        assert_converges(ground, "after");
        sleep(AFTERMATH);
        assert_converges(ground, "later");
    };
    for (_, report) in ground.under_load(&[Kind::PerRequest, Kind::KeepAlive], RATE, act) {
        report.assert_nothing_lost();
        report.assert_pace(RATE);
    }
}

/// What is written now is served soon, and every app that is announced is too.
#[track_caller]
fn assert_converges(ground: &Ground, probe: &str) {
    let apps: Vec<&App> = ground.apps.iter().collect();
    ground.etcd.http_service(probe, &format!("{probe}.test"), &apps);
    ground.balancer.wait_status(CONVERGES, &format!("{probe}.test"), "/", 200);
    until(CONVERGES, "all three apps to be registered", || {
        let keys = ground.etcd.keys("http-services/shop/upstreams/");
        if keys.len() == 3 { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    ground.balancer.wait_servers(CONVERGES, "http-shop", 3);
    ground.balancer.wait_in_sync(CONVERGES);
}

#[test]
fn etcd_killed() {
    let _turn = medium();
    let mut ground = Ground::new();
    nothing_lost(&mut ground, |ground| {
        ground.etcd.kill(0);
        sleep(AWAY);
        ground.etcd.restart(0);
    });
}

#[test]
fn etcd_frozen() {
    let _turn = medium();
    let mut ground = Ground::new();
    nothing_lost(&mut ground, |ground| {
        let before = leases(ground);
        ground.etcd.freeze(0);
        sleep(AWAY);
        ground.etcd.thaw(0);
        ground.etcd.wait_ready();
        // etcd has deleted every leased key before anybody could renew it.
        until(CONVERGES, "all to register again", || {
            let now = leases(ground);
            if now.iter().zip(&before).all(|(now, before)| now.is_some() && now != before) {
                Ok(())
            } else {
                Err(format!("{before:?}, now {now:?}"))
            }
        });
    });
}

#[test]
fn etcd_compacted_while_confgen_is_stopped() {
    let _turn = medium();
    let mut ground = Ground::new();
    nothing_lost(&mut ground, |ground| {
        assert!(ground.balancer.ctl(&["stop", "confgen"]).status.success());
        many_changes(ground);
        ground.etcd.compact();
        assert!(ground.balancer.ctl(&["start", "confgen"]).status.success());
    });
}

/// Its watch breaks, and the revision that it would resume from is gone when it comes back.
#[test]
fn etcd_compacted_while_confgen_is_frozen() {
    let _turn = medium();
    let mut ground = Ground::new();
    nothing_lost(&mut ground, |ground| {
        let confgen = ground.balancer.signal("confgen", Signal::SIGSTOP);
        ground.etcd.restart(0);
        many_changes(ground);
        ground.etcd.compact();
        ground.balancer.signal("confgen", Signal::SIGCONT);
        until(CONVERGES, "confgen to go on", || ground.balancer.file().contains("http-busy"));
        assert_eq!(ground.balancer.pid("confgen"), Some(confgen), "it is the same process that found its way back");
    });
}

#[test]
fn lease_revoked_behind_the_announcers_back() {
    let _turn = medium();
    let mut ground = Ground::new();
    nothing_lost(&mut ground, |ground| {
        for app in ["shop-1", "shop-2", "shop-3"] {
            let key = format!("http-services/shop/upstreams/{app}");
            let lease = ground.etcd.lease_of(&key).expect("an announced app");
            assert_ne!(lease, 0, "an announced upstream hangs on a lease");
            ground.etcd.revoke(lease);
            until(CONVERGES, &format!("{app} to register again"), || {
                ground.etcd.lease_of(&key).is_some_and(|again| again != lease)
            });
        }
    });
}

#[test]
fn confgen_killed_while_it_writes() {
    let _turn = medium();
    let mut ground = Ground::new();
    let mut random = fastrand::Rng::with_seed(7);
    nothing_lost(&mut ground, |ground| {
        scope(|scope| {
            scope.spawn(|| pour(&ground.etcd));
            for _ in 0..25 {
                // A render and a check take some tens of milliseconds: these moments fall before, into and after them.
                sleep(Duration::from_millis(random.u64(50..400)));
                ground.balancer.kill("confgen");
            }
        });
    });
    let last = Request::get(&format!("poured-{}.test", POURED - 1), "/").send(ground.balancer.http());
    assert_eq!(last.expect("an answer").status, 503, "the last change that poured in: a service without upstreams");
}

/// The leases that the three apps hang on.
fn leases(ground: &Ground) -> Vec<Option<i64>> {
    (1..=3).map(|number| ground.etcd.lease_of(&format!("http-services/shop/upstreams/shop-{number}"))).collect()
}

fn many_changes(ground: &Ground) {
    for number in 0..50 {
        ground.etcd.put("http-services/busy/domain", format!("busy-{number}.test"));
    }
}

/// Changes that pour in, one about every 20 ms.
const POURED: u32 = 600;

fn pour(etcd: &Etcd) {
    for number in 0..POURED {
        etcd.put("http-services/poured/domain", format!("poured-{number}.test"));
        sleep(Duration::from_millis(20));
    }
}
