//! Runs one check once. It keeps no history.

mod http;
mod tls;

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};

use crate::health::check::{Check, HttpCheck};
use crate::processes::reaper::{ChildChange, Leader, Reaper};

/// A check with what its runs need.
pub(crate) enum Probe {
    /// Passes if any of the addresses accepts.
    Tcp(Vec<SocketAddr>),
    /// The TLS configuration is read once, and again after a failure, because the CA's file may have been replaced.
    Http(Box<HttpCheck>, Option<Arc<ClientConfig>>),
    Exec(Vec<String>, Reaper),
}

impl Probe {
    /// A TCP check connects to `addresses`. Other checks ignore them.
    pub(crate) fn new(check: Check, addresses: &[SocketAddr], reaper: &Reaper) -> Self {
        match check {
            Check::Tcp => Self::Tcp(addresses.to_vec()),
            Check::Http(check) => Self::Http(check, None),
            Check::Exec(words) => Self::Exec(words, reaper.clone()),
        }
    }

    /// Runs the check within `limit`. The error names the check and the reason.
    pub(crate) async fn run_within(&mut self, limit: Duration) -> Result<(), String> {
        let outcome = timeout(limit, self.run_once()).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("nothing within {}", humantime::format_duration(limit))));
        if let (Self::Http(_, tls), true) = (&mut *self, outcome.is_err()) {
            *tls = None;
        }
        outcome.map_err(|reason| format!("{}: {reason}", self.describe_check()))
    }

    async fn run_once(&mut self) -> Result<(), String> {
        match self {
            Self::Tcp(addresses) => connect_to_any(addresses).await,
            Self::Http(check, tls) => http::expect_status(check, tls).await,
            Self::Exec(words, reaper) => run_command(words, reaper).await,
        }
    }

    fn describe_check(&self) -> String {
        match self {
            Self::Tcp(addresses) => {
                format!("tcp {}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            }
            Self::Http(check, _) => Check::Http(check.clone()).to_string(),
            Self::Exec(words, _) => Check::Exec(words.clone()).to_string(),
        }
    }
}

/// Connects to the first address that accepts. The error is that of the last one.
pub(crate) async fn connect_to_any(addresses: &[SocketAddr]) -> Result<(), String> {
    let mut failure = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(error) => failure = error.to_string(),
        }
    }
    Err(failure)
}

/// Runs a command without input, and drops its output. When the future is dropped, the process group is killed.
async fn run_command(words: &[String], reaper: &Reaper) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (leader, mut changes) = reaper.spawn(&mut command).map_err(|error| error.to_string())?;
    let _ends_with_us = KillOnDrop(leader);
    while let Some(change) = changes.recv().await {
        match change {
            ChildChange::Ended(0) => return Ok(()),
            ChildChange::Ended(status) => return Err(format!("exit status {status}")),
            // A stopped command is killed when its time is over.
            ChildChange::Stopped => {}
        }
    }
    Err("it was never seen to end".to_owned())
}

/// Kills the process group on drop, unless its leader has ended.
struct KillOnDrop(Leader);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.signal_group(Signal::SIGKILL);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::{
        net::{TcpListener, TcpSocket},
        time::Instant,
    };

    use super::*;

    fn exec(reaper: &Reaper, line: &str) -> Probe {
        let check = Check::parse(&format!("exec:{line}"), &Default::default()).unwrap();
        Probe::new(check, &[], reaper)
    }

    const LONG: Duration = Duration::from_secs(20);

    /// An address that refuses connections as long as the socket lives. The socket is bound, so that no other process
    /// gets the port, and doesn't listen.
    pub(crate) fn closed() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn a_connection_is_enough_for_tcp() {
        let (_held, closed) = closed();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reason = Probe::Tcp(vec![closed]).run_within(LONG).await.unwrap_err();
        assert!(reason.starts_with(&format!("tcp {closed}: ")) && reason.contains("refused"), "{reason}");
        assert_eq!(Probe::Tcp(vec![closed, open.local_addr().unwrap()]).run_within(LONG).await, Ok(()));
    }

    // One test has all commands, because a reaper reaps the children of the whole process.
    #[tokio::test]
    async fn a_command_passes_with_status_0_and_never_outlives_its_time() {
        let reaper = Reaper::start().unwrap();
        assert_eq!(exec(&reaper, "true").run_within(LONG).await, Ok(()));
        assert_eq!(
            exec(&reaper, "sh -c 'exit 3'").run_within(LONG).await,
            Err("exec:sh -c exit 3: exit status 3".to_owned())
        );
        let killed = exec(&reaper, "sh -c 'kill -TERM $$'").run_within(LONG).await.unwrap_err();
        assert!(killed.ends_with("exit status 143"), "{killed}");
        let missing = exec(&reaper, "/no/such/program").run_within(LONG).await.unwrap_err();
        assert!(missing.contains("No such file"), "{missing}");

        let folder = lab::Scratch::new();
        let line = format!("sh -c 'sleep 60 & echo $! $$ > {}/pids; wait'", folder.display());
        let began = Instant::now();
        let slow = exec(&reaper, &line).run_within(Duration::from_millis(500)).await.unwrap_err();
        assert!(slow.ends_with("nothing within 500ms"), "{slow}");
        assert!(began.elapsed() < Duration::from_secs(5));
        let pids = std::fs::read_to_string(folder.join("pids")).unwrap();
        for pid in pids.split_whitespace() {
            // The next parent of the shell's own child reaps it, so a zombie counts as gone.
            lab::until(LONG, "the end of the whole group", || is_gone(pid));
            tokio::task::yield_now().await;
        }
    }

    fn is_gone(pid: &str) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.map_or(true, |status| status.lines().any(|line| line.starts_with("State:\tZ")))
    }
}
