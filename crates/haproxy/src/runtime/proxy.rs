//! Runs a real HAProxy in a folder of its own, for tests.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Socket;

/// A running HAProxy, until its drop. A worker ends with its master.
pub(super) struct Proxy {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts one with these flags and this configuration, which is made for the folder. It has a stats socket, and
    /// answers there.
    pub(super) fn start_haproxy(flags: &[&str], config: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text =
            format!("global\n stats socket {}/admin.sock level admin\n{}", dir.path().display(), config(dir.path()));
        write_file(&dir.path().join("haproxy.cfg"), text);
        let mut command = Command::new("haproxy");
        command.args(flags).args(["-db", "-f", "haproxy.cfg"]).current_dir(&dir).stderr(Stdio::null());
        let proxy = Self { child: command.spawn().unwrap(), dir };
        proxy.wait_until(|| proxy.socket().show_info().is_ok());
        proxy
    }

    pub(super) fn wait_until(&self, is_there: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_there() {
            assert!(Instant::now() < deadline, "HAProxy doesn't answer, or not so");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn socket(&self) -> Socket {
        Socket::new(self.path("admin.sock"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

pub(super) fn write_file(path: &Path, text: impl AsRef<[u8]>) {
    File::create(path).unwrap().write_all(text.as_ref()).unwrap();
}
