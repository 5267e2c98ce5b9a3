//! Not one request is lost: over restarts, comings and goings, bad files, and the death of handover.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::load::{Kind, Plan, Report};
use lab::{Ground, PATIENCE, Setup, heavy_on, until, write};

/// Requests a second of each kind.
const RATE: u32 = 2_000;

/// How long the loads of HTTP/1.1 last.
const LASTS: Duration = Duration::from_secs(12);

/// How long those of HTTP/2 do: the same acts, in less time.
const LASTS_HTTP2: Duration = Duration::from_secs(8);

/// How often a load may be too light to show anything.
const TRIES: u32 = 3;

/// Does something `times` times, evenly over the load's time.
fn spread(lasts: Duration, times: u32, mut act: impl FnMut(u32)) {
    let start = Instant::now();
    for number in 0..times {
        act(number);
        sleep((lasts * (number + 1) / times).saturating_sub(start.elapsed()));
    }
}

/// Nothing is lost while `act` goes on: under per-request and keep-alive load at once, or one after the other where the
/// machine is too slow for both, and under HTTP/2.
fn nothing_lost(act: impl Fn(&mut Ground, Duration)) {
    let under = |kinds: &[Kind], lasts| -> Vec<Report> {
        let (_turn, mut ground) = heavy_on(Ground::new);
        let reports = ground.under_load(kinds, RATE, |ground| act(ground, lasts));
        reports.iter().for_each(|(_, report)| report.assert_nothing_lost());
        ground.balancer.wait_in_sync(PATIENCE);
        ground.wait_one_haproxy(PATIENCE);
        reports.into_iter().map(|(_, report)| report).collect()
    };
    // A machine that is busy with something else gets another chance to keep half of the pace, which is load enough to show a
    // loss; nothing may be lost meanwhile.
    let alone = |kind, lasts| {
        let keeps_pace = || under(&[kind], lasts).iter().all(|report| report.kept_pace(RATE / 2));
        assert!((0..TRIES).any(|_| keeps_pace()), "{kind:?}: the load was too light {TRIES} times, see above");
    };
    let both = [Kind::PerRequest, Kind::KeepAlive];
    if !under(&both, LASTS).iter().all(|report| report.kept_pace(RATE)) {
        both.into_iter().for_each(|kind| alone(kind, LASTS));
    }
    alone(Kind::Http2, LASTS_HTTP2);
}

#[test]
fn over_five_restarts() {
    nothing_lost(|ground, lasts| spread(lasts, 5, |_| ground.balancer.restart()));
}

#[test]
fn while_an_upstream_a_second_comes_and_goes() {
    nothing_lost(|ground, lasts| {
        let mut leaving = Vec::new();
        spread(lasts, lasts.as_secs() as u32, |second| {
            ground.arrive(4 + second as usize);
            let mut oldest = ground.apps.remove(0);
            oldest.terminate();
            leaving.push(oldest);
        });
        for app in leaving {
            assert!(app.wait().success(), "a polite stop is a success");
        }
    });
}

#[test]
fn with_bad_files_pushed_in_the_middle() {
    nothing_lost(|ground, lasts| {
        let balancer = &ground.balancer;
        let refused = |file: &std::path::Path| {
            let output = balancer.ctl(&["restart", "haproxy"]);
            assert!(!output.status.success(), "a restart with {} in place must fail", file.display());
        };
        spread(lasts, 4, |quarter| match quarter {
            0 => {
                // It would put its own file back before anybody reads the garbage.
                assert!(balancer.ctl(&["stop", "confgen"]).status.success());
                write(balancer.haproxy_cfg(), "this is no configuration\n");
                refused(&balancer.haproxy_cfg());
            }
            1 => {
                // It writes the file anew, and starts the program, which is FATAL by now.
                ground.etcd.put("http-services/blog/domain", "blog.test");
                assert!(balancer.ctl(&["start", "confgen"]).status.success());
                balancer.wait_in_sync(PATIENCE);
                balancer.wait_running("haproxy");
            }
            2 => {
                let bad = balancer.folder().join("conf.d/bad.cfg");
                write(&bad, "backend half\n    balance sideways\n");
                refused(&bad);
                std::fs::remove_file(bad).unwrap();
            }
            _ => {
                // confgen may be at a restart of its own, now that it can.
                until(PATIENCE, "confgen to be in sync", || {
                    balancer.asked("/ready").is_ok_and(|answer| answer.status == 200)
                });
                balancer.restart();
            }
        });
    });
}

#[test]
fn with_handover_killed() {
    nothing_lost(|ground, lasts| {
        spread(lasts, 4, |_| {
            // supervisord gives a program up that dies again and again before its `startsecs`.
            ground.balancer.wait_running("haproxy");
            ground.balancer.kill("haproxy");
            ground.balancer.wait_running("haproxy");
        });
    });
}

/// The same apps and file, restarted as supervisord restarts any program: so it is known that the zeros above are
/// handover's doing.
#[test]
fn but_a_plain_restart_loses_some() {
    let (_turn, ground) = heavy_on(|| {
        let build = Ground::build().http("shop", Ground::HOST, &["shop-1"]).with(Setup::plain);
        let ground = build.launch();
        ground.balancer.wait_status(PATIENCE, Ground::HOST, "/", 200);
        ground.balancer.wait_in_sync(PATIENCE);
        ground
    });
    let balancer = &ground.balancer;
    for kind in [Kind::PerRequest, Kind::KeepAlive] {
        let load = Plan::new(kind, balancer.http(), Ground::HOST).rate(RATE).start();
        sleep(Duration::from_secs(1));
        balancer.restart();
        sleep(Duration::from_secs(1));
        let report = load.stop();
        println!("{kind:?}: {report}");
        assert!(!report.failures.is_empty(), "a plain restart closes the ports for a while:\n{report}");
    }
}
