//! The signals that ask for a stop: those of an image's STOPSIGNAL too.

use std::process::Command;

use lab::{Process, Signal};

use crate::site::{KEY, SOON, Site};

/// Ends with a status for each signal.
const APP: &str = r#"trap 'exit 3' QUIT; trap 'exit 28' WINCH; trap 'exit 10' USR1; trap 'exit 15' TERM; trap 'exit 2' INT
    trap 'echo got >> hup' HUP; echo > ready; while :; do sleep 0.02; done"#;

fn start(site: &Site, flags: &[&str]) -> Process {
    let flags: Vec<_> = flags.iter().chain(&["--drain", "0s"]).copied().collect();
    let announcer = site.wrap(&flags, APP);
    site.until_registered();
    site.until_file("ready");
    announcer
}

#[track_caller]
fn is_drained_and_ends_with(site: &Site, announcer: &mut Process, status: i32) {
    assert_eq!(announcer.wait(SOON).code(), Some(status), "{}", announcer.log());
    assert_eq!(site.history(KEY), [site.record(), site.value("drain"), String::new()]);
}

#[test]
fn a_signal_of_the_image_drains_and_then_stops_the_app() {
    for (flags, signal, status) in [
        (&["--stop-on", "QUIT"][..], Signal::SIGQUIT, 3),
        (&["--stop-on", "QUIT,WINCH"], Signal::SIGWINCH, 28),
        (&["--stop-on", "SIGUSR1", "--stop-signal", "INT"], Signal::SIGUSR1, 2),
        (&["--stop-on", "QUIT"], Signal::SIGTERM, 15),
        (&["--stop-on", "QUIT"], Signal::SIGINT, 15),
    ] {
        let site = Site::new();
        let mut announcer = start(&site, flags);
        announcer.signal(Signal::SIGHUP);
        assert_eq!(site.until_file("hup"), "got", "what asks for no stop is passed on");
        announcer.signal(signal);
        is_drained_and_ends_with(&site, &mut announcer, status);
    }
}

#[test]
fn a_real_time_signal_can_ask_for_it() {
    let site = Site::new();
    let mut announcer = start(&site, &["--stop-on", "RTMIN+3"]);
    let sent = Command::new("kill").args(["-s", "RTMIN+3", &announcer.pid().to_string()]).status();
    assert!(sent.unwrap().success());
    is_drained_and_ends_with(&site, &mut announcer, 15);
}
