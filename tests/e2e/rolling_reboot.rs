//! The loop of docs/discoverctl.md that reboots hosts one by one, with an `ssh` of the test's own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lab::{Page, Process, Scratch, bin, until, write};

/// The test says itself when a host has booted.
const SLEEP: &str = "#!/bin/sh\nexec /bin/sleep 0.2\n";

/// The loop, and the folder where its `ssh` and the test leave each other files.
pub(crate) struct RollingReboot {
    folder: Scratch,
    script: String,
    process: Option<Process>,
}

impl RollingReboot {
    /// The loop over `<prefix>1`, `<prefix>2` and `<prefix>3`. `ssh` has to leave a file `reboot-HOST` when it is told to reboot one.
    pub(crate) fn new(prefix: &str, ssh: &str) -> Self {
        let script = Page::read("docs/discoverctl.md").below("A rolling reboot").remove(0).replace("web-", prefix);
        let loops = Self { folder: Scratch::new(), script, process: None };
        for (name, text) in [("ssh", ssh), ("sleep", SLEEP)] {
            let path = loops.folder.join(name);
            write(&path, text);
            assert!(Command::new("chmod").arg("+x").arg(path).status().expect("chmod").success());
        }
        loops
    }

    /// A file of this kind about a host.
    pub(crate) fn file(&self, kind: &str, host: &str) -> PathBuf {
        self.folder.join(format!("{kind}-{host}"))
    }

    /// Starts the loop, with what tells discoverctl where store and balancers are.
    pub(crate) fn start(&mut self, variables: &[(&str, &str)]) {
        let programs = bin("discoverctl");
        let path = [&*self.folder, programs.parent().expect("its folder")].map(|part| part.display().to_string());
        let path = format!("{}:{}", path.join(":"), std::env::var("PATH").expect("a PATH"));
        let mut shell = Command::new("sh");
        shell.args(["-c", &self.script]).env("PATH", path).envs(variables.iter().copied());
        self.process = Some(Process::start(&self.folder, "rolling", &mut shell));
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it was started")
    }

    /// Waits until the loop reboots this host.
    #[track_caller]
    pub(crate) fn wait_asked(&mut self, deadline: Duration, host: &str) {
        let asked = self.file("reboot", host);
        let process = self.process();
        until(deadline, &format!("the reboot of {host}"), || match asked.exists() {
            true => Ok(()),
            false => Err(process.log()),
        });
    }

    /// Waits until the last host is back.
    #[track_caller]
    pub(crate) fn wait_end(&mut self, deadline: Duration) {
        let process = self.process();
        assert!(process.wait(deadline).success(), "{}", process.log());
    }

    /// What the loop has printed.
    pub(crate) fn log(&mut self) -> String {
        self.process().log()
    }
}
