//! Restarts that should go well.

use haproxy::runtime::Command;

use lab::{Pid, children};

use crate::http::{Load, SLOW_LINES};
use crate::lab::{Host, Lab, get, stat};

#[test]
fn restarts_lose_nothing_and_leave_one_haproxy() {
    let mut lab = Lab::start();
    let load = Load::on(lab.web);
    for generation in ["second", "third", "fourth"] {
        lab.configure(generation, "");
        lab.ctl_ok(&["restart", "haproxy"]);
        lab.assert_serves(generation);
    }
    load.stop_without_a_loss(&lab);
    // The keep-alive clients are gone: the old ones have nothing left to do.
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
    lab.until("with one master's socket", || lab.master_sockets() == 1);
    let (code, status) = lab.ctl(&["status", "haproxy"]);
    assert!(code == 0 && status.contains("RUNNING"), "{status}");
    lab.shut_down();
    assert_eq!(lab.everyone(), [0; 0]);
}

#[test]
fn a_long_download_outlives_a_restart() {
    let lab = Lab::start();
    let web = lab.web;
    let download = std::thread::spawn(move || get(web, "/slow"));
    lab.until("the app sends", || lab.socket().show_info().is_ok_and(|info| info.connections > 0));
    let old = lab.socket().show_info().unwrap().pid;
    lab.configure("second", "");
    lab.ctl_ok(&["restart", "haproxy"]);
    assert!(!download.is_finished(), "the restart waited for the download");
    assert_eq!(lab.haproxys().len(), 4, "both serve");
    assert_eq!(lab.master_sockets(), 2);
    // The old one can still be asked through its own master: the app's server has one connection in use.
    let question = Command::show_servers_conn().to_worker(old);
    let answers =
        lab.masters().into_iter().filter_map(|master| master.send_command(&question).ok()).collect::<Vec<_>>();
    let used = answers.iter().flat_map(|answer| answer.lines()).find(|line| line.starts_with("app/one "));
    assert_eq!(used.and_then(|line| line.split(' ').nth(6)), Some("1"), "{answers:?}");
    assert_eq!(download.join().unwrap(), Ok("slow\n".repeat(SLOW_LINES)));
    lab.until("the old one ends", || lab.haproxys().len() == 2);
}

#[test]
fn a_signal_hands_over_in_place() {
    let lab = Lab::start();
    let handover = lab.handover().unwrap();
    let load = Load::on(lab.web);
    lab.configure("second", "");
    lab.ctl_ok(&["signal", "HUP", "haproxy"]);
    lab.until("the second serves", || lab.generation().as_deref() == Some("second"));
    lab.configure("third", "listen broken\n    nonsense");
    lab.ctl_ok(&["signal", "HUP", "haproxy"]);
    lab.until("the refusal is told", || lab.log().contains("unknown keyword 'nonsense'"));
    load.stop_without_a_loss(&lab);
    lab.assert_serves("second");
    assert_eq!(lab.handover(), Some(handover), "the same process all along");
    lab.until("the old one ends, and is reaped", || {
        lab.haproxys().len() == 2
            && children(Pid::from_raw(handover))
                .iter()
                .all(|pid| stat(pid.as_raw()).is_some_and(|(state, _)| state != 'Z'))
    });
}

#[test]
fn a_worker_that_hides_its_mark_is_known_by_its_master() {
    let lab = Lab::start_in(Host::Confined, 1);
    for generation in ["second", "third"] {
        lab.configure(generation, "global\n    user nobody");
        lab.ctl_ok(&["restart", "haproxy"]);
        lab.until("it serves", || lab.generation().as_deref() == Some(generation));
    }
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
}

#[test]
#[ignore = "needs namespaces of its own: make test runs it where it may make them"]
fn in_a_container_nothing_is_left_behind() {
    let mut lab = Lab::start_in(Host::Container, 1);
    let supervisord = children(Pid::from_raw(lab.supervisord()))[0];
    for generation in ["second", "third"] {
        lab.configure(generation, "");
        lab.ctl_ok(&["restart", "haproxy"]);
    }
    lab.assert_serves("third");
    // The namespace's first process reaps orphans.
    lab.until("no zombie is left", || {
        lab.haproxys().len() == 2
            && children(supervisord).iter().all(|pid| stat(pid.as_raw()).is_none_or(|(state, _)| state != 'Z'))
    });
    // What runs outside of the namespace isn't concerned, though it sees the marks, and the directory.
    lab.handover_stop();
    lab.assert_serves("third");
    assert_eq!(lab.master_sockets(), 1);
    lab.shut_down();
    lab.until("everything has ended", || lab.everyone().is_empty());
    assert_eq!(lab.master_sockets(), 0);
}
