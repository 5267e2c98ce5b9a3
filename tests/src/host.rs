//! Another host, as far as the network goes.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Process, Scratch, until};

/// A network namespace that one link connects with this host. Dropping it takes both along.
pub struct Host {
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    link: String,
    holder: Process,
    _folder: Scratch,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Host {
    /// Makes the namespace and the link.
    ///
    /// # Panics
    /// Without the right to (root).
    pub fn new() -> Self {
        let folder = Scratch::new();
        // The namespace lives as long as a process is in it.
        let holder = Process::start(&folder, "host", Command::new("unshare").args(["--net", "sleep", "infinity"]));
        let [address, gateway] = free_pair();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A link's name has at most 15 letters.
        let link = format!("lab{}-{number}", id());
        let host = Self { address, gateway, link, holder, _folder: folder };
        until(Duration::from_secs(30), "the host's namespace", || {
            let made = host.command("ip").args(["-brief", "link"]).output().expect("ip");
            // Before `unshare` has run, it is this host's.
            let links = String::from_utf8_lossy(&made.stdout).lines().count();
            if links == 1 { Ok(()) } else { Err(format!("{links} links")) }
        });
        let pid = host.holder.pid().to_string();
        let link = &host.link;
        ip(Command::new("ip").args(["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", &pid]));
        ip(Command::new("ip").args(["address", "add", &format!("{gateway}/31"), "dev", link]));
        ip(Command::new("ip").args(["link", "set", link, "up"]));
        ip(host.command("ip").args(["address", "add", &format!("{address}/31"), "dev", "eth0"]));
        ip(host.command("ip").args(["link", "set", "lo", "up"]));
        host.connect();
        host
    }

    /// Where its services are reached.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where it reaches this host.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// A command that will run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg("--").arg(program);
        command
    }

    /// Cuts it off: what is sent to it is lost without a word.
    pub fn cut(&self) {
        ip(self.command("ip").args(["link", "set", "eth0", "down"]));
    }

    /// Connects it again.
    pub fn connect(&self) {
        ip(self.command("ip").args(["link", "set", "eth0", "up"]));
    }

    /// Loses this share of the packets that reach the host.
    pub fn lose(&self, share: f64) {
        let share = share.to_string();
        self.filter(&["--match", "statistic", "--mode", "random", "--probability", &share, "--jump", "DROP"]);
    }

    /// Refuses new connections, like a host on which no program listens.
    pub fn refuse(&self) {
        self.filter(&["--protocol", "tcp", "--syn", "--jump", "REJECT", "--reject-with", "tcp-reset"]);
    }

    fn filter(&self, rule: &[&str]) {
        ip(self.command("iptables").args(["--wait", "--append", "INPUT", "--in-interface", "eth0"]).args(rule));
    }

    /// Ends [`Self::lose`] and [`Self::refuse`].
    pub fn heal(&self) {
        ip(self.command("iptables").args(["--wait", "--flush", "INPUT"]));
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The namespace itself may live for a while, until the connections in it that were cut have timed out.
        let _ = Command::new("ip").args(["link", "delete", &self.link]).output();
    }
}

/// Two neighbouring addresses of a private network that this host has nothing else in.
fn free_pair() -> [Ipv4Addr; 2] {
    let base = u32::from(Ipv4Addr::new(10, 213, 0, 0)) + (fastrand::u32(0..1 << 16) & !1);
    [Ipv4Addr::from(base + 1), Ipv4Addr::from(base)]
}

#[track_caller]
fn ip(command: &mut Command) {
    let output = command.output().expect("ip");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
