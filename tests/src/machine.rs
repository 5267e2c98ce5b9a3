//! Hosts with systemd as PID 1: a container each, of a Debian with what the units need.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::bins::folder;
use crate::container::{Container, Network, checked, docker};
use crate::images::{BASE, Made, SOURCE, base};
use crate::{Scratch, Step, is_shown, until};

const IMAGE: &str = "haproxy-discover-machine";

/// systemd's own start, on two busy cores.
const UP: Duration = Duration::from_secs(60);

/// What systemd needs of its container, and no more: this host's cgroups, to make its own in.
const FLAGS: [&str; 20] = [
    "--cgroupns",
    "host",
    "--volume",
    "/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs",
    "/run:exec",
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
];

/// A host with systemd. Dropping it removes it.
pub struct Machine {
    name: String,
    container: Container,
    _base: Option<Made>,
}

impl Machine {
    /// Starts it, and waits until systemd is done with its start. The image is made first where Docker doesn't have it.
    ///
    /// # Panics
    /// Without a Docker that answers, or a Debian mirror.
    pub fn start(network: &Network, name: &str) -> Self {
        image();
        let flags = [&FLAGS[..], &["--network", network.name(), "--hostname", name, IMAGE]].concat();
        let machine = Self { name: name.to_owned(), container: Container::start(&flags, &[]), _base: None };
        until(UP, &format!("systemd on {name}"), || {
            let state = machine.run("systemctl is-system-running");
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            if state == "running" { Ok(()) } else { Err(state) }
        });
        machine
    }

    /// A Debian with nothing but what its base has, and no systemd.
    ///
    /// # Panics
    /// As [`Machine::start`].
    pub fn bare(network: &Network, name: &str) -> Self {
        let base = base();
        let flags = ["--init", "--network", network.name(), "--hostname", name, BASE];
        Self { name: name.to_owned(), container: Container::start(&flags, &["sleep", "infinity"]), _base: base }
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The container that it is.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Runs a shell script in it as root, whatever comes of it.
    pub fn run(&self, script: &str) -> Output {
        let mut exec = Command::new("docker");
        exec.args(["exec", self.container.name(), "sh", "-ec", script]).stdin(Stdio::null());
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

    /// `make install` of the binaries that the tests run.
    #[track_caller]
    pub fn make_install(&self) {
        let root = Scratch::new();
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "install", &format!("DESTDIR={}", root.display())]);
        make.arg(format!("BUILT={}", folder().display())).env_remove("MAKEFLAGS");
        checked(&make.output().expect("make"), "make install");
        self.copy(&format!("{}/.", root.display()), "/");
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
            let said = self.run("journalctl --no-pager --lines 200; systemctl --no-pager --failed");
            println!("--- {}\n{}", self.name, String::from_utf8_lossy(&said.stdout));
        }
    }
}

/// Makes the image, where Docker doesn't have it.
fn image() {
    let known = Command::new("docker").args(["image", "inspect", IMAGE]).output().expect("docker");
    if known.status.success() {
        return;
    }
    let _base = base();
    docker(&["build", "--quiet", "--network", "host", "--tag", IMAGE, &format!("{SOURCE}/tests/machine")]);
}
