//! Real supervisord.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::unistd::Pid;

use crate::process::print_tail;
use crate::{PATIENCE, Process, until, write};

/// supervisord answers within milliseconds. Only while it starts programs it takes longer.
const ANSWERS: Duration = Duration::from_secs(5);

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
    folder: PathBuf,
    logs: Vec<(&'static str, PathBuf)>,
}

impl Supervisor {
    /// Where supervisord is asked, given its folder.
    pub(crate) fn url(folder: &Path) -> String {
        format!("unix://{}", socket(folder).display())
    }

    /// Starts it with these programs, and waits until it can be asked.
    pub(crate) fn start(folder: &Path, programs: &[Program]) -> Self {
        let config = config(folder);
        let at = folder.display();
        let mut text = format!(
            "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={at}/supervisord.pid\n\
             childlogdir={at}\n\n[unix_http_server]\nfile={}\n\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
             [supervisorctl]\nserverurl={}\n",
            socket(folder).display(),
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
        let supervisor = Self { process, folder: folder.to_owned(), logs: logs.collect() };
        until(PATIENCE, "supervisord", || supervisor.call("supervisor.getPID", None));
        supervisor
    }

    /// Runs supervisorctl.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        let output = Command::new("supervisorctl").arg("-c").arg(config(&self.folder)).args(arguments).output();
        output.expect("supervisorctl")
    }

    /// The pid of a program's process, while it has one.
    pub(crate) fn pid(&self, program: &str) -> Option<Pid> {
        let described = self.describe(program).ok()?;
        // supervisord gives 0 for a program without a process.
        field(&described, "pid")?.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw)
    }

    /// The state of a program as supervisord names it: `RUNNING`.
    ///
    /// # Errors
    /// What the socket or supervisord said.
    pub(crate) fn state(&self, program: &str) -> io::Result<String> {
        let described = self.describe(program)?;
        field(&described, "statename").map(str::to_owned).ok_or_else(|| io::Error::other(described.clone()))
    }

    fn describe(&self, program: &str) -> io::Result<String> {
        self.call("supervisor.getProcessInfo", Some(program))
    }

    /// Calls a method of supervisord's XML-RPC interface with at most one argument, and returns the answer. supervisorctl makes
    /// the same calls, but Python's start costs it a fifth of a second of a core each time.
    fn call(&self, method: &str, argument: Option<&str>) -> io::Result<String> {
        let argument = argument.map(|argument| format!("<param><value><string>{argument}</string></value></param>"));
        let body = format!(
            "<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{}</params></methodCall>",
            argument.unwrap_or_default()
        );
        let mut stream = UnixStream::connect(socket(&self.folder))?;
        stream.set_read_timeout(Some(ANSWERS))?;
        // supervisord closes the connection after an answer to HTTP/1.0.
        let head = format!("POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.contains("<params>") { Ok(answer) } else { Err(io::Error::other(answer)) }
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

fn config(folder: &Path) -> PathBuf {
    folder.join("supervisord.conf")
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("supervisor.sock")
}

/// A field of a program's description: `<name>pid</name>\n<value><int>7</int></value>`.
fn field<'a>(described: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = described.split_once(&format!("<name>{name}</name>\n<value><"))?;
    let (_, value) = rest.split_once('>')?;
    value.split('<').next()
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
