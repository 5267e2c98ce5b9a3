//! Running discoverctl against a store, and what it says.

use std::process::{Command, Output};

use lab::{Etcd, Process, Scratch, bin};
use serde_json::Value;

/// What it said, and how it ended.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) status: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs it to its end.
#[track_caller]
pub(super) fn ctl(etcd: &Etcd, arguments: &[&str]) -> Said {
    let output = command(etcd, arguments).output().unwrap();
    said(&output)
}

/// Runs it to its end, and reads its answer. It has to succeed.
#[track_caller]
pub(super) fn json(etcd: &Etcd, arguments: &[&str]) -> Value {
    let said = ctl(etcd, &[arguments, &["--output", "json"]].concat());
    said.assert(0);
    said.json()
}

/// Starts it in the background.
pub(super) fn launch(folder: &Scratch, etcd: &Etcd, arguments: &[&str]) -> Process {
    Process::start(folder, "discoverctl", &mut command(etcd, arguments))
}

pub(super) fn command(etcd: &Etcd, arguments: &[&str]) -> Command {
    let mut command = Command::new(bin("discoverctl"));
    command.args(arguments).args(["--endpoints", &etcd.endpoints()]);
    command
}

/// What a finished process has said.
pub(super) fn said(output: &Output) -> Said {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { status: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Said {
    /// It ended so.
    #[track_caller]
    pub(super) fn assert(&self, status: i32) {
        assert_eq!(self.status, status, "{self:#?}");
    }

    /// It ended so, and its error says this.
    #[track_caller]
    pub(super) fn assert_error(&self, status: i32, words: &str) {
        self.assert(status);
        assert!(self.stderr.contains(words), "{words:?} is missing: {self:#?}");
    }

    /// Its answer.
    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}
