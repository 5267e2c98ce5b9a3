//! A Docker Engine of the test's own, which it may stop. Its containers are in the host's network, since a second engine
//! must not touch the host's firewall.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use lab::{Scratch, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::site::SOON;

/// The engine. Dropping it removes its containers and ends it.
pub(crate) struct OwnEngine {
    folder: Scratch,
    live_restore: bool,
    /// Not one of the lab's, whose end is the end of all that it started: containers outlive their engine here.
    process: Option<Child>,
    /// A bridge of its own. Without one, the engine would use the machine's `docker0`, and with `--bridge none` delete it.
    bridge: String,
}

impl OwnEngine {
    /// Starts an engine. With `live_restore` its containers outlive it.
    pub(crate) fn start(live_restore: bool) -> Self {
        let bridge = format!("lab{:x}", fastrand::u32(..));
        ip(&["link", "add", "name", &bridge, "type", "bridge"]);
        ip(&["address", "add", &format!("10.215.{}.1/24", fastrand::u8(..)), "dev", &bridge]);
        let mut engine = Self { folder: Scratch::new(), live_restore, process: None, bridge };
        lab::write(engine.folder.join("daemon.json"), r#"{"storage-driver":"vfs"}"#);
        engine.restart();
        engine
    }

    /// Starts it again.
    pub(crate) fn restart(&mut self) {
        let place = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new("dockerd");
        command.args(["--config-file", &place("daemon.json"), "--data-root", &place("data")]);
        command.args(["--exec-root", &place("exec"), "--pidfile", &place("pid"), "--host", &self.url()]);
        command.args(["--bridge", &self.bridge, "--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.arg(format!("--live-restore={}", self.live_restore));
        let log = File::options().create(true).append(true).open(self.folder.join("dockerd.log")).unwrap();
        self.process = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        until(SOON, "the engine's answer", || {
            let asked = Command::new("docker").args(["--host", &self.url(), "version"]).output().unwrap();
            asked.status.success().then_some(()).ok_or_else(|| self.log())
        });
    }

    /// Stops it, and waits for its end.
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        kill(Pid::from_raw(i32::try_from(process.id()).unwrap()), Signal::SIGTERM).unwrap();
        until(SOON, "the engine's end", || process.try_wait().unwrap().map(drop));
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.folder.join("sock").display())
    }

    #[track_caller]
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let output = Command::new("docker").args(["--host", &self.url()]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Copies an image of the machine's engine.
    pub(crate) fn load(&self, image: &str) {
        let mut save = Command::new("docker").args(["save", image]).stdout(Stdio::piped()).spawn().unwrap();
        let mut load = Command::new("docker");
        load.args(["--host", &self.url(), "load"]).stdin(save.stdout.take().unwrap());
        assert!(load.output().unwrap().status.success() && save.wait().unwrap().success(), "{image}");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("dockerd.log")).unwrap_or_default()
    }
}

#[track_caller]
pub(super) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let list = Command::new("docker").args(["--host", &self.url(), "ps", "--all", "--quiet"]).output();
        let list = list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for id in list.split_whitespace() {
            let _ = Command::new("docker").args(["--host", &self.url(), "rm", "--force", id]).output();
        }
        self.stop();
        let _ = Command::new("ip").args(["link", "delete", &self.bridge]).output();
        // What the engine mounted keeps the folder from being removed.
        for place in ["exec/netns/default", "data"] {
            let _ = Command::new("umount").arg("--lazy").arg(self.folder.join(place)).output();
        }
    }
}
