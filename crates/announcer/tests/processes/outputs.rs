//! Outputs that take nothing. The announcer does all of its work, and ends as it would with a log.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use lab::{Outlet, Process, Signal, until};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::site::{KEY, SOON, Site, leases, record};

#[test]
fn beside_an_app_it_registers_and_leaves_in_order_whatever_becomes_of_its_outputs() {
    let site = Site::new();
    site.balancer("lb", "it says nothing that makes sense");
    for outlet in Outlet::ALL {
        let command = site.command(&["--drain", "500ms", "--log-level", "trace"]);
        let mut announcer = Process::start_on(outlet, "announcer", &command);
        site.until_registered();
        announcer.signal(Signal::SIGTERM);
        site.until_value(&site.value("drain"));
        assert_eq!(announcer.wait(SOON).code(), Some(0), "{outlet:?}");
        assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 1), "{outlet:?}");
    }
}

#[test]
fn an_app_is_run_and_stopped_whatever_becomes_of_the_outputs() {
    let site = Site::new();
    for outlet in Outlet::ALL {
        let mut command = site.command(&["--drain", "0s"]);
        let running = format!("running-{outlet:?}");
        // Its shell has words of its own at the end, which would kill it where no reader is.
        let script =
            format!("exec >/dev/null 2>&1; trap 'exit 3' TERM; echo > {running}; while :; do sleep 0.02; done");
        command.args(["--", "sh", "-c", &script]);
        let mut announcer = Process::start_on(outlet, "announcer", &command);
        site.until_registered();
        site.until_file(&running);
        announcer.signal(Signal::SIGTERM);
        assert_eq!(announcer.wait(SOON).code(), Some(3), "{outlet:?}: the app's own status");
        until(SOON, "the end of the app", || announcer.family().is_empty());
        assert_eq!((site.etcd.get(KEY), leases(&site.etcd)), (None, 0), "{outlet:?}");
    }
}

#[test]
fn outputs_that_are_closed_are_taken_by_no_connection() {
    let site = Site::new();
    let announcer = Process::start_on(Outlet::Closed, "announcer", &site.command(&[]));
    site.until_registered();
    for number in 0..=2 {
        let file = std::fs::read_link(format!("/proc/{}/fd/{number}", announcer.pid())).unwrap();
        assert_eq!(file.to_str(), Some("/dev/null"), "{number}");
    }
}

#[test]
fn a_second_signal_does_not_wait_whatever_becomes_of_the_outputs() {
    let site = Site::new();
    site.balancer("lb", "it says nothing that makes sense");
    for outlet in Outlet::ALL {
        let mut command = site.command(&["--drain", "10m", "--stop-timeout", "10m"]);
        let running = format!("running-{outlet:?}");
        let script = format!("trap '' TERM; echo > {running}; while :; do sleep 0.02; done");
        command.args(["--", "sh", "-c", &script]);
        let mut announcer = Process::start_on(outlet, "announcer", &command);
        site.until_registered();
        site.until_file(&running);
        announcer.signal(Signal::SIGTERM);
        site.until_value(&site.value("drain"));
        announcer.signal(Signal::SIGTERM);
        assert_eq!(announcer.wait(SOON).code(), Some(128 + 9), "{outlet:?}");
        assert_eq!(site.etcd.get(KEY), None, "{outlet:?}");
    }
}

#[test]
fn a_reader_that_goes_after_the_first_lines_ends_nothing() {
    let site = Site::new();
    let mut command = site.command(&["--drain", "0s", "--log-level", "trace"]);
    let mut announcer = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // As `head -4` does.
    let mut reader = BufReader::new(announcer.stderr.take().unwrap());
    (0..4).for_each(|_| assert!(reader.read_line(&mut String::new()).unwrap() > 0));
    drop(reader);
    site.until_registered();
    kill(Pid::from_raw(announcer.id().cast_signed()), Signal::SIGTERM).unwrap();
    let status = until(SOON, "its end", || announcer.try_wait().unwrap());
    assert_eq!((status.code(), site.etcd.get(KEY)), (Some(0), None));
}

#[test]
fn one_shots_do_what_they_are_asked_whatever_becomes_of_their_outputs() {
    let site = Site::new();
    for outlet in Outlet::ALL {
        for (verb, stands) in [("register", Some(record(site.address(), r#","permanent":true"#))), ("deregister", None)]
        {
            let command = site.command(&[verb]);
            let mut announcer = Process::start_on(outlet, verb, &command);
            assert_eq!(announcer.wait(SOON).code(), Some(0), "{outlet:?} {verb}");
            assert_eq!(site.etcd.get(KEY), stands, "{outlet:?} {verb}");
        }
    }
}

#[test]
fn an_answer_that_could_not_be_written_is_a_failure() {
    let site = Site::new();
    let upstream = "[[announce]]\nservice = \"shop\"\nupstream = \"10.0.0.1:80\"\n";
    lab::write(site.folder.join("announcer.toml"), upstream);
    let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
    command.args(["check-config", "announcer.toml"]).current_dir(&*site.folder);
    let said = |outlet: Outlet| {
        let mut command = copy(&command);
        let (stdout, _reader) = outlet.open();
        let output = command.stdout(stdout).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, words) = said(Outlet::Full);
    assert!(code == Some(1) && words.contains("standard output can't be written: No space left"), "{code:?} {words}");
    assert_eq!(said(Outlet::ReaderGone), (Some(0), String::new()), "a reader that has enough is no failure");
}

fn copy(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    copy
}

#[test]
fn the_log_is_json_if_it_is_asked_for_by_option_or_variable() {
    let site = Site::new();
    let by_option = site.command(&["--drain", "0s", "--log-format", "json"]);
    let mut by_variable = site.command(&["--drain", "0s"]);
    by_variable.env("ANNOUNCER_LOG_FORMAT", "json");
    for (name, mut command) in [("by-option", by_option), ("by-variable", by_variable)] {
        let mut announcer = Process::start(&site.folder, name, &mut command);
        site.until_registered();
        announcer.signal(Signal::SIGTERM);
        assert_eq!(announcer.wait(SOON).code(), Some(0), "{name}");
        let log = announcer.log();
        for line in log.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let is_whole = ["timestamp", "level", "target", "message"].iter().all(|field| event[field].is_string());
            assert!(is_whole, "{line}");
        }
        assert!(log.lines().count() > 1, "{log}");
    }
    let mut odd = site.command(&["--log-format", "xml"]);
    let (code, words) = site.run(&mut odd);
    assert!(code == 2 && words.contains("xml"), "{code}: {words}");
}
