//! A state directory serves one confgen at a time, and a dead one leaves it free.

use std::fs::read;
use std::process::Command;
use std::time::Duration;

use lab::{Balancer, Etcd, Pid, Process, Scratch, light};

const DEADLINE: Duration = Duration::from_secs(30);

/// How a process was started, word by word.
fn command_line(pid: Pid) -> Vec<String> {
    let words = read(format!("/proc/{pid}/cmdline")).unwrap();
    words
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[test]
fn a_second_confgen_is_refused_and_told_whose_the_directory_is() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Balancer::start(&etcd);
    balancer.wait_settled(DEADLINE);
    let first = balancer.pid("confgen").unwrap();
    let folder = Scratch::new();
    // With all of its options, but for the port, which can be had once too.
    let mut options = command_line(first);
    let program = options.remove(0);
    let admin = options.iter().position(|word| word == "--admin").unwrap();
    options.drain(admin..admin + 2);
    let confgen = |form: &[&str]| {
        let mut command = Command::new(&program);
        let mut process = Process::start(&folder, &form.concat(), command.args(form).args(&options));
        (process.wait(DEADLINE).code(), process.log())
    };
    let state = balancer.folder().join("state");
    let words =
        |pid: Pid| format!("use {}: another confgen, process {pid}, works with it; stop that one", state.display());
    for form in [&["--admin", "off"][..], &["once"]] {
        let (code, log) = confgen(form);
        assert!(code == Some(1) && log.contains(&words(first)), "{form:?}: {code:?} {log}");
    }
    // Who only looks disturbs nobody.
    let (code, log) = confgen(&["render"]);
    assert!(code == Some(0) && log.contains("setenv CONFGEN_GEN"), "{code:?} {log}");
    let (code, log) = confgen(&["diff"]);
    assert_eq!(code, Some(0), "{log}");

    // One that is killed has it no longer; one that stops neither.
    balancer.kill("confgen");
    balancer.wait_settled(DEADLINE);
    let second = balancer.pid("confgen").unwrap();
    assert_ne!(second, first);
    let (code, log) = confgen(&["once"]);
    assert!(code == Some(1) && log.contains(&words(second)), "{code:?} {log}");
    assert!(balancer.ctl(&["stop", "confgen"]).status.success());
    let (code, log) = confgen(&["once"]);
    assert!(code == Some(0) && log.contains("HAProxy runs what the store asks for"), "{code:?} {log}");
}
