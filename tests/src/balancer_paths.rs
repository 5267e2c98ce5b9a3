//! Where a balancer has its files, and where it listens.

use std::fs::create_dir;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::Scratch;

/// A balancer's folder and ports, from before it runs.
pub struct Place {
    folder: Scratch,
    ports: [u16; 4],
}

impl Place {
    /// With the folders that each balancer has, and these ports: HTTP, HTTPS, the stats page, confgen's admin port.
    pub(crate) fn with_ports(ports: [u16; 4]) -> Self {
        let folder = Scratch::new();
        for name in ["conf.d", "certs", "ca", "state"] {
            create_dir(folder.join(name)).expect("a folder of the balancer");
        }
        Self { folder, ports }
    }

    /// Where HTTP is served.
    pub fn http(&self) -> SocketAddr {
        self.at(0)
    }

    /// Where HTTPS is served.
    pub fn https(&self) -> SocketAddr {
        self.at(1)
    }

    /// Where the stats page is.
    pub fn stats(&self) -> SocketAddr {
        self.at(2)
    }

    /// Where confgen's admin port is.
    pub fn admin(&self) -> SocketAddr {
        self.at(3)
    }

    /// The folder that holds all of the balancer's files: `haproxy.cfg`, `conf.d/`, `certs/`, `state/`, `*.log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that HAProxy reads last.
    pub fn haproxy_cfg(&self) -> PathBuf {
        self.folder.join("haproxy.cfg")
    }

    /// The Runtime API's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    fn at(&self, port: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[port]))
    }
}
