//! The command line as typed. `config` decides its meaning.

use std::{
    ffi::OsString,
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand, builder::FalseyValueParser};
use daemon::admin::AdminArgs;
use daemon::log::LogFormat;
use nix::sys::signal::Signal;

use crate::config::container_options::Containers;
use crate::config::upstream_options::Announce;
use crate::processes::stop_signal;
use crate::processes::stop_signal::StopOn;

const EXAMPLES: &str = r#"Examples:
  Run an app and announce it, as PID 1 of a container if need be:
      announcer --domain shop.example.com --port 8000 -- node server.js
  Announce an app that something else runs:
      announcer --domain shop.example.com --upstream 172.17.8.101:8000
  A TCP service that balancers bind on port 3306:
      announcer --type tcp --service db --ports 3306 --port 3306 -- mysqld
  Only while its health page says so:
      announcer --domain shop.example.com --port 8000 --check http://127.0.0.1:8000/health -- node server.js
  Two copies on three hosts: give all three this command, and the third takes over if one dies:
      announcer --domain shop.example.com --port 8000 --replicas 2 -- node server.js
  Several services or ports of one app, under one lease:
      announcer --config /etc/announcer.toml -- ./server
  One shot, in a unit of systemd:
      ExecStartPost=announcer register --domain shop.example.com --port 8000
      ExecStopPost=announcer deregister --domain shop.example.com --port 8000

Config file (TOML): an [[announce]] for each upstream; its keys are the options under Service, Upstream and Checks.
  Lists may be lists, settings are a table. Everything else stays on the command line or in the environment.
      [[announce]]
      domain = ["shop.example.com", "www.example.com"]
      port = 8000
      check = "http://127.0.0.1:8000/health"
      set = { balance = "leastconn", maxconn = 100 }
      [[announce]]
      type = "tcp"
      service = "metrics"
      ports = 9000
      port = 9000

Stopping: the announcer writes `drain` into all records. It stops the app when every live balancer has acknowledged that,
  or after --drain. A balancer acknowledges when it sends no request to the app and has none open, in no HAProxy process.
  A balancer that is cut off from etcd isn't waited for once its key is gone. It sends requests until its own checks fail.
  If etcd refuses `drain` (it is full, or the role has changed), the announcer deletes the records, and stops the app 7s
  later. It waits for all processes of the app's group and, as PID 1, for all others too.

Signals:
  SIGTERM, SIGINT and those of --stop-on: drain, stop the app, withdraw the record, exit. The second one doesn't wait.
  HUP, QUIT, USR1, USR2, WINCH: forwarded to the app's process group, unless --stop-on has them

Environment: the app and the checks' commands inherit it, except variables that hold a secret of the announcer:
  ETCDCTL_USER, _PASSWORD, _PASSWORD_FILE, _CERT, _KEY; ANNOUNCER_ADMIN_TOKEN_FILE, _CERT, _KEY; ANNOUNCER_CHECK_HEADER.

Exit codes:
  0        done, as asked
  1        any other failure
  2        the command line, the environment, the config file or this host's addresses are wrong
  3        register, deregister: etcd can't be reached, or refuses
  4        register, deregister: the id belongs to another address; nothing was changed
  126, 127 the command can't be run, doesn't exist
  else     the app's own; 128 + N if signal N ended it"#;

/// Announce where an app listens, so that balancers send requests to it while it works.
///
/// With `-- COMMAND`, run the app, wait until its port accepts connections or its checks pass, announce it, and withdraw
/// the record before the app is stopped. Without a command, announce an app that something else runs.
#[derive(Debug, Parser)]
#[command(name = "announcer", version, after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_value_name = "register|deregister|containers|check-config", disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) one_shot: Option<OneShot>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) life: LifeOptions,
    #[command(flatten)]
    pub(crate) replicas: ReplicaArgs,
    #[command(flatten)]
    pub(crate) admin: AdminArgs<Announcer>,
    /// The app and its arguments
    #[arg(last = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OneShot {
    /// Write the record and exit
    ///
    /// The record stays until `deregister`, or for --ttl if that is given.
    #[command(after_long_help = EXAMPLES)]
    Register {
        #[command(flatten)]
        common: Box<Common>,
        /// Let the record end after this time, at least 2s [default: it is permanent]
        #[arg(long, env = "ANNOUNCER_TTL", value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Delete the record and exit, unless it has another address
    #[command(after_long_help = EXAMPLES)]
    Deregister {
        #[command(flatten)]
        common: Box<Common>,
    },
    /// Register the containers of this host by their labels, until a stop signal
    ///
    /// Follow the events of Docker or Podman, and announce each container that has labels as long as it works. Options may
    /// stand before and behind a command.
    #[command(after_long_help = crate::config::container_options::EXAMPLES)]
    #[command(subcommand_value_name = "stop|withdraw", disable_help_subcommand = true)]
    #[command(mut_args(crate::config::container_options::make_global))]
    Containers(Box<Containers>),
    /// Read a config file, print its upstreams, and exit; exit with 2 if it is wrong
    CheckConfig {
        /// Config file
        file: PathBuf,
    },
}

impl Cli {
    /// Options that all modes have.
    pub(crate) fn common(&self) -> &Common {
        match &self.one_shot {
            Some(OneShot::Register { common, .. } | OneShot::Deregister { common }) => common,
            Some(OneShot::CheckConfig { .. } | OneShot::Containers(_)) | None => &self.common,
        }
    }

    /// `--config`, or the file of `check-config`.
    pub(crate) fn config_file(&self) -> Option<&Path> {
        match &self.one_shot {
            Some(OneShot::CheckConfig { file }) => Some(file),
            _ => self.common().config.as_deref(),
        }
    }
}

/// Options that all modes have.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) announce: Announce,
    /// Read the upstreams, their services and checks from this file, instead of the options for one; `--help` shows its form
    #[arg(long, env = "ANNOUNCER_CONFIG", value_name = "FILE", conflicts_with = "Announce")]
    #[arg(help_heading = "Config file")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) etcd: registry::Args,
    /// Log events of this level and above: error, warn, info, debug, trace, or a filter like `info,registry=debug`
    #[arg(long, env = "ANNOUNCER_LOG_LEVEL", value_name = "LEVEL", default_value = "info", help_heading = "Log")]
    pub(crate) log_level: String,
    /// Write log lines in this form
    #[arg(long, env = "ANNOUNCER_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM", help_heading = "Log")]
    pub(crate) log_format: LogFormat,
}

/// Times and signals of an announcement's life.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Life")]
pub(crate) struct LifeOptions {
    /// Keep the record for this time if the announcer dies, at least 2s
    #[arg(long, env = "ANNOUNCER_TTL", value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Wait at most this time for every live balancer's acknowledgement of `drain`, before the app is stopped. With
    /// 0s, don't wait
    #[arg(long, env = "ANNOUNCER_DRAIN", value_name = "TIME", default_value = "15s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// Tell systemd READY only when every live balancer, and at least one, sends requests. Keep waiting for a
    /// balancer that refuses the record. The status line shows its reason
    #[arg(long, env = "ANNOUNCER_WAIT_BALANCERS", value_parser = FalseyValueParser::new())]
    pub(crate) wait_balancers: bool,
    /// Stop on these signals in addition to TERM and INT: QUIT, WINCH, USR1, HUP, RTMIN+3, several by commas. Give the
    /// image's STOPSIGNAL if it is neither TERM nor INT
    #[arg(long, env = "ANNOUNCER_STOP_ON", value_name = "SIGNAL", value_delimiter = ',')]
    pub(crate) stop_on: Vec<StopOn>,
    /// Send this signal to the app's process group to stop it [default: TERM, or the signal of --stop-on that asked for
    /// the stop]
    #[arg(long, env = "ANNOUNCER_STOP_SIGNAL", value_name = "SIGNAL", value_parser = stop_signal::parse)]
    pub(crate) stop_signal: Option<Signal>,
    /// Kill the app, and everything that it started, if it hasn't stopped after this time
    #[arg(long, env = "ANNOUNCER_STOP_TIMEOUT", value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) stop_timeout: Duration,
}

/// Options of a service with a limited number of copies.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Replicas")]
pub(crate) struct ReplicaArgs {
    /// Run at most N copies of the service, on all hosts together. Stand by without the app while N others run, and start
    /// it when one of them ends
    #[arg(long, env = "ANNOUNCER_REPLICAS", value_name = "N")]
    pub(crate) replicas: Option<NonZeroU16>,
    /// Kill the app before the lease of its slot can have ended, so that there are never more than N copies. Without this,
    /// the app goes on while etcd is away, and the youngest copy stops afterwards if there are too many
    #[arg(long, env = "ANNOUNCER_FENCE", value_parser = FalseyValueParser::new())]
    pub(crate) fence: bool,
    /// Take a slot before copies with a lower number, among hosts that have no copy
    #[arg(long, env = "ANNOUNCER_PREFER", value_name = "NUMBER", default_value_t = 0, requires = "replicas")]
    pub(crate) prefer: u16,
    /// Start the app again this many times within five minutes. Then leave the slot to another host, and try again after a
    /// pause
    #[arg(long, env = "ANNOUNCER_MAX_RESTARTS", value_name = "N", default_value_t = 3, requires = "replicas")]
    pub(crate) max_restarts: u32,
    /// Wait at most this time at a stop until another copy has started and taken the slot over. With --fence, don't wait
    #[arg(long, env = "ANNOUNCER_HANDOVER", value_name = "TIME", default_value = "15s", requires = "replicas")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) handover: Duration,
}

/// The announcer's admin port options.
#[derive(Clone, Debug)]
pub(crate) struct Announcer;

impl daemon::admin::Daemon for Announcer {
    const PREFIX: &'static str = "ANNOUNCER";
    const ADMIN: &'static str = "off";
    const SHOWN: &'static str = "/metrics, /live and /ready";
}
