//! The command line as typed. Parsing reads nothing of the host: `config` resolves the options.

mod rights;
mod secrets;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use daemon::admin::AdminArgs;
use daemon::log::LogFormat;
use discovery::{Bind, Host, Networks, Node, ServiceName, Span};
use haproxy::command::CommandLine;

pub use rights::Rights;
pub use secrets::withheld as withheld_variables;

const EXAMPLES: &str = "\
Examples:
  confgen                                       follow the store and drive HAProxy
  confgen once                                  reconcile once; the exit code tells the result
  confgen render > /tmp/haproxy.cfg             print haproxy.cfg without writing it
  confgen render --at-revision 1234             print it for a revision that etcd has not compacted
  confgen diff                                  print what the next reconcile would change

Exit codes:
  0  in sync (once), no change (diff), stopped by a signal
  1  the file would change (diff), or any other error
  2  wrong usage
  3  etcd can't be reached or refuses
  4  HAProxy rejects haproxy.cfg or the operator's files
  5  HAProxy doesn't run what it should: a restart failed, or an operator stopped HAProxy

Every option has a variable: --http-bind is CONFGEN_HTTP_BIND.";

/// Follow etcd, render haproxy.cfg, have HAProxy check it, and apply it without losing a request
#[derive(Debug, Parser)]
// Each command has its own copy of the options. One that stands before the command would count for nothing, so it is an error.
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Run this command once. Without a command, confgen follows the store
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the daemon
    #[command(flatten)]
    pub common: Common,
    /// Options of the admin port, which only the daemon has
    #[command(flatten)]
    pub admin: AdminArgs<Confgen>,
    /// Options of the hooks, which only the daemon has
    #[command(flatten)]
    pub hooks: HookArgs,
}

/// The admin port's defaults for confgen. Its variables begin with `CONFGEN_`.
#[derive(Clone, Debug)]
pub struct Confgen;

impl daemon::admin::Daemon for Confgen {
    const PREFIX: &'static str = "CONFGEN";
    const ADMIN: &'static str = "127.0.0.1:9101";
    const SHOWN: &'static str = "/metrics, /live, /ready, the API and the console";
}

/// The hooks that get changes of keys.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Hooks")]
pub struct HookArgs {
    /// Send changes of keys to this URL once HAProxy has them: a POST with JSON. A call that fails is repeated three times. No
    /// change waits for it
    #[arg(long, env = "CONFGEN_CHANGE_WEBHOOK", hide_env_values = true, value_name = "URL", value_parser = parse_webhook)]
    pub change_webhook: Option<reqwest::Url>,
    /// Run this shell command with the same JSON on its standard input. It has 10 s
    #[arg(long, env = "CONFGEN_CHANGE_EXEC", value_name = "COMMAND")]
    pub change_exec: Option<String>,
}

/// The options that the daemon and every command share.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Options of the connection to etcd
    #[command(flatten)]
    pub store: registry::Args,
    /// Options of HAProxy and of confgen's files
    #[command(flatten)]
    pub options: Options,
    /// Options of the intervals between actions
    #[command(flatten)]
    pub pacing: Pacing,
    /// Log these levels, for all modules or for one: info, debug, confgen=debug,registry=info
    #[arg(long, env = "CONFGEN_LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
    /// Write log lines in this form
    #[arg(long, env = "CONFGEN_LOG_FORMAT", value_enum, default_value_t, value_name = "FORM")]
    pub log_format: LogFormat,
}

/// The commands that run once and exit.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reconcile once. The exit code tells the result
    Once(Common),
    /// Print the haproxy.cfg that the store asks for. Write nothing, and change nothing in HAProxy
    Render {
        /// Render this revision of the store. etcd must not have compacted it
        #[arg(long, value_name = "N")]
        at_revision: Option<i64>,
        /// Options that every command has
        #[command(flatten)]
        common: Common,
    },
    /// Print what a reconcile would change in haproxy.cfg. Exit 1 if there is a change
    Diff(Common),
}

impl Command {
    /// The shared options, which each command holds by itself because clap flattens them there.
    pub fn common(&self) -> &Common {
        match self {
            Self::Once(common) | Self::Diff(common) | Self::Render { common, .. } => common,
        }
    }
}

/// The intervals between confgen's actions.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Pace")]
pub struct Pacing {
    /// Wait this long for more changes before a reconcile. With 500ms, a service that is written key by key needs one
    /// restart
    #[arg(long, env = "CONFGEN_MIN_WAIT", default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub min_wait: Duration,
    /// Restart HAProxy at most once in this time. After a time without restarts, two more may follow at once
    #[arg(long, env = "CONFGEN_RESTART_INTERVAL", default_value = "2s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub restart_interval: Duration,
    /// List all keys this often, in case an event was lost. HAProxy is observed again after each listing, and
    /// this often while etcd is away
    #[arg(long, env = "CONFGEN_RESYNC", default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub resync: Duration,
}

/// The paths that confgen writes, and the way to HAProxy.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "HAProxy")]
pub struct Options {
    /// Write the generated file here
    #[arg(long, env = "CONFGEN_HAPROXY_CFG", default_value = "/etc/haproxy/haproxy.cfg", value_name = "FILE", value_parser = parse_line_path)]
    pub haproxy_cfg: PathBuf,
    /// Read the operator's own *.cfg files from this directory. HAProxy reads them before the generated file
    #[arg(long, env = "CONFGEN_INCLUDE", default_value = "/etc/haproxy/conf.d", value_name = "DIR", value_parser = parse_line_path)]
    pub include: PathBuf,
    /// Keep the servers of a section in this file of --include up to date. They are the lines right below the comment
    /// `# discover SERVICE: server <id> <address> check`. Separate files by commas, or repeat the option
    #[arg(long, env = "CONFGEN_FILL", value_delimiter = ',', value_name = "FILE", value_parser = parse_line_path)]
    pub fill: Vec<PathBuf>,
    /// Keep maps, certificates and confgen's state here. Only one confgen at a time can use the directory
    #[arg(long, env = "CONFGEN_STATE_DIR", default_value = "/var/lib/confgen", value_name = "DIR", value_parser = parse_line_path)]
    pub state_dir: PathBuf,
    /// Serve HTTP on these addresses, separated by commas
    #[arg(long, env = "CONFGEN_HTTP_BIND", default_value = "*:80", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub http_bind: Vec<Bind>,
    /// Serve HTTPS on these addresses, separated by commas. Redirects name no port, so clients must reach HTTPS on port 443
    #[arg(long, env = "CONFGEN_HTTPS_BIND", default_value = "*:443", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub https_bind: Vec<Bind>,
    /// Serve the stats page on these addresses, separated by commas
    #[arg(long, env = "CONFGEN_STATS_BIND", default_value = "*:1936", value_delimiter = ',', value_name = "ADDR:PORT")]
    pub stats_bind: Vec<Bind>,
    /// Read the password of the stats page's user admin from this file. It has at most 128 bytes. Without the file, confgen makes
    /// a password in the state directory
    #[arg(long, env = "CONFGEN_STATS_PASSWORD_FILE", value_name = "FILE")]
    pub stats_password_file: Option<PathBuf>,
    /// Serve the stats page under this host too, over HTTPS. No service can claim the host
    #[arg(long, env = "CONFGEN_STATS_DOMAIN", value_name = "HOST")]
    pub stats_domain: Option<Host>,
    /// Show clients the pages of this directory in place of the built-in errors: 404.html, 503.json, 500.txt
    #[arg(long, env = "CONFGEN_ERROR_PAGES", value_name = "DIR", value_parser = parse_line_path)]
    pub error_pages: Option<PathBuf>,
    /// Send ACME's HTTP-01 challenges of every host to this HTTP service. A user with write access to its keys can get
    /// certificates for all hosts
    #[arg(long, env = "CONFGEN_ACME_SERVICE", value_name = "SERVICE")]
    pub acme_service: Option<ServiceName>,
    /// Serve the certificates in this directory and its direct subdirectories. They are PEM files (*.pem, *.crt, *.cer,
    /// *.cert, *.pem.rsa, *.pem.ecdsa, *.pem.dsa), with the private key in the file or in another one beside it. Changes need
    /// no restart. The log names certificates from 14 days before they expire
    #[arg(long, env = "CONFGEN_CERTS", default_value = "/etc/haproxy/certs", value_name = "DIR", value_parser = parse_line_path)]
    pub certs: PathBuf,
    /// Read the CA files that `verify` can name from this directory. They are PEM files
    #[arg(long, env = "CONFGEN_CA_DIR", default_value = "/etc/haproxy/ca", value_name = "DIR", value_parser = parse_line_path)]
    pub ca_dir: PathBuf,
    /// Reach HAProxy's Runtime API at this socket
    #[arg(long, env = "CONFGEN_RUNTIME_SOCKET", default_value = "/run/haproxy/admin.sock", value_name = "SOCKET", value_parser = parse_line_path)]
    pub runtime_socket: PathBuf,
    /// Have HAProxy read the servers' states from this file after a restart. It is handover's --state-file
    #[arg(long, env = "CONFGEN_SERVER_STATE_FILE", default_value = "/run/haproxy/servers.state", value_name = "FILE", value_parser = parse_line_path)]
    pub server_state_file: PathBuf,
    /// Send the access log here: a socket's path, or host:port for UDP
    #[arg(long, env = "CONFGEN_LOG", default_value = "/dev/log", value_name = "TARGET", value_parser = parse_log_target)]
    pub log: String,
    /// Trust the headers in which these clients describe their own clients, such as X-Forwarded-For, and their request ids.
    /// Give networks, separated by commas. The proxies must remove such headers from their clients' requests
    #[arg(long, env = "CONFGEN_TRUSTED_PROXIES", value_name = "CIDR,…")]
    pub trusted_proxies: Option<Networks>,
    /// Read the client's address from the PROXY protocol header, version 1 or 2, of TCP load balancers in these networks, on
    /// every port except the stats page's. Close their connections without such a header. Separate networks by commas
    #[arg(long, env = "CONFGEN_PROXY_PROTOCOL_FROM", value_name = "CIDR,…")]
    pub proxy_protocol_from: Option<Networks>,
    /// Pass on a client's trace, or begin one (W3C Trace Context). A request costs HAProxy 6.5 % more instructions with it. With
    /// `off`, HAProxy passes `traceparent` and `tracestate` on as they come, and the access log has no trace
    #[arg(long, env = "CONFGEN_TRACE_CONTEXT", value_enum, default_value_t, value_name = "SWITCH")]
    pub trace_context: Switch,
    /// Allow upstreams in these networks only. Without it, all addresses except loopback, link-local, multicast and
    /// unspecified ones are allowed
    #[arg(long, env = "CONFGEN_UPSTREAM_NETWORKS", value_name = "CIDR,…")]
    pub upstream_networks: Option<Networks>,
    /// Let connections go on for this long after a restart of HAProxy. Then the old process cuts those that are left
    /// (`hard-stop-after`)
    #[arg(long, env = "CONFGEN_HARD_STOP_AFTER", default_value = "24h", value_name = "TIME")]
    pub hard_stop_after: Span,
    /// Allow TCP services to bind these ports only
    #[arg(long, env = "CONFGEN_TCP_PORTS", default_value = "1024-65535", value_name = "FIRST-LAST", value_parser = parse_port_range)]
    pub tcp_ports: RangeInclusive<u16>,
    /// Read from this file which HTTP service may claim which hosts. A line is SERVICE HOST…, and `*` stands for every service
    /// or every host. A service that the file doesn't name can claim nothing
    #[arg(long, env = "CONFGEN_DOMAINS_FILE", value_name = "FILE")]
    pub domains_file: Option<PathBuf>,
    /// Keep serving upstreams that disappear together. Applies if more than this share of a service's upstreams, or of all,
    /// loses its keys unexpectedly within an hour while HAProxy's checks pass. A retained upstream is served until a check fails
    /// or its key is back. 100% disables it
    #[arg(long, env = "CONFGEN_GUARD", default_value = "50%", value_name = "PERCENT", value_parser = parse_percent)]
    pub guard: u8,
    /// Serve a retained upstream at once if it lost its key within this time before --guard applied. One that lost its
    /// key earlier must pass a check first
    #[arg(long, env = "CONFGEN_GUARD_WINDOW", default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub guard_window: Duration,
    /// Drop upstreams that --guard retains after this time, although their checks pass. Without it, no timer drops them
    #[arg(long, env = "CONFGEN_GUARD_HOLD", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub guard_hold: Option<Duration>,
    /// Name this balancer. Each balancer needs its own name: confgen writes what HAProxy runs to balancers/NODE, and announcers
    /// wait for it. Without it, the host's name is used
    #[arg(long, env = "CONFGEN_NODE", value_name = "NODE")]
    pub node: Option<Node>,
    /// Options of HAProxy's own rights
    #[command(flatten)]
    pub rights: Rights,
    /// Restart HAProxy with this command. If confgen reaches supervisord, it calls supervisord directly instead
    #[arg(
        long,
        env = "CONFGEN_RESTART_COMMAND",
        default_value = "supervisorctl restart haproxy",
        value_name = "COMMAND",
        value_parser = secrets::without_secrets
    )]
    pub restart_command: CommandLine,
    /// Check files with this command of HAProxy 2.6 or newer. confgen appends -f FILE for each
    #[arg(long, env = "CONFGEN_CHECK_COMMAND", default_value = "haproxy -c", value_name = "COMMAND", value_parser = secrets::without_secrets)]
    pub check_command: CommandLine,
}

/// The value of an option that turns a part of the generated file on or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    #[default]
    On,
    Off,
}

fn parse_webhook(text: &str) -> Result<reqwest::Url, String> {
    let url =
        text.parse::<reqwest::Url>().ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| "give a URL: https://chat.example.com/hooks/1".into())
}

/// A path that may stand in a line of haproxy.cfg.
fn parse_line_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains(breaks_line) {
        Ok(path)
    } else {
        Err("give an absolute path without blanks, quotes, backslashes, `#`, `$` and `,`".into())
    }
}

/// Paths stand unquoted in haproxy.cfg. There these characters end a word, or begin a comment, a quotation or a variable.
fn breaks_line(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'\\#$,".contains(c)
}

fn parse_log_target(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return parse_line_path(text).map(|_| text.to_owned());
    }
    let host = text.rsplit_once(':').filter(|(host, port)| {
        // An IPv6 address stands in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        port.parse::<u16>().is_ok_and(|port| port > 0)
            && (host.parse::<std::net::IpAddr>().is_ok() || host.parse::<Host>().is_ok())
    });
    host.map(|_| text.to_owned())
        .ok_or_else(|| "give a socket's absolute path, or host:port: /dev/log, 10.0.0.9:514".into())
}

fn parse_percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok().filter(|percent| *percent <= 100);
    number.ok_or_else(|| "give a share from 0% to 100%".into())
}

fn parse_port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bounds = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match bounds {
        Some((first, last)) if first <= last && first > 0 => Ok(first..=last),
        _ => Err("give a range of ports: 1024-65535".into()),
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
    fn a_value_that_breaks_a_line_is_rejected() {
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
            ("--hard-stop-after", "30"),
            ("--hard-stop-after", "25d"),
            ("--trace-context", "maybe"),
            ("--change-webhook", "chat.example.com"),
            ("--change-webhook", "ftp://chat.example.com"),
        ] {
            assert!(Cli::try_parse_from(["confgen", option, value]).is_err(), "{option} {value:?}");
        }
    }
}
