//! Takeovers that fail: what serves goes on serving, one HAProxy is left, and its words are told.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use haproxy::supervisor::State;
use haproxy::{failure, masters};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::http::Load;
use crate::lab::{LINGER, Lab};

/// The words that handover has left for confgen.
fn words(lab: &Lab) -> Option<String> {
    failure::read_message(&lab.path("admin.sock"), SystemTime::UNIX_EPOCH)
}

/// A named fault in a lab between two restarts. `Lab::install` and `mend` undo it.
type Way = (&'static str, fn(&Lab));

fn place(lab: &Lab) -> std::path::PathBuf {
    masters::nested_directory(&lab.path("admin.sock"))
}

/// Every way fails before the new HAProxy has taken over. Scripts stand for a handover that is told something wrong.
const WAYS: [Way; 8] = [
    ("handover is missing", |lab| fs::remove_file(lab.path("bin/handover")).unwrap()),
    ("handover is not executable", |lab| {
        let copy = lab.path("bin/copy");
        fs::copy(lab.path("bin/handover"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&copy, lab.path("bin/handover")).unwrap();
    }),
    ("a wrong option", |lab| {
        let handover = env!("CARGO_BIN_EXE_handover");
        lab.script("handover", &format!("exec {handover} --no-such-option \"$@\""));
    }),
    ("a missing group", |lab| {
        let handover = env!("CARGO_BIN_EXE_handover");
        lab.script("handover", &format!("exec {handover} --group no-such-group \"$@\""));
    }),
    ("handover is killed at once", |lab| lab.script("handover", "kill -9 $$")),
    ("HAProxy is missing", |lab| fs::remove_file(lab.path("bin/haproxy")).unwrap()),
    ("the directory is no directory", |lab| {
        fs::rename(place(lab), lab.path("aside")).unwrap();
        lab.write("handover", "");
    }),
    ("no process can be started", |lab| {
        let handover = env!("CARGO_BIN_EXE_handover");
        // A full process table would need a separate user. A limit on the memory makes fork fail too.
        lab.script("handover", &format!("ulimit -v 20000; exec {handover} \"$@\""));
    }),
];

fn mend(lab: &Lab) {
    if lab.path("aside").exists() {
        fs::remove_file(lab.path("handover")).unwrap();
        fs::rename(lab.path("aside"), place(lab)).unwrap();
    }
    lab.install();
}

#[test]
fn a_takeover_that_fails_stops_nothing() {
    let lab = Lab::start_strict();
    lab.until_running();
    let load = Load::on(lab.web);
    for (number, (way, break_it)) in WAYS.into_iter().enumerate() {
        lab.configure(&format!("broken-{number}"), "");
        break_it(&lab);
        let (code, output) = lab.ctl(&["restart", "haproxy"]);
        assert_ne!(code, 0, "{way}: {output}\n{}", lab.log());
        let before = lab.generation();
        // Longer than the watchdog would have waited for a stop.
        std::thread::sleep(LINGER * 2);
        assert!(
            before.is_some() && lab.generation() == before,
            "{way}: {before:?} {:?}\n{}",
            lab.generation(),
            lab.log()
        );
        assert_ne!(before, Some(format!("broken-{number}")), "{way}");
        lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
        mend(&lab);
        lab.configure(&format!("mended-{number}"), "");
        lab.ctl_ok(&["restart", "haproxy"]);
        lab.assert_serves(&format!("mended-{number}"));
    }
    load.stop_without_a_loss(&lab);
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
}

#[test]
fn a_stop_is_still_a_stop_after_a_takeover_has_failed() {
    let mut lab = Lab::start_strict();
    lab.until_running();
    fs::remove_file(lab.path("bin/haproxy")).unwrap();
    assert_ne!(lab.ctl(&["restart", "haproxy"]).0, 0);
    assert_eq!(lab.state(), Some(State::Fatal));
    std::thread::sleep(LINGER * 2);
    lab.assert_serves("first");
    // No handover is left that supervisord could signal. The watchdog sees that supervisord ends.
    lab.shut_down();
    lab.until("nothing is left", || lab.everyone().is_empty() && lab.haproxys().is_empty());
}

/// Each is fine for `haproxy -c`, and HAProxy doesn't start with it.
fn refusals(taken: &str) -> [(&'static str, String); 4] {
    [
        ("cannot bind socket", format!("listen clash\n    bind {taken}")),
        ("Cannot assign requested address", "listen elsewhere\n    bind 203.0.113.9:8080".to_owned()),
        ("Cannot chroot", "global\n    chroot /no/such/directory".to_owned()),
        ("FD limit", "global\n    maxconn 600000".to_owned()),
    ]
}

#[test]
fn haproxys_own_words_are_left_for_confgen() {
    let lab = Lab::start_strict();
    lab.until_running();
    assert_eq!(words(&lab), None);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for (expected, more) in refusals(&taken.local_addr().unwrap().to_string()) {
        lab.configure("second", &more);
        assert_eq!(lab.ctl(&["restart", "haproxy"]).0, 7, "{expected}\n{}", lab.log());
        let words = words(&lab).unwrap_or_default();
        assert!(words.contains(expected) && words.contains("the new HAProxy ended with status"), "{expected}: {words}");
        assert!(lab.log().contains(expected), "{}", lab.log());
        lab.assert_serves("first");
    }
    lab.configure("second", "listen broken\n    nonsense");
    assert_eq!(lab.ctl(&["restart", "haproxy"]).0, 7);
    assert!(words(&lab).unwrap().contains("unknown keyword 'nonsense'"));
    fs::remove_file(lab.path("bin/haproxy")).unwrap();
    assert_eq!(lab.ctl(&["restart", "haproxy"]).0, 7);
    assert!(words(&lab).unwrap().contains("No such file or directory"));
    lab.install();
    lab.configure("third", "");
    lab.ctl_ok(&["start", "haproxy"]);
    assert_eq!(words(&lab), None, "it is over");
}

#[test]
fn a_listener_that_its_path_no_longer_leads_to_is_not_taken_over() {
    let lab = Lab::start();
    let stock = format!("global\n    stats socket {}/admin.sock mode 660 level admin", lab.dir.display());
    lab.configure("second", &stock);
    lab.ctl_ok(&["restart", "haproxy"]);
    lab.until("the second serves", || lab.generation().as_deref() == Some("second"));
    for generation in ["third", "fourth"] {
        lab.until_running();
        lab.configure(generation, "");
        lab.rpc().restart_program("haproxy").unwrap();
        lab.until("one HAProxy is left", || {
            lab.generation().as_deref() == Some(generation)
                && lab.haproxys().len() == 2
                && lab.socket().show_info().is_ok_and(|info| !info.stopping)
        });
    }
}

#[test]
fn takeovers_that_are_cut_short_do_not_pile_up() {
    let lab = Lab::start();
    lab.until_running();
    let load = Load::on(lab.web);
    // The second HAProxy serves, and never answers on the runtime socket's path.
    lab.configure("second", "");
    let text = fs::read_to_string(lab.path("haproxy.cfg")).unwrap();
    lab.write("haproxy.cfg", &text.replace("/admin.sock", "/other.sock"));
    for _ in 0..3 {
        lab.rpc().restart_program("haproxy").unwrap();
        lab.until("the new one runs too", || lab.haproxys().len() > 2);
    }
    lab.configure("third", "");
    lab.rpc().restart_program("haproxy").unwrap();
    lab.until("one HAProxy is left", || lab.generation().as_deref() == Some("third") && lab.haproxys().len() == 2);
    load.stop_without_a_loss(&lab);
}

#[test]
fn a_killed_handover_takes_its_unfinished_haproxy_with_it() {
    let lab = Lab::start();
    lab.until_running();
    let load = Load::on(lab.web);
    lab.configure("second", "");
    lab.script("haproxy", SLOW_START);
    lab.rpc().restart_program("haproxy").unwrap();
    lab.until("the new one starts", || lab.haproxys().len() > 2);
    kill(Pid::from_raw(lab.handover().unwrap()), Signal::SIGKILL).unwrap();
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
    load.stop_without_a_loss(&lab);
}

/// HAProxy as a program that takes its time between its start and its first answer.
const SLOW_START: &str = "case \"$*\" in *-c) ;; *) sleep 3;; esac; exec haproxy \"$@\"";

#[test]
fn a_first_haproxy_outlives_the_handover_that_started_it() {
    let mut lab = Lab::prepare();
    lab.configure("first", "");
    lab.install();
    lab.script("haproxy", SLOW_START);
    lab.supervise_program();
    lab.until("HAProxy starts", || !lab.haproxys().is_empty());
    lab.script("handover", "exit 4");
    let _ = lab.rpc().restart_program("haproxy");
    // The pipe for HAProxy's output has no reader by then.
    lab.until("it serves", || lab.generation().as_deref() == Some("first"));
    std::thread::sleep(LINGER * 2);
    lab.assert_serves("first");
}

#[test]
fn a_haproxy_that_was_starting_ends_with_a_killed_supervisord() {
    let mut lab = Lab::prepare();
    lab.configure("first", "");
    lab.install();
    lab.script("haproxy", SLOW_START);
    lab.supervise_program();
    lab.until("HAProxy starts", || !lab.haproxys().is_empty());
    kill(Pid::from_raw(lab.supervisord()), Signal::SIGKILL).unwrap();
    lab.until("nothing is left", || lab.haproxys().is_empty() && lab.everyone_but_supervisord().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(lab.generation(), None);
}
