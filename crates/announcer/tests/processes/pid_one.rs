//! The announcer as a parent: PID 1 of its own PID namespace, and at a terminal.

use std::{process::Command, time::Duration};

use lab::Process;

use crate::site::{SOON, Site};

/// An announcer that is PID 1, with `/proc` of its own. unshare passes its status on.
pub(crate) fn as_pid_one(site: &Site, flags: &[&str], script: &str) -> Process {
    let announcer = site.command(flags);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(announcer.get_program());
    command.args(announcer.get_args()).args(["--", "sh", "-c", script]).current_dir(&*site.folder);
    Process::start(&site.folder, "unshare", &mut command)
}

#[test]
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
fn a_stop_of_the_container_is_a_drain() {
    let site = Site::new();
    // PID 1 is told by its namespace: unshare itself does not pass signals on.
    let script =
        r#"trap 'exit 6' TERM; until [ -e go ]; do sleep 0.02; done; kill -TERM 1; while :; do sleep 0.02; done"#;
    let mut unshare = as_pid_one(&site, &["--drain", "300ms"], script);
    site.until_registered();
    lab::write(site.folder.join("go"), "");
    assert_eq!(unshare.wait(SOON).code(), Some(6));
    assert_eq!(site.history(crate::site::KEY), [site.address().to_string(), site.value("drain"), String::new()]);
}

#[test]
fn the_app_starts_with_a_clean_slate() {
    let site = Site::new();
    let announcer = site.command(&[]);
    // Started by something that ignores SIGHUP and SIGUSR1, as nohup and some cron do.
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap '' HUP USR1; exec "$@""#, "sh"]).arg(announcer.get_program());
    let script = r#"ps -o pid=,pgid= -p $$ > group; exec grep -E '^Sig(Blk|Ign)' /proc/self/status > masks"#;
    command.args(announcer.get_args()).args(["--", "sh", "-c", script]).current_dir(&*site.folder);
    command.env("NOTIFY_SOCKET", "/nowhere");
    let mut process = Process::start(&site.folder, "announcer", &mut command);
    assert_eq!(process.wait(SOON).code(), Some(0));
    let masks = site.until_file("masks");
    // 32 and 33 are glibc's own.
    let numbers = masks.lines().map(|line| u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap());
    assert_eq!(numbers.map(|mask| mask & 0x7fff_ffff).collect::<Vec<_>>(), [0, 0], "{masks}");
    let group = site.until_file("group");
    let ids: Vec<_> = group.split_whitespace().collect();
    assert_eq!(ids[0], ids[1], "the leader of its own group");
}

#[test]
fn at_a_terminal_the_app_has_the_foreground() {
    let site = Site::new();
    let announcer = site.command(&["--drain", "0s"]);
    let words = announcer.get_args().map(|word| word.to_str().unwrap());
    // A background process that reads from the terminal would be stopped for it.
    let script = r#"read line; echo "got $line" > answer"#;
    let line =
        format!("{} {} -- sh -c '{script}'", announcer.get_program().display(), words.collect::<Vec<_>>().join(" "));
    let mut command = Command::new("sh");
    command.args(["-c", r#"(sleep 0.5; echo hello; sleep 1) | script -qec "$0" /dev/null"#, &line]);
    command.current_dir(&*site.folder);
    let mut terminal = Process::start(&site.folder, "script", &mut command);
    assert_eq!(site.until_file("answer"), "got hello");
    assert_eq!(terminal.wait(SOON).code(), Some(0));
}

#[test]
fn ctrl_z_gives_the_shell_its_terminal_back() {
    let site = Site::new();
    let announcer = site.command(&["--drain", "0s"]);
    let words = announcer.get_args().map(|word| word.to_str().unwrap());
    let line = format!("{} {}", announcer.get_program().display(), words.collect::<Vec<_>>().join(" "));
    // An interactive shell, whose job stops as somebody presses Ctrl-Z, and is put back into the foreground.
    let script = format!(
        "set -m\n{line} -- sh -c 'echo > running; read line; echo \"got $line\" > answer'\necho > suspended; fg >/dev/null\n"
    );
    lab::write(site.folder.join("script.sh"), script);
    let keys = r"(until [ -e running ]; do sleep 0.05; done; sleep 0.2; printf '\032'
        until [ -e suspended ]; do sleep 0.05; done; sleep 0.3; echo hello; sleep 1)";
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{keys} | script -qec 'bash script.sh' /dev/null")]).current_dir(&*site.folder);
    let mut terminal = Process::start(&site.folder, "script", &mut command);
    assert_eq!(site.until_file("answer"), "got hello");
    assert!(site.folder.join("suspended").exists());
    terminal.wait(SOON);
}

#[test]
fn idle_it_sleeps() {
    let site = Site::new();
    let announcer = site.beside("announcer", &["--ttl", "30s"]);
    site.until_registered();
    std::thread::sleep(Duration::from_millis(300));
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", announcer.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    // No heartbeat is due; a timer that ticks would show.
    let woken = switches() - before;
    assert!(woken <= 5, "{woken} times in 3 s");
}
