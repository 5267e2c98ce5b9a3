//! What the servers keep over a restart.

use haproxy::runtime::{Operation, ServerState};

use lab::free_address;

use crate::lab::Lab;

/// `None` while the socket's HAProxy has no such backend.
fn find_server(lab: &Lab, backend: &str) -> Option<ServerState> {
    let state = lab.socket().show_servers_state().unwrap();
    state.servers.into_iter().find(|server| server.backend == backend)
}

fn server(lab: &Lab, backend: &str) -> ServerState {
    find_server(lab, backend).unwrap()
}

/// The stats socket's own words; the crate's commands don't change servers.
fn command(lab: &Lab, line: &str) {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(lab.path("admin.sock")).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "\n", "{line}");
}

#[test]
fn states_are_kept_and_ports_are_not() {
    let lab = Lab::start();
    let (dead, moved, moves_to) = (free_address(), free_address(), free_address());
    let more = |moving: std::net::SocketAddr, dead_options: &str| {
        format!(
            "backend dead\n    server s {dead} {dead_options}\nbackend heavy\n    server s {dead} weight 10\n\
             backend maint\n    server s {dead}\nbackend drained\n    server s {dead}\n\
             backend moving\n    server s {moving}\n"
        )
    };
    lab.configure("second", &more(moved, "check inter 100ms fall 1"));
    lab.ctl_ok(&["restart", "haproxy"]);
    lab.until("the dead one is down", || {
        find_server(&lab, "dead").is_some_and(|it| it.operation == Operation::Stopped)
    });
    command(&lab, "set server heavy/s weight 7");
    command(&lab, "set server maint/s state maint");
    command(&lab, "set server drained/s state drain");
    command(&lab, "set server moving/s weight 0");

    // With this interval, no check finds the dead server in time. Only the state file can tell.
    lab.configure("third", &more(moves_to, "check inter 1h fall 1"));
    lab.ctl_ok(&["restart", "haproxy"]);
    assert_eq!(server(&lab, "dead").operation, Operation::Stopped);
    assert_eq!(server(&lab, "heavy").weight, 7);
    assert!(server(&lab, "maint").admin.is_in_maintenance());
    assert!(server(&lab, "drained").admin.is_in_drain());
    assert_eq!((server(&lab, "moving").port, server(&lab, "moving").weight), (moves_to.port(), 1));

    // Without checks, HAProxy would never set a server from down to up again.
    lab.configure("fourth", &more(moves_to, ""));
    lab.ctl_ok(&["restart", "haproxy"]);
    assert_eq!(server(&lab, "dead").operation, Operation::Running);
    assert!(server(&lab, "maint").admin.is_in_maintenance());
    command(&lab, "set server maint/s state ready");
    assert_eq!(server(&lab, "maint").operation, Operation::Running);
}

#[test]
fn there_is_a_state_file_before_there_is_a_state() {
    let lab = Lab::start();
    assert_eq!(std::fs::read_to_string(lab.path("servers.state")).unwrap(), "1\n");
    assert!(!lab.log().contains("[WARNING]"), "{}", lab.log());
}
