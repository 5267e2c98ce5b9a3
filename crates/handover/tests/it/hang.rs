//! Old HAProxys that hang, and those that linger.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, get, stat};

/// Every request is answered, by the configuration of that name.
fn assert_all_answered(lab: &Lab, generation: &str) {
    for _ in 0..30 {
        assert_eq!(get(lab.web, "/generation").as_deref(), Ok(generation), "{}", lab.log());
    }
}

fn stop(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
}

#[test]
fn an_old_haproxy_that_hangs_is_ended() {
    for whom in ["worker", "master", "both"] {
        let lab = Lab::start();
        lab.until_running();
        let worker = i32::try_from(lab.socket().show_info().unwrap().pid).unwrap();
        let (_, master) = stat(worker).unwrap();
        if whom != "master" {
            stop(worker);
        }
        if whom != "worker" {
            stop(master);
        }
        lab.configure("second", "");
        lab.rpc().restart_program("haproxy").unwrap();
        lab.until("one HAProxy is left", || lab.haproxys().len() == 2 && !lab.haproxys().contains(&worker));
        assert_all_answered(&lab, "second");
        assert!(lab.log().contains("doesn't answer and still accepts connections"), "{whom}: {}", lab.log());
    }
}

#[test]
fn a_stop_ends_a_haproxy_that_hangs() {
    let mut lab = Lab::start();
    lab.until_running();
    stop(i32::try_from(lab.socket().show_info().unwrap().pid).unwrap());
    lab.ctl_ok(&["stop", "haproxy"]);
    lab.until("nothing is left", || lab.haproxys().is_empty() && lab.master_sockets() == 0);
    lab.shut_down();
    lab.until("no watchdog is left", || lab.everyone().is_empty());
}
