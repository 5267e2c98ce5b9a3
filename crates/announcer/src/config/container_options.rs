//! Options of `announcer containers` as typed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{FalseyValueParser, NonEmptyStringValueParser};
use clap::{Subcommand, ValueEnum};
use containers::{Dialect, EngineAddress};
use daemon::admin::AdminArgs;
use daemon::log::LogFormat;
use discovery::HostName;

use crate::config::cli::Announcer;

pub(crate) const EXAMPLES: &str = "Examples:
  Register every container of this host that has labels:
      announcer containers
      docker run --publish 8000 --label haproxy-discover.domain=shop.example.com shop
  What is registered, and why something is not:
      announcer containers --list
  Docker and a rootless Podman, at this address of the host:
      announcer containers --engine unix:///run/docker.sock,unix:///run/user/1000/podman/podman.sock \\
          --host-address 172.17.8.101
  In the unit of a container, so that no request is lost if its app ends at once on SIGTERM:
      ExecStop=announcer containers stop shop
  At most two copies on all hosts: create it on each host, and the agents start two:
      docker create --publish 8000 --label haproxy-discover.domain=shop.example.com --label haproxy-discover.replicas=2 shop
  End for good on this host:
      systemctl disable --now announcer-containers && announcer containers withdraw

Labels: haproxy-discover.domain, .service, .type, .path, .ports, .tls, .port, .weight, .color, .check, .replicas, .prefer, .set.KEY.
  Several services of a container have names: haproxy-discover.NAME.domain and so on. docs/containers.md has all of them.

Signals: on SIGTERM and SIGINT the agent ends and leaves its records in the store, for --ttl. The next agent takes them over.

Exit codes:
  0  done, as asked
  1  any other failure
  2  the command line, the environment or this host's addresses are wrong
  3  stop, withdraw: the containers were stopped or the records withdrawn, but not every balancer acknowledged it in time
  4  stop: a container is unknown, or an engine didn't stop it
  5  --list, stop: an engine can't be asked";

/// Options of the agent of a host, and of its commands.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Containers")]
pub(crate) struct Containers {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Show each container with labels, its services, and why one is not announced; then exit
    #[arg(long)]
    pub(crate) list: bool,
    /// Print the list in this form
    #[arg(long, value_enum, value_name = "FORM", default_value = "text", requires = "list")]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) scope: ScopeOptions,
    /// Keep the records for this time if the agent ends or dies, at least 2s. A new agent must have started by then
    #[arg(long, env = "ANNOUNCER_CONTAINERS_TTL", value_name = "TIME", default_value = "30s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Have each stop wait at most this time for every live balancer's acknowledgement of `drain`
    #[arg(long, env = "ANNOUNCER_DRAIN", value_name = "TIME", default_value = "15s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// Keep the lease's number and the containers that stand by in this directory, so that the next agent takes all over
    #[arg(long, env = "ANNOUNCER_STATE_DIR", value_name = "DIR", default_value = "/var/lib/announcer")]
    pub(crate) state_dir: PathBuf,
    #[command(flatten)]
    pub(crate) replicas: ReplicaTimes,
    #[command(flatten)]
    pub(crate) admin: AdminArgs<Announcer>,
    #[command(flatten)]
    pub(crate) etcd: registry::Args,
    /// Log events of this level and above: error, warn, info, debug, trace, or a filter like `info,registry=debug`
    #[arg(long, env = "ANNOUNCER_LOG_LEVEL", value_name = "LEVEL", default_value = "info", help_heading = "Log")]
    pub(crate) log_level: String,
    /// Write log lines in this form
    #[arg(long, env = "ANNOUNCER_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM", help_heading = "Log")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Drain containers, wait for every balancer, and then stop them
    ///
    /// It needs no running agent. A container without labels is stopped at once.
    Stop {
        /// Names or ids of the containers
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Have the engine kill the container after this time [default: the container's own]
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
    },
    /// Drain all records of this host, wait for every balancer, and delete them
    ///
    /// The agent must have been stopped before, within --ttl.
    Withdraw,
}

/// Options of containers of which at most some run.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Replicas")]
pub(crate) struct ReplicaTimes {
    /// Start a container with the label `replicas` again this many times within five minutes. Then leave its slot to another
    /// host, and try again after a pause
    #[arg(long, env = "ANNOUNCER_MAX_RESTARTS", value_name = "N", default_value_t = 3)]
    pub(crate) max_restarts: u32,
    /// Wait at most this time at a stop until another host's copy has started and taken the slot over
    #[arg(long, env = "ANNOUNCER_HANDOVER", value_name = "TIME", default_value = "15s")]
    #[arg(value_parser = humantime::parse_duration)]
    pub(crate) handover: Duration,
}

/// Lets an option stand before and behind a command, unless no command has a use for it.
pub(crate) fn make_global(argument: clap::Arg) -> clap::Arg {
    let name = argument.get_id().as_str();
    let is_agents = matches!(name, "list" | "output" | "max_restarts") || name.starts_with("admin");
    if is_agents { argument } else { argument.global(true) }
}

/// Options that decide which containers are registered, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Containers")]
pub(crate) struct ScopeOptions {
    /// Ask these engines, several by commas: `unix:///run/podman/podman.sock`, `tcp://127.0.0.1:2375`
    #[arg(long, env = "ANNOUNCER_ENGINE", value_name = "URL", value_delimiter = ',')]
    #[arg(default_value = "unix:///run/docker.sock")]
    pub(crate) engine: Vec<EngineAddress>,
    /// Read labels that begin with this and a dot
    #[arg(long, env = "ANNOUNCER_LABEL_PREFIX", value_name = "WORD", default_value = "haproxy-discover")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) label_prefix: String,
    /// Read the labels of these programs too, from containers without labels of our own
    #[arg(long, env = "ANNOUNCER_LABELS", value_enum, value_name = "PROGRAM", value_delimiter = ',')]
    pub(crate) labels: Vec<LabelDialect>,
    /// Announce published ports at the address of this network interface
    #[arg(long, env = "ANNOUNCER_INTERFACE", value_name = "NAME", conflicts_with = "host_address")]
    pub(crate) interface: Option<String>,
    /// Announce published ports at this address of the host [default: the one used towards etcd]
    #[arg(long, env = "ANNOUNCER_HOST_ADDRESS", value_name = "IP")]
    pub(crate) host_address: Option<IpAddr>,
    /// Announce the containers' own addresses in this network, which balancers must reach. No port need be published
    #[arg(long, env = "ANNOUNCER_CONTAINER_NETWORK", value_name = "NAME")]
    #[arg(conflicts_with_all = ["interface", "host_address"])]
    pub(crate) container_network: Option<String>,
    /// Name the host in records and their ids. No two hosts may have one name [default: HOSTNAME]
    #[arg(long, env = "ANNOUNCER_HOST_NAME", value_name = "NAME")]
    pub(crate) host_name: Option<HostName>,
    /// Overwrite settings that differ, instead of only logging the difference
    #[arg(long, env = "ANNOUNCER_UPDATE", value_parser = FalseyValueParser::new())]
    pub(crate) update: bool,
}

/// Form of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// A program with labels that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LabelDialect {
    Traefik,
    Registrator,
}

impl From<LabelDialect> for Dialect {
    fn from(dialect: LabelDialect) -> Self {
        match dialect {
            LabelDialect::Traefik => Self::Traefik,
            LabelDialect::Registrator => Self::Registrator,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::cli::{Cli, OneShot};

    fn parse(line: &str) -> Result<Containers, String> {
        let words = ["announcer", "containers"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.one_shot {
            Some(OneShot::Containers(options)) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_option_may_stand_before_and_behind_a_command() {
        let engine = |line: &str| parse(line).map(|options| options.scope.engine[0].to_string());
        for line in ["--engine tcp://a:1 stop web", "stop --engine tcp://a:1 web", "stop web --engine tcp://a:1"] {
            assert_eq!(engine(line).as_deref(), Ok("tcp://a:1"), "{line}");
        }
        let stop = parse("--endpoints 10.0.0.1:2379 stop web --drain 3s --time 1s").unwrap();
        assert_eq!(stop.drain, Duration::from_secs(3));
        assert!(matches!(stop.command, Some(Command::Stop { names, time: Some(_) }) if names == ["web"]));
        let withdraw = parse("withdraw --state-dir /x --ttl 9s --drain 2s").unwrap();
        assert_eq!((withdraw.state_dir.to_str(), withdraw.ttl.as_secs(), withdraw.drain.as_secs()), (Some("/x"), 9, 2));
        assert!(parse("stop web --list").unwrap_err().contains("--list"), "a command by itself");
        assert!(parse("--interface eth0 --host-address 10.0.0.1").is_err());
    }
}
