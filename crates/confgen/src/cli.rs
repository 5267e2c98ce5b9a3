//! The command line: parsed, then turned into what the rest works with. Parsing reads nothing of the host.

mod rights;
mod secrets;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use daemon::admin::AdminArgs;
use discovery::{Bind, Host, Networks, Node, ServiceName};
use haproxy::command::CommandLine;

pub use rights::Rights;

const EXAMPLES: &str = "\
Examples:
  confgen                                       follow the store and keep HAProxy at it
  confgen once                                  one round, then say by the exit code what happened
  confgen render > /tmp/haproxy.cfg             look at the file
  confgen render --at-revision 1234             what it would have been, as far as etcd keeps history
  confgen diff                                  what the next round would change

Exit codes:
  0  in sync (once), nothing would change (diff), told to stop
  1  something would change (diff); an error that is none of the below
  2  wrong usage
  3  the store is unreachable or refuses
  4  the file is refused, the generated or the operator's part of it
  5  HAProxy doesn't run what it should: the restart did not take, or an operator has stopped it

Every option is also a variable: --http-bind is CONFGEN_HTTP_BIND.";

/// Follows the store, renders haproxy.cfg, has HAProxy validate it, and applies it without losing a request
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; nothing is to follow the store
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of following
    #[command(flatten)]
    pub common: Common,
    /// The admin port's
    #[command(flatten)]
    pub admin: AdminArgs<Confgen>,
}

/// Whose variables begin with `CONFGEN_`.
#[derive(Clone, Debug)]
pub struct Confgen;

impl daemon::admin::Daemon for Confgen {
    const PREFIX: &'static str = "CONFGEN";
    const ADMIN: &'static str = "127.0.0.1:9101";
    const SHOWN: &'static str = "/metrics, /live, /ready, the API and the status page";
}

/// The options of every form.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Where the store is
    #[command(flatten)]
    pub store: registry::Args,
    /// What is written where
    #[command(flatten)]
    pub options: Options,
    /// How often
    #[command(flatten)]
    pub pacing: Pacing,
    /// What is logged, by level and module: info, debug, confgen=debug,registry=info
    #[arg(long, env = "CONFGEN_LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
}

/// The other forms.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Render and apply once; the exit code says what happened
    Once(Common),
    /// Print the file that the store asks for; touch neither it nor HAProxy
    Render {
        /// The store's revision to render; as old as etcd has not compacted away
        #[arg(long, value_name = "N")]
        at_revision: Option<i64>,
        /// The options of every form
        #[command(flatten)]
        common: Common,
    },
    /// Print what a round would change in the file; exit 1 if anything
    Diff(Common),
}

impl Command {
    /// The options that every form has.
    pub fn common(&self) -> &Common {
        match self {
            Self::Once(common) | Self::Diff(common) | Self::Render { common, .. } => common,
        }
    }
}

/// How often things happen.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Pace")]
pub struct Pacing {
    /// Wait so long for more changes before a change is followed. With 500ms, a service that is written key by key comes
    /// with one restart
    #[arg(long, env = "CONFGEN_MIN_WAIT", default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub min_wait: Duration,
    /// Restart HAProxy at most once in this time. After a time without restarts, two more may follow at once
    #[arg(long, env = "CONFGEN_RESTART_INTERVAL", default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub restart_interval: Duration,
    /// The store is listed anew this often, in case that an event was lost
    #[arg(long, env = "CONFGEN_RESYNC", default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub resync: Duration,
}

/// What is written where, and how HAProxy is reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HAProxy")]
pub struct Options {
    /// The generated file
    #[arg(long, env = "CONFGEN_HAPROXY_CFG", default_value = "/etc/haproxy/haproxy.cfg", value_name = "FILE", value_parser = parse_line_path)]
    pub haproxy_cfg: PathBuf,
    /// The operator's own *.cfg files, which HAProxy reads first
    #[arg(long, env = "CONFGEN_INCLUDE", default_value = "/etc/haproxy/conf.d", value_name = "DIR", value_parser = parse_line_path)]
    pub include: PathBuf,
    /// Files of --include in which the servers of a section are kept up to date: those right below the comment
    /// `# discover SERVICE: server <id> <address> check`; several by commas or by repeating it
    #[arg(long, env = "CONFGEN_FILL", value_delimiter = ',', value_name = "FILE", value_parser = parse_line_path)]
    pub fill: Vec<PathBuf>,
    /// Maps, certificates and what has to be remembered; it serves one confgen at a time
    #[arg(long, env = "CONFGEN_STATE_DIR", default_value = "/var/lib/confgen", value_name = "DIR", value_parser = parse_line_path)]
    pub state_dir: PathBuf,
    /// Where HTTP is served; several by commas
    #[arg(long, env = "CONFGEN_HTTP_BIND", default_value = "*:80", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub http_bind: Vec<Bind>,
    /// Where HTTPS is served; several by commas. Redirects name no port: clients are expected to reach it at 443
    #[arg(long, env = "CONFGEN_HTTPS_BIND", default_value = "*:443", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub https_bind: Vec<Bind>,
    /// Where the stats page is served; several by commas
    #[arg(long, env = "CONFGEN_STATS_BIND", default_value = "*:1936", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub stats_bind: Vec<Bind>,
    /// The stats page's password, for the user admin; without it one is made in the state directory
    #[arg(long, env = "CONFGEN_STATS_PASSWORD_FILE", value_name = "FILE")]
    pub stats_password_file: Option<PathBuf>,
    /// A host by which the stats page is reached too, over HTTPS; no service may claim it
    #[arg(long, env = "CONFGEN_STATS_DOMAIN", value_name = "HOST")]
    pub stats_domain: Option<Host>,
    /// What clients are shown in place of the built-in errors: 404.html, 503.json, 500.txt
    #[arg(long, env = "CONFGEN_ERROR_PAGES", value_name = "DIR", value_parser = parse_line_path)]
    pub error_pages: Option<PathBuf>,
    /// The HTTP service that gets ACME's HTTP-01 challenges of every host. Who can write its keys can get certificates for
    /// all of them
    #[arg(long, env = "CONFGEN_ACME_SERVICE", value_name = "SERVICE")]
    pub acme_service: Option<ServiceName>,
    /// Serve the certificates in this directory and its direct subdirectories. They are PEM files (*.pem, *.crt, *.cer), with
    /// the private key in the file or in another one beside it. Changes need no restart. The log names certificates from
    /// 14 days before they expire
    #[arg(long, env = "CONFGEN_CERTS", default_value = "/etc/haproxy/certs", value_name = "DIR", value_parser = parse_line_path)]
    pub certs: PathBuf,
    /// Authorities that upstreams' certificates may be checked against: PEM files, named by `verify`
    #[arg(long, env = "CONFGEN_CA_DIR", default_value = "/etc/haproxy/ca", value_name = "DIR", value_parser = parse_line_path)]
    pub ca_dir: PathBuf,
    /// HAProxy's Runtime API
    #[arg(long, env = "CONFGEN_RUNTIME_SOCKET", default_value = "/run/haproxy/admin.sock", value_name = "SOCKET", value_parser = parse_line_path)]
    pub runtime_socket: PathBuf,
    /// Where handover keeps the servers' states over a restart; its --state-file
    #[arg(long, env = "CONFGEN_SERVER_STATE_FILE", default_value = "/run/haproxy/servers.state", value_name = "FILE", value_parser = parse_line_path)]
    pub server_state_file: PathBuf,
    /// Where the access log goes: a socket's path, or host:port for UDP
    #[arg(long, env = "CONFGEN_LOG", default_value = "/dev/log", value_name = "TARGET", value_parser = parse_log_target)]
    pub log: String,
    /// Peers whose X-Forwarded-* headers and request id are believed; networks by commas
    #[arg(long, env = "CONFGEN_TRUSTED_PROXIES", value_name = "CIDR,…")]
    pub trusted_proxies: Option<Networks>,
    /// TCP load balancers in front. Read the client's address from their PROXY protocol header, version 1 or 2, on every
    /// port but the stats page's. Close their connections without such a header. Networks by commas
    #[arg(long, env = "CONFGEN_PROXY_PROTOCOL_FROM", value_name = "CIDR,…")]
    pub proxy_protocol_from: Option<Networks>,
    /// Where upstreams may be; all but loopback, link-local, multicast and unspecified addresses if not given
    #[arg(long, env = "CONFGEN_UPSTREAM_NETWORKS", value_name = "CIDR,…")]
    pub upstream_networks: Option<Networks>,
    /// Ports that TCP services may bind
    #[arg(long, env = "CONFGEN_TCP_PORTS", default_value = "1024-65535", value_name = "FIRST-LAST", value_parser = parse_port_range)]
    pub tcp_ports: RangeInclusive<u16>,
    /// Which HTTP service may claim which hosts, a line each: SERVICE HOST…; `*` is every service, or every host. Whoever
    /// isn't named may claim nothing
    #[arg(long, env = "CONFGEN_DOMAINS_FILE", value_name = "FILE")]
    pub domains_file: Option<PathBuf>,
    /// Retain upstreams that lose their keys without notice while HAProxy's checks pass, if they are more than this share of a
    /// service's upstreams, or of all. Losses of the last hour count. A retained upstream is served until a check fails or its
    /// key is back. 100% disables it
    #[arg(long, env = "CONFGEN_GUARD", default_value = "50%", value_name = "PERCENT", value_parser = parse_percent)]
    pub guard: u8,
    /// Serve again at once what was lost within this time before too much was. What was lost earlier has to pass a check first
    #[arg(long, env = "CONFGEN_GUARD_WINDOW", default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub guard_window: Duration,
    /// Stop serving what --guard retains after this time, although its checks pass. Without it, no timer does that
    #[arg(long, env = "CONFGEN_GUARD_HOLD", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub guard_hold: Option<Duration>,
    /// This balancer's name, which no other may bear: what HAProxy runs is told to the announcers in balancers/NODE, so
    /// that they wait for it; the host's name if not given
    #[arg(long, env = "CONFGEN_NODE", value_name = "NODE")]
    pub node: Option<Node>,
    /// HAProxy's own rights
    #[command(flatten)]
    pub rights: Rights,
    /// How HAProxy is restarted; made by a direct call where supervisord can be reached
    #[arg(
        long,
        env = "CONFGEN_RESTART_COMMAND",
        default_value = "supervisorctl restart haproxy",
        value_name = "COMMAND",
        value_parser = secrets::without_secrets
    )]
    pub restart_command: CommandLine,
    /// How HAProxy, 2.6 or newer, checks files; -f FILE is appended for each
    #[arg(long, env = "CONFGEN_CHECK_COMMAND", default_value = "haproxy -c", value_name = "COMMAND", value_parser = secrets::without_secrets)]
    pub check_command: CommandLine,
}

/// A path that may stand in a line of haproxy.cfg.
fn parse_line_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let breaks = |c: char| c.is_whitespace() || c.is_control() || "\"'\\#$,".contains(c);
    if path.is_absolute() && !text.contains(breaks) {
        Ok(path)
    } else {
        Err("an absolute path without blanks, quotes, backslashes, `#`, `$` and `,`".into())
    }
}

fn parse_log_target(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return parse_line_path(text).map(|_| text.to_owned());
    }
    let host = text.rsplit_once(':').filter(|(host, port)| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        port.parse::<u16>().is_ok_and(|port| port > 0)
            && (host.parse::<std::net::IpAddr>().is_ok() || host.parse::<Host>().is_ok())
    });
    host.map(|_| text.to_owned()).ok_or_else(|| "a socket's absolute path, or host:port: /dev/log, 10.0.0.9:514".into())
}

fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| *percent <= 100);
    number.ok_or_else(|| "a share from 0% to 100%".into())
}

fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bounds = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match bounds {
        Some((first, last)) if first <= last && first > 0 => Ok(first..=last),
        _ => Err("a range of ports: 1024-65535".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["confgen", "--http-bind", "*:80,[::]:80", "--log", "127.0.0.1:514"]).unwrap();
        assert_eq!(cli.common.options.bound_ports().len(), 3);
    }

    #[test]
    fn the_page_of_options_is_the_code() {
        expect_test::expect_file!["../../../docs/flags-confgen.md"]
            .assert_eq(&manual::render_options_page(&Cli::command()));
    }

    #[test]
    fn nothing_that_breaks_a_line_is_taken() {
        for (option, value) in [
            ("--haproxy-cfg", "/etc/a b.cfg"),
            ("--haproxy-cfg", "haproxy.cfg"),
            ("--state-dir", "/x\n/y"),
            ("--log", "host"),
            ("--log", "/dev/log local1"),
            ("--http-bind", "*:80 ssl"),
            ("--tcp-ports", "0-9"),
            ("--restart-command", "supervisorctl 'restart"),
            ("--node", "a/b"),
            ("--stats-domain", "*.example.com"),
            ("--acme-service", "a b"),
            ("--haproxy-user", "root\n"),
            ("--chroot", "empty"),
        ] {
            assert!(Cli::try_parse_from(["confgen", option, value]).is_err(), "{option} {value:?}");
        }
    }
}
