//! Ports for the processes of a test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::Mutex;

/// Below Linux's ephemeral range (32768–60999), so that no client's own port sits where a server of ours will listen.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port of loopback that nothing listens on and that no other test, in this process or another, is given while this
/// process lives.
///
/// The reservation is an abstract Unix socket: like the port it belongs to the network namespace, and the kernel takes
/// it back whatever way the process ends.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(PORTS);
        if reserve(port) {
            return port;
        }
    }
}

/// This port if it is free, or else another one, with the same promise.
pub fn port_or_free(wanted: u16) -> u16 {
    if reserve(wanted) { wanted } else { free_port() }
}

fn reserve(port: u16) -> bool {
    let name = UnixAddr::from_abstract_name(format!("haproxy-discover-lab-port-{port}")).expect("a short name");
    let Ok(reservation) = UnixListener::bind_addr(&name) else { return false };
    let is_free = TcpListener::bind(("0.0.0.0", port)).is_ok();
    if is_free {
        RESERVED.lock().expect("the list of reserved ports").push(reservation);
    }
    is_free
}

/// An address of loopback with such a port.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_that_is_taken_is_replaced() {
        let wanted = free_port();
        assert_ne!(port_or_free(wanted), wanted, "this process has reserved it");
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(port_or_free(port), port, "something listens on it");
        drop(taken);
        assert_eq!(port_or_free(port), port);
    }

    #[test]
    fn no_port_is_given_twice() {
        let threads: Vec<_> =
            (0..8).map(|_| std::thread::spawn(|| (0..25).map(|_| free_port()).collect::<Vec<_>>())).collect();
        let ports: Vec<u16> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 200);
    }
}
