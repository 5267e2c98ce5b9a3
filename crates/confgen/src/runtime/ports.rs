//! Finds ports that can't be bound: the host lacks the address, or another program holds the port. Never keeps a port open.
//!
//! `haproxy -c` binds nothing. So a file that passes it may still keep HAProxy from starting.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use discovery::Bind;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{ReuseAddr, ReusePort};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket};

/// The reason why HAProxy could not bind this address now. `None` if it could, or if only confgen may not (a port below 1024).
/// A port that HAProxy holds itself can be bound once more, as HAProxy does at a restart (SO_REUSEPORT).
pub fn unbindable_reason(wanted: Bind) -> Option<String> {
    let address = SocketAddr::new(wanted.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), wanted.port);
    match try_bind(address) {
        Err(Errno::EADDRNOTAVAIL) => Some(format!("{wanted}: this host has no such address")),
        Err(Errno::EADDRINUSE) => Some(format!("{wanted}: another program holds the port")),
        Ok(()) | Err(_) => None,
    }
}

fn try_bind(address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let probe = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&probe, ReuseAddr, &true)?;
    setsockopt(&probe, ReusePort, &true)?;
    // Without `listen`, the kernel gives no connection to this socket.
    bind(probe.as_raw_fd(), &SockaddrStorage::from(address))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_can_not_be_bound_is_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let taken: Bind = format!("127.0.0.1:{port}").parse().unwrap();
        assert_eq!(unbindable_reason(taken).unwrap(), format!("{taken}: another program holds the port"));
        drop(holder);
        assert_eq!(unbindable_reason(taken), None);
        // RFC 5737: an address for documentation, which no host has.
        let foreign: Bind = "203.0.113.9:3306".parse().unwrap();
        assert_eq!(unbindable_reason(foreign).unwrap(), "203.0.113.9:3306: this host has no such address");
    }
}
