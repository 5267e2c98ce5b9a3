//! The program file that comes with this project, with nothing changed but where things lie.

use haproxy::supervisor::State;

use crate::lab::{Host, Lab};

const SHIPPED: &str = include_str!("../../../../units/supervisor/haproxy.conf");

#[test]
fn the_shipped_program_starts_restarts_and_drains() {
    let mut lab = Lab::prepare();
    let dir = lab.dir.display().to_string();
    let program = SHIPPED
        .replace("/usr/bin/handover", env!("CARGO_BIN_EXE_handover"))
        .replace("/run/haproxy", &dir)
        .replace("/etc/haproxy", &dir)
        .replace("/var/log/supervisor", &dir);
    std::fs::create_dir(lab.path("conf.d")).unwrap();
    // Distributions configure it like this. The worker runs as another user, and handover still reads its mark.
    let rights = "global\n    user haproxy\n    group haproxy";
    lab.configure("first", rights);
    lab.supervise(Host::Plain, &program);
    lab.until("the first configuration serves", || lab.generation().as_deref() == Some("first"));
    lab.until("the program runs", || lab.state() == Some(State::Running));
    lab.configure("second", rights);
    lab.ctl_ok(&["restart", "haproxy"]);
    lab.assert_serves("second");
    lab.until("one HAProxy is left", || lab.haproxys().len() == 2);
    lab.shut_down();
    assert_eq!(lab.everyone(), [0; 0]);
    assert_eq!(lab.generation(), None);
}
