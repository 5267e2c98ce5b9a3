//! Real supervisord.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::unistd::Pid;

use crate::process::print_tail;
use crate::{PATIENCE, Process, until, write};

/// A program that supervisord keeps running.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
    /// More lines of its section.
    pub(crate) settings: &'static str,
}

/// supervisord in the foreground, its files in one folder.
pub(crate) struct Supervisor {
    process: Process,
    config: PathBuf,
    logs: Vec<(&'static str, PathBuf)>,
}

impl Supervisor {
    /// Where supervisord is asked, given its folder.
    pub(crate) fn url(folder: &Path) -> String {
        format!("unix://{}/supervisor.sock", folder.display())
    }

    /// Starts it with these programs, and waits until it can be asked.
    pub(crate) fn start(folder: &Path, programs: &[Program]) -> Self {
        let config = folder.join("supervisord.conf");
        let at = folder.display();
        let mut text = format!(
            "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={at}/supervisord.pid\n\
             childlogdir={at}\n\n[unix_http_server]\nfile={at}/supervisor.sock\n\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
             [supervisorctl]\nserverurl={}\n",
            Self::url(folder)
        );
        for Program { name, command, settings } in programs {
            text += &format!(
                "\n[program:{name}]\ncommand={}\nredirect_stderr=true\nstdout_logfile={at}/{name}.log\n{settings}",
                command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
            );
        }
        write(&config, text);
        let process = Process::start(folder, "supervisord", Command::new("supervisord").arg("-c").arg(&config));
        let logs = programs.iter().map(|program| (program.name, folder.join(format!("{}.log", program.name))));
        let supervisor = Self { process, config, logs: logs.collect() };
        until(PATIENCE, "supervisord", || {
            let pid = supervisor.ctl(&["pid"]);
            pid.status.success().then_some(()).ok_or_else(|| said(&pid))
        });
        supervisor
    }

    /// Runs supervisorctl.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        let output = Command::new("supervisorctl").arg("-c").arg(&self.config).args(arguments).output();
        output.expect("supervisorctl")
    }

    /// The pid of a program's process, while it has one.
    pub(crate) fn pid(&self, program: &str) -> Option<Pid> {
        let output = self.ctl(&["pid", program]);
        let pid = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        pid.filter(|pid| *pid > 0).map(Pid::from_raw)
    }

    /// supervisord and all below it, HAProxys in sessions of their own included.
    pub(crate) fn family(&self) -> Vec<Pid> {
        self.process.family()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            for (name, log) in &self.logs {
                print_tail(name, log);
            }
        }
    }
}

/// Both outputs of a command in one line.
pub(crate) fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim())
}

/// A word of supervisord's `command`: split like a shell's, after `%` was expanded.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('%', "%%"))
}
