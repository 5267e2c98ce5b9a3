//! Bad files, clashes, kills.

use std::net::TcpListener;

use haproxy::supervisor::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::http::Load;
use crate::lab::{LINGER, Lab, stat};

fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_refused_file_fails_the_restart_and_the_next_heals() {
    let lab = Lab::start_strict();
    let load = Load::on(lab.web);
    lab.configure("second", "listen broken\n    nonsense");
    let (code, output) = lab.ctl(&["restart", "haproxy"]);
    assert_eq!(code, 7, "{output}");
    assert!(output.contains("ERROR (spawn error)"), "{output}");
    assert!(lab.log().contains("unknown keyword 'nonsense'"), "{}", lab.log());
    assert!(lab.log().contains("HAProxy rejected the configuration serving=the old HAProxy,"), "{}", lab.log());
    // A successor whose file HAProxy rejected has ended the old watchdog too.
    std::thread::sleep(LINGER * 2);
    lab.assert_serves("first");
    lab.configure("third", "");
    lab.ctl_ok(&["restart", "haproxy"]);
    lab.assert_serves("third");
    load.stop_without_a_loss(&lab);
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);

    // Given up for good, with one still serving: `handover stop` is what ends that.
    lab.configure("fourth", "listen broken\n    nonsense");
    lab.ctl(&["restart", "haproxy"]);
    assert!(lab.state() == Some(State::Fatal));
    lab.handover_stop();
    assert_eq!((lab.generation(), lab.haproxys()), (None, vec![]));
}

#[test]
fn a_bind_clash_leaves_the_old_one_serving() {
    let lab = Lab::start_strict();
    let load = Load::on(lab.web);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    lab.configure("second", &format!("listen clash\n    bind {}", taken.local_addr().unwrap()));
    let (code, output) = lab.ctl(&["restart", "haproxy"]);
    assert_eq!(code, 7, "{output}");
    assert!(lab.log().contains("cannot bind socket"), "{}", lab.log());
    assert!(lab.log().contains("the new HAProxy ended before it answered status=1"), "{}", lab.log());
    lab.assert_serves("first");
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2 && lab.master_sockets() == 1);
    drop(taken);
    lab.ctl_ok(&["start", "haproxy"]);
    lab.assert_serves("second");
    load.stop_without_a_loss(&lab);
}

#[test]
fn a_new_one_that_never_answers_is_killed() {
    let lab = Lab::prepare();
    lab.configure("first", "");
    let text = std::fs::read_to_string(lab.path("haproxy.cfg")).unwrap();
    lab.write("haproxy.cfg", &text.replace("/admin.sock", "/other.sock"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_handover"))
        .args(["--wait", "1s", "--socket"])
        .arg(lab.path("admin.sock"))
        .args(["--", "haproxy", "-f"])
        .arg(lab.path("haproxy.cfg"))
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("does the configuration have `stats socket`"), "{words}");
    lab.until("nothing is left", || lab.haproxys().is_empty());
}

#[test]
fn a_killed_handover_is_followed_by_one_that_takes_over() {
    let lab = Lab::start();
    lab.until_running();
    let load = Load::on(lab.web);
    let first = lab.handover().unwrap();
    let served_by = lab.socket().show_info().unwrap().pid;
    lab.configure("second", "");
    kill_hard(first);
    lab.until("another takes over", || lab.generation().as_deref() == Some("second"));
    lab.until("the old one ends", || lab.haproxys().len() == 2);
    lab.ctl_ok(&["restart", "haproxy"]);
    load.stop_without_a_loss(&lab);
    assert_ne!(lab.socket().show_info().unwrap().pid, served_by);
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2 && lab.master_sockets() == 1);
}

#[test]
fn a_killed_haproxy_is_started_afresh() {
    let lab = Lab::start();
    let state = |name: &str| std::fs::read_to_string(lab.path(name)).unwrap();
    lab.ctl_ok(&["restart", "haproxy"]);
    assert!(state("servers.state").contains(" app "), "saved by the restart");
    for whom in ["worker", "master"] {
        lab.until_running();
        let worker = i32::try_from(lab.socket().show_info().unwrap().pid).unwrap();
        let (_, master) = stat(worker).unwrap();
        let handover = lab.handover().unwrap();
        kill_hard(if whom == "worker" { worker } else { master });
        lab.until("another serves", || {
            lab.handover().is_some_and(|pid| pid != handover) && lab.generation().as_deref() == Some("first")
        });
        assert_eq!(state("servers.state"), "1\n", "nobody was left to ask");
        lab.until("one HAProxy is left", || lab.haproxys().len() == 2 && lab.master_sockets() == 1);
    }
}

#[test]
fn after_a_killed_supervisord_the_next_one_takes_over() {
    let mut lab = Lab::start();
    let load = Load::on(lab.web);
    let first = lab.handover().unwrap();
    lab.configure("second", "");
    kill_hard(lab.supervisord());
    lab.supervise_again();
    lab.until("the second serves", || lab.generation().as_deref() == Some("second"));
    load.stop_without_a_loss(&lab);
    lab.until("the first handover ends with its HAProxy", || stat(first).is_none_or(|(state, _)| state == 'Z'));
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
}

/// The command line of each process, with a NUL behind each word.
fn all_command_lines() -> impl Iterator<Item = String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|it| std::fs::read_to_string(it.path().join("cmdline")).ok())
}

#[test]
fn handover_and_its_watchdog_log_json_beside_haproxys_own_lines() {
    let mut lab = Lab::prepare();
    lab.configure("first", "");
    lab.install();
    let program = lab.program(2).replace(" -- ", " --log-format json -- ");
    lab.supervise(crate::lab::Host::Plain, &program);
    lab.start_program();
    lab.until("the first configuration serves", || lab.generation().as_deref() == Some("first"));
    // supervisord reads nothing of the watchdog's once handover has ended.
    let socket = lab.path("admin.sock").display().to_string();
    let is_watchdog = |line: &String| line.contains("\0linger\0") && line.contains(&socket);
    // The first process of a session runs the same words for a moment.
    lab.until("the watchdog", || all_command_lines().filter(is_watchdog).count() == 1);
    let watchdogs: Vec<String> = all_command_lines().filter(is_watchdog).collect();
    assert!(watchdogs[0].contains("\0--log-format\0json\0"), "{watchdogs:?}");
    lab.ctl_ok(&["stop", "haproxy"]);
    lab.until("no HAProxy is left", || lab.haproxys().is_empty());
    lab.configure("second", "listen broken\n    nonsense");
    lab.ctl(&["start", "haproxy"]);
    let log = lab.log();
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let objects = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let messages: Vec<String> =
        objects.map(|it| format!("{} {}", it["level"], it["message"])).map(|it| it.replace('"', "")).collect();
    for wanted in ["INFO HAProxy serves", "ERROR HAProxy rejected the configuration"] {
        assert!(messages.iter().any(|it| it == wanted), "{wanted}: {messages:#?}\n{log}");
    }
    assert!(log.contains("unknown keyword 'nonsense'"), "HAProxy's own line: {log}");
    let of_handover = log.lines().filter(|line| line.contains("handover::"));
    assert!(of_handover.clone().all(|line| line.starts_with('{')), "{log}");
}
