//! An app whose main process is a shell that ends before it.

use std::time::{Duration, Instant};

use lab::{Process, Signal, until};

use crate::site::{KEY, SOON, Site};

/// An entry script without `exec`: TERM ends the shell at once, and the app takes a second.
const SLOW: &str =
    r#"sh -c 'trap "sleep 1; echo > done; exit" TERM; echo > running; while :; do sleep 0.05; done'; true"#;

fn wrap(site: &Site, flags: &[&str], script: &str) -> Process {
    let announcer = site.wrap(flags, script);
    site.until_registered();
    site.until_file("running");
    announcer
}

#[test]
fn what_a_shell_has_started_may_end_in_its_time() {
    let site = Site::new();
    let mut announcer = wrap(&site, &["--drain", "0s"], SLOW);
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(143), "the shell's status");
    assert!(site.folder.join("done").exists(), "{}", announcer.log());
    assert_eq!(site.etcd.get(KEY), None);
}

#[test]
fn what_a_shell_has_started_and_doesnt_end_is_killed() {
    let site = Site::new();
    let script = r#"sh -c 'trap "" TERM; echo > running; while :; do sleep 0.05; done'; true"#;
    let mut announcer = wrap(&site, &["--drain", "0s", "--stop-timeout", "700ms"], script);
    let start = Instant::now();
    announcer.signal(Signal::SIGTERM);
    assert_eq!(announcer.wait(SOON).code(), Some(143));
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    assert!(announcer.log().contains("stop timed out, killing the app"), "{}", announcer.log());
    until(SOON, "the end of all", || announcer.family().is_empty());
}

#[test]
fn an_app_that_ends_by_itself_is_withdrawn_at_once_and_its_rest_is_stopped() {
    let site = Site::new();
    let script = format!("({SLOW}) & until [ -e go ]; do sleep 0.02; done; exit 4");
    let mut announcer = wrap(&site, &[], &script);
    lab::write(site.folder.join("go"), "");
    until(SOON, "the withdrawal", || site.etcd.get(KEY).is_none());
    assert_eq!(announcer.wait(SOON).code(), Some(4));
    assert!(site.folder.join("done").exists(), "{}", announcer.log());
}

#[test]
fn a_second_signal_does_not_wait_for_the_rest() {
    let site = Site::new();
    let script = r#"(trap "" TERM; echo > running; while :; do sleep 0.05; done) & until [ -e go ]; do sleep 0.02; done; exit 4"#;
    let mut announcer = wrap(&site, &["--stop-timeout", "10m"], script);
    lab::write(site.folder.join("go"), "");
    until(SOON, "the withdrawal", || announcer.log().contains("the app has ended"));
    until(SOON, "the withdrawal", || site.etcd.get(KEY).is_none());
    announcer.signal(Signal::SIGTERM);
    announcer.signal(Signal::SIGTERM);
    let mut sent = 0;
    until(SOON, "the end", || {
        sent += 1;
        if announcer.running() && sent % 5 == 0 {
            announcer.signal(Signal::SIGTERM);
        }
        (!announcer.running()).then_some(())
    });
    assert_eq!(announcer.wait(SOON).code(), Some(4));
}
