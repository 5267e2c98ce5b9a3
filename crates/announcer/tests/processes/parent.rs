//! The announcer as a parent of what it runs: signals, and at a terminal.

use std::{process::Command, time::Duration};

use lab::Process;

use crate::site::{SOON, Site};

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
fn the_app_and_the_commands_of_checks_see_no_secret_of_ours() {
    let site = Site::new();
    let check = "exec:sh -c 'env > check.new; mv check.new check'";
    let mut command = site.command(&["--check", check, "--check-timeout", "20s"]);
    for (name, value) in [
        ("ETCDCTL_USER", "eve:s3cret"),
        ("ANNOUNCER_CHECK_HEADER", "Authorization: s3cret"),
        ("ANNOUNCER_COLOR", "blue"),
    ] {
        command.env(name, value);
    }
    command.args(["--", "sh", "-c", "until [ -e check ]; do sleep 0.02; done; env"]);
    let (code, said) = site.run(&mut command);
    assert_eq!(code, 0, "{said}");
    for environment in [said, std::fs::read_to_string(site.folder.join("check")).unwrap()] {
        let has = |word: &str| environment.lines().any(|line| line.contains(word));
        assert!(has("ANNOUNCER_COLOR=blue") && has("PATH="), "{environment}");
        assert!(!has("s3cret") && !has("ETCDCTL_USER"), "{environment}");
    }
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
    // Ctrl-Z stops the job of an interactive shell, and `fg` puts it back into the foreground.
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
    // The looks at what balancers make of the record come at 0.5, 1.5, 3.5, 7.5 and 15.5 s, or up to a fifth earlier.
    std::thread::sleep(Duration::from_secs(8));
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", announcer.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    // No heartbeat is due. The connection's ping and tokio's far timers are up to seven; a timer that ticks would show.
    let woken = switches() - before;
    assert!(woken <= 10, "{woken} times in 3 s");
}
