//! The command line. Parsing reads nothing of the host. `Start::resolve_settings` resolves what depends on it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use haproxy::command::CommandLine;
use nix::unistd::Group;
use program::log::LogFormat;

use crate::memory::MemoryBound;
use crate::run_dir::RuntimeSocket;
use crate::surplus::Bounds;

// Lines of at most 80 columns: clap would break longer ones without regard to the tables.
const AFTER_HELP: &str = "\
Examples:
  As supervisord's program, in place of haproxy itself:
    handover --socket /run/haproxy/admin.sock -- haproxy -f /etc/haproxy/haproxy.cfg
  End what a stopped or given-up program left running:
    handover stop --socket /run/haproxy/admin.sock

The configuration needs `stats socket PATH level admin expose-fd listeners` with
the same PATH, and `server-state-file` if servers shall keep their state.

Signals:
  TERM, INT, QUIT  under supervisord: exit at once, and leave HAProxy to a
                   successor or, after --linger, to its end;
                   when supervisord itself shuts down, or without one:
                   finish the requests, then exit
  USR1             finish the requests, then exit
  HUP, USR2        check the files and hand over to a new HAProxy in place

Exit status:
  0   HAProxy ended as it was told to, or is left to a successor
  2   HAProxy refuses the configuration; an old one serves on
  3   the new HAProxy ended or didn't answer in time; an old one serves on
  4   something around HAProxy failed
  64  wrong usage
  Any other is HAProxy's own: its status, or 128 and the number of the signal
  that ended it.";

/// Run HAProxy under supervisord so that a restart loses no request
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Stop every HAProxy that handover started for this socket. Each one finishes its requests, then ends
    Stop(Stop),
    /// Watch over HAProxy after its handover has ended
    #[command(hide = true)]
    Linger(Linger),
    /// Run a command in a session of its own
    #[command(hide = true)]
    Session {
        #[command(flatten)]
        log: LogOptions,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// Ask the old HAProxy for its listening sockets over this stats socket
    #[arg(long, env = "HANDOVER_SOCKET", default_value = "/run/haproxy/admin.sock", value_name = "PATH")]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    /// Write handover's own lines in this form. HAProxy's lines stay as they are
    #[arg(long, env = "HANDOVER_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    socket: Socket,

    /// Write the servers' state for the new HAProxy to this file [default: servers.state beside the socket]
    #[arg(long, env = "HANDOVER_STATE_FILE", value_name = "PATH")]
    state_file: Option<PathBuf>,

    /// End HAProxy if supervisord keeps the program stopped for this long. A restart is a stop and a start
    #[arg(long, env = "HANDOVER_LINGER", default_value = "3s", value_name = "TIME", value_parser = humantime::parse_duration)]
    linger: Duration,

    /// Wait this long for the check of the configuration, and again for the first answer of the new HAProxy
    #[arg(long, env = "HANDOVER_WAIT", default_value = "20s", value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Duration,

    // supervisord kills the program after stopwaitsecs, 10 s unless set.
    /// Let requests go on for this long when supervisord itself shuts down. Keep it below stopwaitsecs
    #[arg(long, env = "HANDOVER_DRAIN", default_value = "8s", value_name = "TIME", value_parser = humantime::parse_duration)]
    drain: Duration,

    /// Let this group ask old HAProxys through their masters' sockets. confgen's group needs it [default: none]
    #[arg(long, env = "HANDOVER_GROUP", value_name = "GROUP")]
    group: Option<String>,

    /// Keep at most this many old HAProxys, which finish their requests. If there are more, the oldest of those with the
    /// fewest connections ends, and cuts them
    #[arg(long, env = "HANDOVER_OLD_PROCESSES", default_value = "8", value_name = "N")]
    old_processes: usize,

    /// Let old HAProxys have at most this much memory together: a share of the host's or the container's, or a size such as
    /// 512MiB or 2GiB. If they have more, they end as beyond --old-processes
    #[arg(long, env = "HANDOVER_OLD_MEMORY", default_value = "50%", value_name = "SIZE")]
    old_memory: MemoryBound,

    #[command(flatten)]
    log: LogOptions,

    /// Have the new HAProxy bind its sockets itself
    #[arg(long, hide = true)]
    afresh: bool,

    /// Run this HAProxy command, which stands after `--`
    #[arg(last = true, required = true, value_name = "HAPROXY")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    socket: Socket,

    /// Let requests go on for this long, then cut off the rest
    #[arg(long, env = "HANDOVER_DRAIN", default_value = "8s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,

    #[command(flatten)]
    log: LogOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Linger {
    /// The real path of the runtime socket
    #[arg(long)]
    pub(crate) socket: PathBuf,

    /// The name of the start to watch over
    #[arg(long)]
    pub(crate) start: String,

    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) linger: Duration,

    /// The process id of the supervisord that runs handover
    #[arg(long)]
    pub(crate) supervisord: Option<i32>,

    /// The path of handover's own file
    #[arg(long)]
    pub(crate) program: PathBuf,

    #[command(flatten)]
    log: LogOptions,
}

/// The options of a start, with the socket's real path and each default filled in.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) socket: RuntimeSocket,
    pub(crate) state_file: PathBuf,
    pub(crate) linger: Duration,
    pub(crate) wait: Duration,
    pub(crate) drain: Duration,
    /// The bounds on old HAProxys.
    pub(crate) bounds: Bounds,
    /// The form of the watchdog's log, too.
    pub(crate) log_format: LogFormat,
    /// The new HAProxy binds its sockets itself.
    pub(crate) afresh: bool,
    pub(crate) group: Option<Group>,
    pub(crate) command: CommandLine,
}

impl Cli {
    /// The form of this process's log.
    pub(crate) fn log_format(&self) -> LogFormat {
        let log = match &self.verb {
            None => &self.start.log,
            Some(Verb::Stop(stop)) => &stop.log,
            Some(Verb::Linger(linger)) => &linger.log,
            Some(Verb::Session { log, .. }) => log,
        };
        log.log_format
    }
}

impl Start {
    /// Resolves the socket's path, and makes its directory if it is missing.
    pub(crate) fn resolve_settings(self) -> anyhow::Result<Settings> {
        let socket = RuntimeSocket::find(&self.socket.socket)?;
        let default_state_file = socket.path.with_file_name("servers.state");
        Ok(Settings {
            state_file: self.state_file.unwrap_or(default_state_file),
            socket,
            linger: self.linger,
            wait: self.wait,
            drain: self.drain,
            bounds: Bounds { processes: self.old_processes, memory: self.old_memory.in_bytes() },
            log_format: self.log.log_format,
            afresh: self.afresh,
            group: self.group.as_deref().map(find_group).transpose()?,
            command: CommandLine::from_words(self.command)
                .context("the command after -- is empty: name HAProxy and its arguments")?,
        })
    }
}

fn find_group(name: &str) -> anyhow::Result<Group> {
    Group::from_name(name)
        .ok()
        .flatten()
        .with_context(|| format!("there is no group {name}: create it, or name another one with --group"))
}

impl Stop {
    pub(crate) fn find_socket(&self) -> anyhow::Result<RuntimeSocket> {
        RuntimeSocket::find(&self.socket.socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_page_of_options_is_the_code() {
        expect_test::expect_file!["../../../docs/flags-handover.md"]
            .assert_eq(&manual::render_options_page(&Cli::command()));
    }

    #[test]
    fn reads_the_program_line_of_supervisord() {
        let words = ["handover", "--socket", "admin.sock", "--linger", "500ms", "--", "haproxy", "-f", "a b.cfg"];
        let settings = Cli::try_parse_from(words).unwrap().start.resolve_settings().unwrap();
        assert!(settings.socket.path.is_absolute());
        assert_eq!(settings.state_file, settings.socket.path.with_file_name("servers.state"));
        assert_eq!(settings.linger, Duration::from_millis(500));
        assert_eq!(settings.bounds.processes, 8);
        assert_eq!(settings.command.to_string(), "haproxy -f 'a b.cfg'");
    }

    #[test]
    fn every_command_has_the_form_of_the_log() {
        let commands: [&[&str]; 4] = [
            &["handover", "--log-format", "json", "--", "haproxy"],
            &["handover", "stop", "--log-format", "json"],
            &["handover", "session", "--log-format", "json", "--", "haproxy"],
            &[
                "handover",
                "linger",
                "--socket",
                "s",
                "--start",
                "a",
                "--linger",
                "1s",
                "--program",
                "p",
                "--log-format",
                "json",
            ],
        ];
        for words in commands {
            assert_eq!(Cli::try_parse_from(words).unwrap().log_format(), LogFormat::Json, "{words:?}");
        }
        let plain = Cli::try_parse_from(["handover", "--", "haproxy"]).unwrap();
        assert_eq!(plain.log_format(), LogFormat::Text);
    }

    #[test]
    fn refuses_half_a_command_line() {
        let refused = [
            &["handover"][..],
            &["handover", "haproxy"],
            &["handover", "--linger", "x", "--", "haproxy"],
            &["handover", "--old-processes", "-1", "--", "haproxy"],
            &["handover", "--old-memory", "2", "--", "haproxy"],
        ];
        for words in refused {
            assert!(Cli::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
