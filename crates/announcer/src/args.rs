//! The command line as it is written. What it means is decided in `config`.

use std::{ffi::OsString, time::Duration};

use clap::{Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use discovery::{Color, Kind, ServiceName, UpstreamAddress, UpstreamId, Weight};
use nix::sys::signal::Signal;

const EXAMPLES: &str = "\
Examples:
  Run an app and announce it, as PID 1 of a container if need be:
      announcer --domain shop.example.com --port 8000 -- node server.js
  Announce an app that something else runs:
      announcer --domain shop.example.com --upstream 172.17.8.101:8000
  A TCP service that balancers bind on port 3306:
      announcer --type tcp --service db --ports 3306 --port 3306 -- mysqld
  One shot, in a unit of systemd:
      ExecStartPost=announcer register --domain shop.example.com --port 8000
      ExecStopPost=announcer deregister --domain shop.example.com --port 8000

Signals:
  SIGTERM, SIGINT   drain, stop the app, withdraw the record, exit; the second one doesn't wait
  HUP, QUIT, USR1, USR2, WINCH are passed on to the app's process group

Exit codes:
  0        done, as asked
  1        anything that no other code says
  2        the command line, the environment or this host's addresses don't work together
  3        register, deregister: etcd can't be reached, or refuses
  4        register, deregister: the id belongs to another address; nothing was changed
  126, 127 the command can't be run, isn't there
  else     the app's own; 128 + N when signal N ended it";

/// Announces where an app listens, so that balancers send requests to it: only while it works, and not while it stops.
///
/// With `-- COMMAND` it runs the app, waits until its port accepts connections, announces it, and takes the record out
/// before the app is stopped. Without a command it announces an app that something else runs.
#[derive(Debug, Parser)]
#[command(name = "announcer", version, after_long_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(subcommand_value_name = "register|deregister", disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) one_shot: Option<OneShot>,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) life: Life,
    /// The app and its arguments
    #[arg(last = true, value_name = "COMMAND", help_heading = "Arguments")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OneShot {
    /// Write the record and exit
    ///
    /// It stands until it is deregistered, or for --ttl if that is given.
    #[command(after_long_help = EXAMPLES)]
    Register {
        #[command(flatten)]
        common: Common,
        /// Let the record end by itself after this time, at least 2s [default: it is permanent]
        #[arg(long, env = "ANNOUNCER_TTL", value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Delete the record and exit, unless it bears another address
    #[command(after_long_help = EXAMPLES)]
    Deregister {
        #[command(flatten)]
        common: Common,
    },
}

/// What every form needs: what is announced, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) service: Service,
    #[command(flatten)]
    pub(crate) upstream: Upstream,
    #[command(flatten)]
    pub(crate) etcd: registry::Args,
    /// How much is logged: error, warn, info, debug, trace, or a filter like `info,registry=debug`
    #[arg(long, env = "ANNOUNCER_LOG_LEVEL", value_name = "LEVEL", default_value = "info", help_heading = "Log")]
    pub(crate) log_level: String,
}

/// The service and its settings.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Service")]
pub(crate) struct Service {
    /// The service's name [default: the first domain, which then must be no wildcard]
    #[arg(long, env = "ANNOUNCER_SERVICE", value_name = "NAME")]
    pub(crate) service: Option<ServiceName>,
    /// HTTP is routed by host and path, TCP has ports of its own
    #[arg(long = "type", env = "ANNOUNCER_TYPE", value_name = "TYPE", default_value = "http")]
    pub(crate) kind: ServiceType,
    /// Host names it answers for, several by commas; `*.example.com` is one label
    #[arg(long, env = "ANNOUNCER_DOMAIN", value_name = "HOST")]
    pub(crate) domain: Vec<String>,
    /// Path prefixes it answers for, several by commas [default: all]
    #[arg(long, env = "ANNOUNCER_PATH", value_name = "PATH")]
    pub(crate) path: Vec<String>,
    /// both, terminate, off, passthrough, reencrypt
    #[arg(long, env = "ANNOUNCER_TLS", value_name = "MODE")]
    pub(crate) tls: Option<String>,
    /// What balancers bind for a TCP service: 3306, *:3306, 10.0.0.5:3306, several by commas
    #[arg(long, env = "ANNOUNCER_PORTS", value_name = "BIND")]
    pub(crate) ports: Vec<String>,
    /// Any setting of the service: `--set balance=leastconn --set maxconn=100`; by semicolons in the variable
    #[arg(long = "set", env = "ANNOUNCER_SET", value_name = "KEY=VALUE", value_delimiter = ';')]
    pub(crate) settings: Vec<String>,
    /// Overwrite settings that say otherwise, instead of only logging the difference
    #[arg(long, env = "ANNOUNCER_UPDATE", value_parser = FalseyValueParser::new())]
    pub(crate) update: bool,
}

/// The upstream: this app.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Upstream")]
pub(crate) struct Upstream {
    /// Where balancers reach the app. With --port and a command, --port is where it listens on this host
    #[arg(long, env = "ANNOUNCER_UPSTREAM", value_name = "IP:PORT")]
    pub(crate) upstream: Option<UpstreamAddress>,
    /// The app's port; the address is --interface's, else COREOS_PRIVATE_IPV4, else the one used towards etcd
    #[arg(long, env = "ANNOUNCER_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// The network interface whose address is announced
    #[arg(long, env = "ANNOUNCER_INTERFACE", value_name = "NAME", conflicts_with = "upstream")]
    pub(crate) interface: Option<String>,
    /// The upstream's name within the service [default: HOSTNAME-PORT]
    #[arg(long, env = "ANNOUNCER_ID", value_name = "NAME")]
    pub(crate) id: Option<UpstreamId>,
    /// Its share among the upstreams of its color, 0 to 256
    #[arg(long, env = "ANNOUNCER_WEIGHT", value_name = "N", default_value_t)]
    pub(crate) weight: Weight,
    /// Which deployment it belongs to: blue, green
    #[arg(long, env = "ANNOUNCER_COLOR", value_name = "NAME")]
    pub(crate) color: Option<Color>,
    /// Take the id over at once from another address, instead of waiting until its lease ends
    #[arg(long, env = "ANNOUNCER_TAKEOVER", value_parser = FalseyValueParser::new())]
    pub(crate) takeover: bool,
}

/// How long things take, from the first write to the app's end.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Life")]
pub(crate) struct Life {
    /// How long the record outlives a dead announcer, at least 2s
    #[arg(long, env = "ANNOUNCER_TTL", value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// The longest wait between `drain` and the app's stop signal; 0s doesn't wait
    #[arg(long, env = "ANNOUNCER_DRAIN", value_name = "TIME", default_value = "15s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// What tells the app to stop, sent to its process group
    #[arg(long, env = "ANNOUNCER_STOP_SIGNAL", value_name = "SIGNAL", default_value = "TERM", value_parser = signal)]
    pub(crate) stop_signal: Signal,
    /// How long the app may take to stop before it is killed
    #[arg(long, env = "ANNOUNCER_STOP_TIMEOUT", value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) stop_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceType {
    Http,
    Tcp,
}

impl From<ServiceType> for Kind {
    fn from(kind: ServiceType) -> Self {
        match kind {
            ServiceType::Http => Self::Http,
            ServiceType::Tcp => Self::Tcp,
        }
    }
}

/// `TERM`, `SIGTERM` or `15`.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let named = if upper.starts_with("SIG") { upper.parse() } else { format!("SIG{upper}").parse() };
    let numbered = || text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    named.ok().or_else(numbered).ok_or_else(|| "a signal is written TERM, SIGTERM or 15".to_owned())
}
