//! One process of a test.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup::Mark;
use crate::{Outlet, until};

/// How many of the last lines of a log are shown when the test fails.
const TAIL: usize = 40;

/// A child in a process group of its own, with its output in a file. Dropping it kills it and all that it started;
/// when the test is failing, the end of its log is printed first.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    mark: Mark,
    /// The end of a pipe without a reader.
    _reader: Option<OwnedFd>,
}

impl Process {
    /// Starts `command`, whose output is appended to `folder/name.log`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(folder: &Path, name: &str, command: &mut Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = open_log(&log);
        let mark = Mark::new();
        mark.put_on(command);
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle of the log"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name} ({command:?}): {error}"));
        Self { name: name.to_owned(), child, log, mark, _reader: None }
    }

    /// The same with both outputs where nothing can be written.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_on(outlet: Outlet, name: &str, command: &Command) -> Self {
        let (mut command, reader) = outlet.command(command);
        let mark = Mark::new();
        mark.put_on(&mut command);
        let child = command.process_group(0).spawn();
        let child = child.unwrap_or_else(|error| panic!("starting {name} ({command:?}): {error}"));
        Self { name: name.to_owned(), child, log: PathBuf::new(), mark, _reader: reader }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Sends a signal to the process alone, not to what it started. One that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.running() {
            kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
        }
    }

    /// Kills it and all that it started with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.mark.kill();
        let _ = self.child.wait();
    }

    /// Whether it has not ended yet.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("the state of a child").is_none()
    }

    /// The living processes among itself and all that descend from it.
    pub fn family(&self) -> Vec<Pid> {
        self.mark.pids()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `deadline`.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        until(deadline, &what, || self.child.try_wait().expect("the state of a child"))
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            print_tail(&self.name, &self.log);
        }
    }
}

/// Prints the end of a log to the test's own output.
pub(crate) fn print_tail(name: &str, log: &Path) {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    eprintln!("---- the end of {name}'s log, {} ----\n{tail}", log.display());
}

fn open_log(path: &Path) -> File {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.unwrap_or_else(|error| panic!("opening {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn takes_its_descendants_along_even_from_another_session() {
        let folder = Scratch::new();
        let mut command = Command::new("sh");
        command.args(["-c", "setsid sleep 100 & echo started; wait"]);
        let process = Process::start(&folder, "family", &mut command);
        until(Duration::from_secs(5), "both processes", || process.family().len() == 2);
        let family = process.family();
        drop(process);
        until(Duration::from_secs(5), "their end", || family.iter().all(|pid| kill(*pid, None).is_err()));
    }

    #[test]
    fn keeps_what_was_printed() {
        let folder = Scratch::new();
        let mut process = Process::start(&folder, "echo", Command::new("echo").arg("hello"));
        assert!(process.wait(Duration::from_secs(5)).success());
        assert_eq!(process.log(), "hello\n");
    }
}
