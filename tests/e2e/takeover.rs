//! Restarts that fail before the new HAProxy has taken over: what serves goes on serving, and confgen says why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fs::{read_dir, remove_file, rename};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use lab::load::Kind;
use lab::{Balancer, Ground, PATIENCE, light, medium, until, write};

/// After a start that fails, confgen pauses for up to 30 s.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

/// Longer than several of handover's `--linger`.
const FAILS_FOR: Duration = Duration::from_secs(12);

/// Requests a second. On a busy machine half of it has to come about.
const RATE: u32 = 500;

/// Waits until `/ready` has that status and holds those words, and returns all of it.
#[track_caller]
fn wait_ready(balancer: &Balancer, status: u16, words: &str) -> String {
    until(DEADLINE, &format!("/ready to be {status} with {words:?}"), || {
        let response = balancer.asked("/ready").map_err(|error| error.to_string())?;
        let body = response.body;
        if response.status == status && body.contains(words) { Ok(body) } else { Err(body) }
    })
}

/// Whether a master answers on a socket in this directory. HAProxy 2.6 begins its master anew once the worker serves, and the
/// master ends if the directory is gone meanwhile.
fn master_answers(dir: &Path) -> bool {
    let sockets = read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    sockets.filter(|path| path.extension().is_some_and(|end| end == "sock")).any(|path| {
        let Ok(mut stream) = UnixStream::connect(path) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut answer = [0; 16];
        stream.write_all(b"show proc\n").is_ok() && stream.read(&mut answer).is_ok_and(|length| length > 0)
    })
}

/// Has every start of handover fail, and returns what it is mended by.
fn break_handover(balancer: &Balancer) -> impl FnOnce() {
    let [dir, aside] = ["handover", "aside"].map(|name| balancer.folder().join(name));
    until(DEADLINE, "HAProxy's master to answer", || master_answers(&dir));
    rename(&dir, &aside).unwrap();
    write(&dir, "");
    move || {
        remove_file(&dir).unwrap();
        rename(&aside, &dir).unwrap();
    }
}

#[test]
fn haproxys_own_words_are_in_the_log_in_ready_and_on_the_page() {
    let _turn = light();
    let ground = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    let balancer = &ground.balancer;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = balancer.folder().join("conf.d/mine.cfg");
    let clash = format!(
        "listen clash\n    mode http\n    timeout client 1s\n    timeout connect 1s\n    timeout server 1s\n    \
                         bind {}\n",
        taken.local_addr().unwrap()
    );
    for (text, words) in [
        (clash.as_str(), "cannot bind socket"),
        ("global\n    chroot /no/such/directory\n", "Cannot chroot"),
        ("global\n    maxconn 600000\n", "FD limit"),
    ] {
        write(&file, text);
        let ready = wait_ready(balancer, 503, words);
        assert!(!ready.contains("[NOTICE]") && ready.lines().count() == 1, "{ready}");
        for target in ["/", "/api/v1/status", "/api/v1/history"] {
            until(DEADLINE, &format!("{target} to say {words:?}"), || {
                let body = balancer.asked(target).map_err(|error| error.to_string())?.body;
                if body.contains(words) { Ok(()) } else { Err(body) }
            });
        }
        let log = balancer.log("confgen");
        assert!(log.lines().any(|line| line.contains("out of sync problem=") && line.contains(words)), "{log}");
        balancer.wait_status(DEADLINE, "shop.test", "/", 200);
        remove_file(&file).unwrap();
        balancer.ctl(&["start", "haproxy"]);
        wait_ready(balancer, 200, "in sync");
    }
}

#[test]
fn a_takeover_that_fails_loses_nothing_and_heals() {
    let _turn = medium();
    let mut ground = Ground::new();
    let reports = ground.under_load(&[Kind::PerRequest, Kind::KeepAlive], RATE, |ground| {
        let mend = break_handover(&ground.balancer);
        let app = &ground.apps[0];
        ground.etcd.http_service("late", "late.test", &[app]);
        let words = wait_ready(&ground.balancer, 503, "can't use the directory");
        assert!(words.contains("Not a directory"), "{words}");
        sleep(FAILS_FOR);
        ground.balancer.wait_status(DEADLINE, "shop.test", "/", 200);
        wait_ready(&ground.balancer, 503, "can't use the directory");
        mend();
        ground.balancer.wait_status(DEADLINE, "late.test", "/", 200);
        wait_ready(&ground.balancer, 200, "in sync");
    });
    for (_, report) in reports {
        report.assert_nothing_lost();
        report.assert_pace(RATE);
    }
}

#[test]
fn a_haproxy_that_supervisord_has_given_up_is_told_of() {
    let _turn = light();
    let ground = Ground::build().start();
    let balancer = &ground.balancer;
    balancer.wait_running("haproxy");
    let mend = break_handover(balancer);
    balancer.ctl(&["restart", "haproxy"]);
    wait_ready(balancer, 503, "the one that runs serves on");
    mend();
    until(DEADLINE, "supervisord to start it", || {
        balancer.ctl(&["start", "haproxy"]);
        let response = balancer.asked("/ready").map_err(|error| error.to_string())?;
        if response.status == 200 { Ok(()) } else { Err(response.body) }
    });
}
