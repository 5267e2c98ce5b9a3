//! Hosts with systemd as PID 1: a container each, of a Debian with what the units need.

use std::fs::{Permissions, read, read_dir, set_permissions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use crate::bins::bin;
use crate::container::{Container, Network, checked, docker};
use crate::images::{BASE, Images, Made, SOURCE, base, trixie};
use crate::{Scratch, Step, is_shown, until};

/// systemd's own start, on two busy cores.
const UP: Duration = Duration::from_secs(60);

/// Seconds that one script may take in a host. `systemctl start` waits without a limit for a unit that never gets ready.
const SCRIPT: &str = "300";

/// What systemd needs of its container, and no more: this host's cgroups, to make its own in.
const FLAGS: [&str; 24] = [
    "--cgroupns",
    "host",
    "--volume",
    "/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs",
    "/run:exec",
    "--tmpfs",
    "/run/lock",
    "--tmpfs",
    "/tmp:exec",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "apparmor=unconfined",
    "--cap-add",
    "SYS_ADMIN",
    "--cap-add",
    "NET_ADMIN",
    "--cap-add",
    "SYS_NICE",
    "--cap-add",
    "SYS_PTRACE",
    // Where `make install` finds this source.
    "--workdir",
    "/src",
];

/// What Podman needs of its container.
const NESTED: [&str; 14] = [
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "apparmor=unconfined",
    // Rootless Podman mounts /proc only if nothing of it is hidden here.
    "--security-opt",
    "systempaths=unconfined",
    "--cap-add",
    "ALL",
    "--cap-drop",
    "SYS_RESOURCE",
    "--device",
    "/dev/fuse",
    // No overlay on an overlay.
    "--volume",
    "/var/lib/containers",
];

/// What systemd needs besides. `boot` of tests/quadlet-host mounts cgroup v2.
const QUADLET_FLAGS: [&str; 10] = [
    "--cgroupns",
    "private",
    "--tmpfs",
    "/run:exec",
    "--tmpfs",
    "/run/lock",
    "--tmpfs",
    "/tmp:exec",
    "--device",
    "/dev/net/tun",
];

static IMAGE: LazyLock<String> = LazyLock::new(|| image("machine", base));

static QUADLET_IMAGE: LazyLock<String> = LazyLock::new(|| image("quadlet-host", trixie));

/// The image of a folder in `tests`. Its tag changes with what it is made from; made where Docker doesn't have it.
fn image(kind: &str, base: fn() -> Option<Made>) -> String {
    let folder = format!("{SOURCE}/tests/{kind}");
    let mut files: Vec<_> = read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in files {
        read(file).expect("a file").hash(&mut hash);
    }
    let image = format!("haproxy-discover-{kind}:{:x}", hash.finish());
    let known = Command::new("docker").args(["image", "inspect", &image]).output().expect("docker");
    if !known.status.success() {
        let _base = base();
        docker(&["build", "--quiet", "--network", "host", "--tag", &image, &folder]);
    }
    image
}

/// What `make install` takes, and the sample app: the binaries that the tests run, without what only a debugger reads.
static BUILT: LazyLock<Scratch> = LazyLock::new(|| {
    let folder = Scratch::new();
    set_permissions(&*folder, Permissions::from_mode(0o755)).expect("a folder that every user reads");
    let mut install = Command::new("install");
    install.arg("--strip").args(["announcer", "confgen", "handover", "discoverctl", "webapp"].map(bin)).arg(&*folder);
    checked(&install.output().expect("install"), "install --strip");
    folder
});

/// A host with systemd, with this source in `/src` and the programs in `/built`. Dropping it removes it.
pub struct Machine {
    name: String,
    container: Container,
    network: String,
    address: String,
    _base: Option<Made>,
}

impl Machine {
    /// Starts it, and waits until systemd is done with its start.
    ///
    /// # Panics
    /// Without a Docker that answers, or a Debian mirror.
    pub fn start(network: &Network, name: &str) -> Self {
        let network = network.name().to_owned();
        let flags = [&FLAGS[..], &["--network", &network, "--hostname", name, &IMAGE]].concat();
        let machine = Self::of(name, &network, &flags, &[], None);
        machine.wait_up();
        machine
    }

    fn of(name: &str, network: &str, flags: &[&str], command: &[&str], base: Option<Made>) -> Self {
        let volumes = [format!("{SOURCE}:/src:ro"), format!("{}:/built:ro", BUILT.display())];
        let volumes: Vec<&str> = volumes.iter().flat_map(|volume| ["--volume", volume]).collect();
        let container = Container::start(&[&volumes, flags].concat(), command);
        let address = container.address();
        Self { name: name.to_owned(), container, network: network.to_owned(), address, _base: base }
    }

    #[track_caller]
    fn wait_up(&self) {
        until(UP, &format!("systemd on {}", self.name), || {
            let state = self.run("systemctl is-system-running");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            if state == "running" { Ok(()) } else { Err(state) }
        });
    }

    /// A Debian with nothing but what its base has, and no systemd.
    ///
    /// # Panics
    /// As [`Machine::start`].
    pub fn bare(network: &Network, name: &str) -> Self {
        let (base, network) = (base(), network.name());
        // It may have containers of its own.
        let flags = [&NESTED[..], &["--init", "--network", network, "--hostname", name, BASE]].concat();
        Self::of(name, network, &flags, &["sleep", "infinity"], base)
    }

    /// A CoreOS-style host at its first boot: Ignition sets it up from this file, and quadlets run its programs. Returns once
    /// systemd answers, which is before the units have started.
    ///
    /// # Panics
    /// As [`Machine::start`].
    pub fn first_boot(network: &Network, name: &str, ignition: &Path) -> Self {
        let network = network.name().to_owned();
        let ignition = format!("{}:/host.ign:ro", ignition.display());
        let own = ["--network", &network, "--hostname", name, "--volume", &ignition, &QUADLET_IMAGE];
        let machine = Self::of(name, &network, &[&NESTED[..], &QUADLET_FLAGS, &own].concat(), &[], None);
        until(UP, &format!("systemd on {name}"), || {
            let jobs = machine.run("systemctl list-jobs");
            if jobs.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&jobs.stderr).into_owned()) }
        });
        machine
    }

    /// Gives Podman an image, under the name that the quadlets have.
    ///
    /// # Panics
    /// When Docker or Podman fails.
    #[track_caller]
    pub fn load_image(&self, images: &Images, image: &str) {
        let name = format!("localhost/haproxy-discover-{image}:latest");
        let load = format!(
            "docker save {} | docker exec --interactive {} podman load --quiet",
            images.name(image),
            self.container.name(),
        );
        checked(&Command::new("bash").args(["-o", "pipefail", "-c", &load]).output().expect("bash"), &load);
        self.sh(&format!("podman tag localhost/{} {name}", images.name(image)));
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, which stays when it comes back.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The container that it is.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Pulls its network cable. Packets on their way are lost, and neither end notices.
    pub fn cut(&self) {
        docker(&["network", "disconnect", "--force", &self.network, self.container.name()]);
    }

    /// Plugs it in again.
    pub fn join(&self) {
        docker(&["network", "connect", "--ip", &self.address, &self.network, self.container.name()]);
    }

    /// Stops all its processes where they are. Its kernel still answers.
    pub fn freeze(&self) {
        docker(&["pause", self.container.name()]);
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        docker(&["unpause", self.container.name()]);
    }

    /// Cuts its power: the cable first, since no kernel is left that would close a connection.
    pub fn power_off(&self) {
        self.cut();
        docker(&["kill", self.container.name()]);
    }

    /// Boots it, and waits until systemd is done with that: its disk is as it was, `/run` and `/tmp` are empty.
    #[track_caller]
    pub fn power_on(&self) {
        self.join();
        docker(&["start", self.container.name()]);
        self.wait_up();
    }

    /// Reboots it as its operator does: systemd stops all units, the boot starts those that are enabled. Waits until it is done.
    #[track_caller]
    pub fn reboot(&self) {
        // The container may end before the answer.
        let _ = self.run("systemctl reboot");
        self.container.wait_ended(SCRIPT);
        // It gets its address only if it asks for that.
        self.cut();
        self.power_on();
    }

    /// Runs a shell script in it as root, whatever comes of it.
    pub fn run(&self, script: &str) -> Output {
        let mut exec = Command::new("docker");
        exec.args(["exec", self.container.name(), "timeout", SCRIPT, "sh", "-ec", script]).stdin(Stdio::null());
        exec.output().expect("docker exec")
    }

    /// The same, which has to succeed; says what it has printed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        checked(&self.run(script), &format!("{}: {script}", self.name))
    }

    /// Writes a file in it.
    #[track_caller]
    pub fn put(&self, path: &str, content: &str) {
        let script = "mkdir -p \"$(dirname \"$0\")\" && cat >\"$0\"";
        let mut exec = Command::new("docker");
        exec.args(["exec", "--interactive", self.container.name(), "sh", "-ec", script, path]);
        let mut exec =
            exec.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("docker");
        exec.stdin.take().expect("stdin").write_all(content.as_bytes()).expect("the file's content");
        checked(&exec.wait_with_output().expect("docker exec"), path);
    }

    /// Copies a file or a folder of this host's into it.
    #[track_caller]
    pub fn copy(&self, from: &str, to: &str) {
        docker(&["cp", "--quiet", from, &format!("{}:{to}", self.container.name())]);
    }

    /// What `make install` does, where there is no make.
    #[track_caller]
    pub fn make_install(&self) {
        self.sh("BUILT=/built PREFIX=/usr SYSCONFDIR=/etc /src/units/install");
    }

    /// The same, and what docs/deploy.md has people do next.
    #[track_caller]
    pub fn install(&self) {
        self.make_install();
        self.sh("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload");
    }

    /// Types a page's steps into one shell, as root, and compares what is shown. What shows nothing has to succeed.
    ///
    /// # Panics
    /// When it doesn't, or when something else is shown.
    #[track_caller]
    pub fn follow(&self, steps: &[Step]) {
        let said = |step: usize| format!("/tmp/said-{step}");
        let script = steps.iter().enumerate().map(|(number, step)| {
            let whatever = if step.shown.is_some() { " || true" } else { "" };
            format!("{{\n{}}} >{} 2>&1{whatever}\n", step.command, said(number))
        });
        let script: String = script.collect();
        // None of the pages takes as long by itself; a loop of theirs may never end.
        let mut exec = Command::new("docker");
        exec.args(["exec", "--workdir", "/root", self.container.name(), "timeout", "600", "bash", "-ec", &script]);
        let ended = exec.stdin(Stdio::null()).output().expect("docker exec");
        let read = |number| String::from_utf8_lossy(&self.run(&format!("cat {}", said(number))).stdout).into_owned();
        let said: Vec<String> = (0..steps.len()).map(read).collect();
        for (step, said) in steps.iter().zip(&said) {
            println!("$ {}{said}", step.command);
        }
        checked(&ended, &format!("{}: the last command that said something", self.name));
        for (Step { command, shown }, said) in steps.iter().zip(&said) {
            let is_as_shown = shown.as_ref().is_none_or(|shown| is_shown(shown, said));
            assert!(
                is_as_shown,
                "{}: {command}shows\n{said}and the page has\n{}",
                self.name,
                shown.as_deref().unwrap()
            );
        }
    }

    /// What a unit has said.
    pub fn journal(&self, unit: &str) -> String {
        self.sh(&format!("journalctl --no-pager --output cat --unit {unit}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said =
                self.run("journalctl --no-pager | grep -v '\"time\":' | tail -n 60; systemctl --no-pager --failed");
            println!("--- {}\n{}", self.name, String::from_utf8_lossy(&said.stdout));
        }
    }
}
