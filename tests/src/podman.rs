//! Containers of this machine's own Podman, as root's, from the project's images.

use std::process::Command;

use crate::bins::folder;
use crate::container::{checked, name};
use crate::images::{NAMES, SOURCE, debian};
use crate::scratch::{Scratch, write};

/// What the Dockerfiles start from, as Podman calls it.
const BASE: &str = "docker.io/library/debian:12-slim";

/// Podman's own limits are higher than a machine may set that is a container itself. crun refuses a hybrid of cgroup v1 and v2.
const SETTINGS: &str = r#"
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// The images that `make images ENGINE=podman` makes of the binaries that the tests run, and containers of them. Dropping it
/// removes both.
pub struct Podman {
    tag: String,
    settings: Scratch,
    containers: Vec<String>,
    has_made_base: bool,
}

impl Podman {
    /// Builds the images.
    ///
    /// # Panics
    /// Without Podman and runc, or a Debian mirror.
    pub fn build() -> Self {
        let settings = Scratch::new();
        write(settings.join("containers.conf"), SETTINGS);
        let mut podman = Self { tag: name(), settings, containers: Vec::new(), has_made_base: false };
        if !podman.command(&["image", "exists", BASE]).status().expect("podman").success() {
            podman.sh(&["import", "--quiet", &debian("bookworm"), BASE]);
            podman.has_made_base = true;
        }
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "images", "ENGINE=podman", &format!("TAG={}", podman.tag)]);
        make.arg(format!("BUILT={}", folder().display())).env_remove("MAKEFLAGS");
        make.env("CONTAINERS_CONF", podman.settings.join("containers.conf"));
        checked(&make.output().expect("make"), "make images ENGINE=podman");
        podman
    }

    /// `podman run --detach` of one of the images with these flags. Says the container's name.
    ///
    /// # Panics
    /// When Podman fails.
    #[track_caller]
    pub fn run(&mut self, flags: &[&str], image: &str) -> String {
        let (container, image) = (name(), format!("localhost/haproxy-discover-{image}:{}", self.tag));
        self.containers.push(container.clone());
        self.sh(&[&["run", "--detach", "--name", &container], flags, &[&*image]].concat());
        container
    }

    /// A container's address in Podman's network.
    #[track_caller]
    pub fn address(&self, container: &str) -> String {
        self.sh(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", container])
    }

    /// Runs the image's health check once. An error is what the container has printed.
    ///
    /// # Errors
    /// When the check fails.
    pub fn is_healthy(&self, container: &str) -> Result<(), String> {
        let check = self.command(&["healthcheck", "run", container]).output().expect("podman");
        if check.status.success() { Ok(()) } else { Err(self.log(container)) }
    }

    /// `podman stop`, which has to end the container with this code.
    #[track_caller]
    pub fn assert_stops(&self, container: &str, seconds: u32, code: &str) {
        self.sh(&["stop", "--time", &seconds.to_string(), container]);
        let ended = self.sh(&["inspect", "--format", "{{.State.ExitCode}}", container]);
        assert_eq!(ended, code, "{}", self.log(container));
    }

    /// A command of Podman, which has to succeed. Says what it printed.
    #[track_caller]
    pub fn sh(&self, arguments: &[&str]) -> String {
        checked(&self.command(arguments).output().expect("podman"), &format!("podman {arguments:?}"))
    }

    fn log(&self, container: &str) -> String {
        let output = self.command(&["logs", container]).output().expect("podman");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.args(arguments).env("CONTAINERS_CONF", self.settings.join("containers.conf"));
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for container in &self.containers {
            if std::thread::panicking() {
                println!("--- {container}\n{}", self.log(container));
            }
            let _ = self.command(&["rm", "--force", "--volumes", "--time", "0", container]).output();
        }
        let images = NAMES.map(|image| format!("localhost/haproxy-discover-{image}:{}", self.tag));
        let base = self.has_made_base.then_some(BASE);
        for image in images.iter().map(String::as_str).chain(base) {
            let _ = self.command(&["rmi", "--force", image]).output();
        }
    }
}
