//! Docker containers of the project's own programs. No image is fetched: what a program needs is copied from this host.

use std::fs::{copy, create_dir_all};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Scratch;
use crate::cleanup::container_prefix;
use crate::images::debian;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that nothing else has.
pub(crate) fn name() -> String {
    format!("{}{}", container_prefix(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An image with some of this host's programs, each at the path `/<name>`. Dropping it removes it.
pub struct Image(String);

impl Image {
    /// Makes the image.
    ///
    /// # Panics
    /// Without a Docker that answers.
    pub fn of<'a>(programs: impl IntoIterator<Item = &'a Path>) -> Self {
        let root = Scratch::new();
        for program in programs {
            copy(program, root.join(program.file_name().expect("a program's name"))).expect("a program");
            for library in libraries(program) {
                let target = root.join(library.trim_start_matches('/'));
                create_dir_all(target.parent().expect("a folder")).expect("a folder of libraries");
                copy(&library, target).expect("a library");
            }
        }
        let mut tar =
            Command::new("tar").arg("-C").arg(&*root).args(["-c", "."]).stdout(Stdio::piped()).spawn().expect("tar");
        let image = Self(name());
        let archive = tar.stdout.take().expect("tar's output");
        let import = Command::new("docker").args(["import", "-", &image.0]).stdin(archive).output();
        assert!(tar.wait().is_ok_and(|status| status.success()), "tar");
        checked(&import.expect("docker"), "docker import");
        image
    }

    /// What Docker calls it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The image with what a Dockerfile would say: `HEALTHCHECK CMD ["/check"]`.
    #[must_use]
    pub fn with(&self, instruction: &str) -> Self {
        let made = Self(name());
        let container = docker(&["create", &self.0, "/none"]);
        docker(&["commit", "--change", instruction, &container, &made.0]);
        docker(&["rm", &container]);
        made
    }

    /// Starts `command` under this name in the engine's own network.
    #[must_use]
    pub fn run_named(&self, name: &str, flags: &[&str], command: &[&str]) -> Container {
        docker(&[&["run", "--detach", "--name", name], flags, &[&*self.0], command].concat());
        Container(name.to_owned())
    }

    /// Creates a container as [`Image::run_named`] does, and leaves its start to others.
    #[must_use]
    pub fn create_named(&self, name: &str, flags: &[&str], command: &[&str]) -> Container {
        docker(&[&["create", "--name", name], flags, &[&*self.0], command].concat());
        Container(name.to_owned())
    }

    /// A small Debian. The first one of a suite is made from Debian's packages, which takes a minute.
    ///
    /// # Panics
    /// Without a Docker that answers, or a Debian mirror.
    pub fn debian(suite: &str) -> Self {
        let image = Self(name());
        docker(&["import", &debian(suite), &image.0]);
        image
    }

    /// Starts `command` as PID 1 of a container.
    #[must_use]
    pub fn run(&self, network: &Network, command: &[&str]) -> Container {
        self.run_with(network, &[], command)
    }

    /// The same in this host's own network.
    #[must_use]
    pub fn run_on_host(&self, command: &[&str]) -> Container {
        Container::start(&["--network", "host", &self.0], command)
    }

    /// The same as [`Image::run`], with more options of `docker run`.
    #[must_use]
    pub fn run_with(&self, network: &Network, flags: &[&str], command: &[&str]) -> Container {
        Container::start(&[&["--network", &network.name], flags, &[&*self.0]].concat(), command)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", &self.0]).output();
    }
}

/// A container. Dropping it kills and removes it.
pub struct Container(String);

impl Container {
    /// `docker run` with these flags and the image, and what follows that.
    pub(crate) fn start(flags: &[&str], command: &[&str]) -> Self {
        let container = Self(name());
        docker(&[&["run", "--detach", "--name", &container.0], flags, command].concat());
        container
    }

    /// One that something else has started.
    pub(crate) fn of(id: &str) -> Self {
        Self(id.to_owned())
    }

    /// What Docker calls it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Its address in its network.
    pub fn address(&self) -> String {
        self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    }

    /// Its PID 1, as this host numbers it.
    pub fn pid(&self) -> String {
        self.inspect("{{.State.Pid}}")
    }

    /// The host's port that leads to a port of the container.
    pub fn published(&self, port: u16) -> u16 {
        let lines = docker(&["port", &self.0, &format!("{port}/tcp")]);
        let line = lines.lines().next().expect("a published port");
        line.rsplit(':').next().expect("a port").parse().expect("a number")
    }

    /// What its image's HEALTHCHECK says of it: `starting`, `healthy`, `unhealthy`.
    pub fn health(&self) -> String {
        self.inspect("{{.State.Health.Status}}")
    }

    /// `docker stop`.
    pub fn stop(&self) {
        docker(&["stop", &self.0]);
    }

    /// Waits until its PID 1 has ended, at most for so many seconds.
    ///
    /// # Panics
    /// When it hasn't by then.
    #[track_caller]
    pub(crate) fn wait_ended(&self, seconds: &str) {
        let ended = Command::new("timeout").args([seconds, "docker", "wait", &self.0]).output().expect("timeout");
        checked(&ended, &format!("the end of {} within {seconds} s", self.0));
    }

    /// True while its PID 1 runs.
    pub fn is_running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// What its PID 1 ended with.
    pub fn exit_code(&self) -> String {
        self.inspect("{{.State.ExitCode}}")
    }

    /// Its processes, a line each: this host's number for the parent, the state, the name.
    pub fn processes(&self) -> Vec<String> {
        let table = docker(&["top", &self.0, "-eo", "ppid,pid,stat,comm"]);
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            [&words[..1], &words[2..]].concat().join(" ")
        };
        table.lines().skip(1).map(line).collect()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        let output = Command::new("docker").args(["logs", &self.0]).output().expect("docker");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn inspect(&self, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.0])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- {}\n{}", self.0, self.log());
        }
        // With the volumes that have no name.
        let _ = Command::new("docker").args(["rm", "--force", "--volumes", &self.0]).output();
    }
}

/// A network of containers that reach this host at its gateway. Dropping it removes it.
pub struct Network {
    name: String,
    gateway: Ipv4Addr,
}

impl Network {
    /// Makes the network.
    ///
    /// # Panics
    /// Without a Docker that answers.
    pub fn new() -> Self {
        let name = name();
        // Another test may have made a network with this number just before.
        for number in std::iter::repeat_with(|| fastrand::u8(..)).take(16) {
            let gateway = Ipv4Addr::new(10, 214, number, 1);
            let (subnet, address) = (format!("10.214.{number}.0/24"), gateway.to_string());
            let command = ["network", "create", "--subnet", &subnet, "--gateway", &address, &name];
            let output = Command::new("docker").args(command).output().expect("docker");
            if !String::from_utf8_lossy(&output.stderr).contains("overlaps") {
                checked(&output, &format!("docker {command:?}"));
                return Self { name, gateway };
            }
        }
        panic!("no free network in 10.214.0.0/16");
    }

    /// What Docker calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its containers reach this host.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["network", "rm", &self.name]).output();
    }
}

/// A name for a container, which nothing else has. A test that is killed leaves no container of such a name.
pub fn container_name() -> String {
    name()
}

/// What `docker` prints with these arguments.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    checked(&Command::new("docker").args(arguments).output().expect("docker"), &format!("docker {arguments:?}"))
}

#[track_caller]
pub(crate) fn checked(output: &Output, what: &str) -> String {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What ldd(1) says that a program needs.
fn libraries(program: &Path) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    list.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}
