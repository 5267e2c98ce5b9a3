//! etcd processes of one's own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::eventually;

/// One member, in a directory and on ports of its own. Killed when dropped.
pub(crate) struct Etcd {
    name: String,
    dir: TempDir,
    port: u16,
    peer_port: u16,
    scheme: &'static str,
    flags: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// A single member that answers.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A single member with further flags.
    pub(crate) async fn with(flags: &[&str]) -> Self {
        let mut etcd = Self::prepare("one", flags);
        etcd.flags.push(format!("--initial-cluster=one={}", etcd.peer_url()));
        etcd.launch();
        etcd.wait_ready().await;
        etcd
    }

    pub(crate) fn prepare(name: &str, flags: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            dir: tempfile::tempdir_in(roomy()).expect("a directory"),
            port: free_port(),
            peer_port: free_port(),
            scheme: if flags.iter().any(|flag| flag.starts_with("--cert-file")) { "https" } else { "http" },
            flags: flags.iter().map(ToString::to_string).collect(),
            process: None,
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// Starts the process on the data that is there. It dies with the thread that calls this.
    pub(crate) fn launch(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--name", &self.name, "--logger=zap"])
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &self.peer_url(), "--initial-advertise-peer-urls", &self.peer_url()])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("setpriv and etcd are installed");
        self.process = Some(child);
    }

    /// Waits until it answers a linearizable read (a TLS one: until its port is open).
    pub(crate) async fn wait_ready(&mut self) {
        eventually(&format!("etcd {} answers", self.name), Duration::from_secs(20), async || {
            if self.scheme == "https" {
                return tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok().map(drop);
            }
            let mut raw = etcd_client::Client::connect([self.endpoint()], None).await.ok()?;
            match tokio::time::timeout(Duration::from_secs(1), raw.get("ready", None)).await {
                Ok(Ok(_)) => Some(()),
                // Any refusal is an answer, too.
                Ok(Err(etcd_client::Error::GRpcStatus(status))) => (i32::from(status.code()) != 14).then_some(()),
                _ => None,
            }
        })
        .await;
        let ended = self.process.as_mut().and_then(|child| child.try_wait().expect("asked"));
        assert_eq!(ended, None, "etcd {}: {}", self.name, self.last_words());
    }

    /// What it logged last.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().last().unwrap_or("it logged nothing").to_owned()
    }

    /// A client that speaks to this very member.
    pub(crate) async fn raw(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.endpoint()], None).await.expect("a lazy connect")
    }

    /// Like a power cut.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().expect("killed");
            child.wait().expect("waited for");
        }
    }

    /// The same member with its data once more; the time it takes until it answers.
    pub(crate) async fn restart(&mut self) -> Duration {
        self.kill();
        let began = Instant::now();
        self.launch();
        self.wait_ready().await;
        began.elapsed()
    }

    /// A member of the same name and flags, without data.
    pub(crate) async fn recreate_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("removed");
        self.launch();
        self.wait_ready().await;
    }

    /// Stops the process, and waits until each of its threads stands: under load one goes on for some milliseconds.
    pub(crate) async fn freeze(&self) {
        let id = self.signal(Signal::SIGSTOP);
        eventually("etcd stands still", Duration::from_secs(5), async || {
            let threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("a process");
            let mut stats =
                threads.map(|thread| std::fs::read_to_string(thread.expect("an entry").path().join("stat")));
            stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") T "))).then_some(())
        })
        .await;
    }

    pub(crate) fn thaw(&self) {
        let _ = self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) -> u32 {
        let id = self.process.as_ref().expect("a running etcd").id();
        kill(Pid::from_raw(i32::try_from(id).expect("a pid")), signal).expect("signalled");
        id
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(child) = self.process.as_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Three members.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Etcd>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let mut members: Vec<_> = ["one", "two", "three"].map(|name| Etcd::prepare(name, &[])).into();
        let all: Vec<_> = members.iter().map(|member| format!("{}={}", member.name, member.peer_url())).collect();
        for member in &mut members {
            member.flags.push(format!("--initial-cluster={}", all.join(",")));
            member.launch();
        }
        for member in &mut members {
            member.wait_ready().await;
        }
        Self { members }
    }

    /// The endpoints, the leader's first.
    pub(crate) async fn leader_first(&mut self) -> Vec<String> {
        let status = self.members[0].raw().await.status().await.expect("a status");
        let leader = status.leader();
        for index in 0..self.members.len() {
            let status = self.members[index].raw().await.status().await.expect("a status");
            if status.header().expect("a header").member_id() == leader {
                self.members.swap(0, index);
            }
        }
        self.members.iter().map(Etcd::endpoint).collect()
    }
}

/// Where members keep their data: in memory, where an fsync costs nothing. But each sets 64 MB aside for its log at once,
/// which is all that a container's `/dev/shm` has.
fn roomy() -> PathBuf {
    const ROOM: u64 = 4 << 30;
    let memory = PathBuf::from("/dev/shm");
    match statvfs(&memory) {
        Ok(memory_has) if memory_has.blocks_available() * memory_has.fragment_size() >= ROOM => memory,
        _ => std::env::temp_dir(),
    }
}

/// A port that nobody listens on, below the range that outgoing connections take theirs from: it must still be free
/// when the process comes back. No two tests of this program get the same one.
fn free_port() -> u16 {
    const FIRST: u16 = 11_000;
    const COUNT: u16 = 21_000;
    static BEGIN: LazyLock<u16> = LazyLock::new(|| fastrand::u16(..COUNT));
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = FIRST + BEGIN.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
