//! The announcer as PID 1 of a PID namespace of its own.

use std::{process::Command, time::Duration};

use lab::Process;

use crate::checks::OFTEN;
use crate::site::{KEY, SOON, Site};

/// An announcer that is PID 1, with `/proc` of its own. unshare passes its status on.
fn as_pid_one(site: &Site, flags: &[&str], script: &str) -> Process {
    let announcer = site.command(flags);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(announcer.get_program());
    command.args(announcer.get_args()).args(["--", "sh", "-c", script]).current_dir(&*site.folder);
    Process::start(&site.folder, "unshare", &mut command)
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn orphans_are_reaped_and_the_status_is_kept() {
    let site = Site::new();
    // Each subshell leaves a child behind, which PID 1 inherits as it lives and must reap when it ends.
    let script = r#"for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.1 &); done
        while ls /proc | grep -q '^[0-9]*$' && pgrep -x sleep >/dev/null; do read _ <go 2>/dev/null; done
        sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l > zombies; cat /proc/1/comm > first; exit 4"#;
    let mut unshare = as_pid_one(&site, &[], script);
    assert_eq!(unshare.wait(SOON).code(), Some(4));
    assert_eq!(site.until_file("first"), "announcer");
    assert_eq!(site.until_file("zombies"), "0");
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn signals_for_the_app_reach_its_whole_group() {
    let site = Site::new();
    let script = r#"for name in HUP QUIT USR1 USR2 WINCH; do trap "echo $name >> got" $name; done
        (trap '' HUP QUIT USR1 WINCH; trap 'echo child >> got; exit' USR2; while :; do sleep 0.02; done) &
        sleep 0.1
        for name in HUP QUIT USR1 WINCH USR2; do kill -$name 1; sleep 0.1; done
        until [ "$(wc -l < got)" -ge 6 ]; do sleep 0.02; done; sort got | tr '\n' ' ' > sorted; echo >> sorted"#;
    let mut unshare = as_pid_one(&site, &[], script);
    assert_eq!(unshare.wait(SOON).code(), Some(0));
    assert_eq!(site.until_file("sorted"), "HUP QUIT USR1 USR2 WINCH child ");
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn all_that_the_app_has_started_may_end_before_pid_1_does() {
    let site = Site::new();
    // A shell that ends at once, an app that takes a second, and a daemon in a session of its own.
    let slow = |name: &str| {
        format!(r#"trap "sleep 1; echo > {name}; exit" TERM; echo > {name}-runs; while :; do sleep 0.05; done"#)
    };
    let script = format!(
        "setsid sh -c '{}' & sh -c '{}' & until [ -e go ] && [ -e app-runs ] && [ -e daemon-runs ]; do sleep 0.02; done
        kill -TERM 1; wait; true",
        slow("daemon"),
        slow("app")
    );
    let mut unshare = as_pid_one(&site, &["--drain", "0s"], &script);
    site.until_registered();
    lab::write(site.folder.join("go"), "");
    assert_eq!(unshare.wait(SOON).code(), Some(143), "{}", unshare.log());
    for name in ["app", "daemon"] {
        assert!(site.folder.join(name).exists(), "{name}: {}", unshare.log());
    }
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn a_stop_of_the_container_is_a_drain() {
    let site = Site::new();
    // PID 1 is told by its namespace: unshare itself does not pass signals on.
    let script =
        r#"trap 'exit 6' TERM; until [ -e go ]; do sleep 0.02; done; kill -TERM 1; while :; do sleep 0.02; done"#;
    let mut unshare = as_pid_one(&site, &["--drain", "300ms"], script);
    site.until_registered();
    lab::write(site.folder.join("go"), "");
    assert_eq!(unshare.wait(SOON).code(), Some(6));
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn commands_as_pid_1_keep_their_status_and_leave_nothing_behind() {
    let site = Site::new();
    // The check leaves an orphan each time, and hangs while `hang` is there.
    let check = "exec:sh -c '(sleep 0.2 &); test ! -e hang || sleep 60; test -e works'";
    let script = r#"for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.1 &); done
        until [ -e go ]; do sleep 0.02; done; sleep 0.5
        # A check that has just ended is a zombie for a moment; one that was forgotten still is later.
        look() { grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | sort; }
        look > first; sleep 0.5; look > second; comm -12 first second | wc -l > zombies
        pgrep -fx 'sleep 60' > left; exit 4"#;
    let flags: Vec<_> = OFTEN.into_iter().chain(["--check", check, "--check-fall", "1"]).collect();
    let mut unshare = as_pid_one(&site, &flags, script);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(site.etcd.get(KEY), None);
    lab::write(site.folder.join("works"), "");
    site.until_registered();
    lab::write(site.folder.join("hang"), "");
    site.until_value(&site.value("down"));
    std::fs::remove_file(site.folder.join("hang")).unwrap();
    site.until_registered();
    lab::write(site.folder.join("go"), "");
    assert_eq!(unshare.wait(SOON).code(), Some(4), "the app's status, not a check's");
    assert_eq!(site.until_file("zombies"), "0");
    assert_eq!(std::fs::read_to_string(site.folder.join("left")).unwrap(), "", "what hung was killed");
}
