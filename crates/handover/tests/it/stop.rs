//! Stops, and what tells them from restarts.

use std::time::{Duration, Instant};

use haproxy::supervisor::State;

use crate::http::{Load, SLOW_LINES};
use crate::lab::{LINGER, Lab, get};

#[test]
fn a_stop_ends_serving_after_the_linger() {
    let mut lab = Lab::start();
    lab.ctl_ok(&["stop", "haproxy"]);
    let stopped = Instant::now();
    assert_eq!(lab.generation().as_deref(), Some("first"), "it lingers");
    lab.until("nobody serves", || lab.generation().is_none());
    assert!(stopped.elapsed() > LINGER / 2, "after {:?}", stopped.elapsed());
    lab.until("nothing is left", || lab.haproxys().is_empty() && lab.master_sockets() == 0);
    lab.shut_down();
    lab.until("no watchdog is left", || lab.everyone().is_empty());
}

#[test]
fn a_start_within_the_linger_is_a_restart() {
    let lab = Lab::start();
    let load = Load::on(lab.web);
    lab.configure("second", "");
    lab.ctl_ok(&["stop", "haproxy"]);
    lab.ctl_ok(&["start", "haproxy"]);
    lab.assert_serves("second");
    // This is longer than the watchdog would have waited.
    std::thread::sleep(LINGER * 2);
    load.stop_without_a_loss(&lab);
    lab.assert_serves("second");
}

#[test]
fn handover_stop_ends_it_at_once() {
    let lab = Lab::start();
    lab.ctl_ok(&["stop", "haproxy"]);
    assert_eq!(lab.generation().as_deref(), Some("first"), "it lingers");
    let begun = Instant::now();
    lab.handover_stop();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((lab.generation(), lab.haproxys()), (None, vec![]));
    lab.handover_stop();

    // handover stop works while the program runs, too. Its exit is expected, so supervisord doesn't start it again.
    lab.ctl_ok(&["start", "haproxy"]);
    lab.handover_stop();
    lab.until("the program has ended", || lab.state() == Some(State::Exited));
    assert_eq!((lab.generation(), lab.haproxys()), (None, vec![]));
}

#[test]
fn supervisords_end_is_a_drain() {
    let mut lab = Lab::start();
    let web = lab.web;
    let download = std::thread::spawn(move || get(web, "/slow"));
    lab.until("the app sends", || lab.socket().show_info().is_ok_and(|info| info.connections > 0));
    std::thread::sleep(Duration::from_secs(1));
    lab.ctl_ok(&["shutdown"]);
    lab.until("nobody new is served", || lab.generation().is_none());
    lab.shut_down();
    assert_eq!(download.join().unwrap(), Ok("slow\n".repeat(SLOW_LINES)));
    assert_eq!(lab.everyone(), [0; 0]);
    assert_eq!(lab.master_sockets(), 0);
}
