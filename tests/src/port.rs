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
        let name = UnixAddr::from_abstract_name(format!("haproxy-discover-lab-port-{port}")).expect("a short name");
        let Ok(reservation) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            RESERVED.lock().expect("the list of reserved ports").push(reservation);
            return port;
        }
    }
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
    fn no_port_is_given_twice() {
        let threads: Vec<_> =
            (0..8).map(|_| std::thread::spawn(|| (0..25).map(|_| free_port()).collect::<Vec<_>>())).collect();
        let ports: Vec<u16> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 200);
    }
}
