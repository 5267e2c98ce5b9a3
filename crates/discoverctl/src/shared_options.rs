//! Options that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use discovery::Kind;

/// The form in which answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people, as wide as the terminal
    #[default]
    Table,
    /// The table's cells separated by tabs, without a head
    Plain,
    /// JSON with names that don't change
    Json,
    /// YAML with the names of the JSON
    Yaml,
}

/// Options of requests to the balancers' API. The balancers' keys below `balancers/` name its URLs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Balancers' API")]
pub(crate) struct Api {
    /// Send the token in this file, that of confgen's --admin-token-file
    #[arg(long, env = "DISCOVERCTL_API_TOKEN_FILE", value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
    /// Trust balancers' certificates that the CA in this file signed. Needed for https
    #[arg(long, env = "DISCOVERCTL_API_CACERT", value_name = "FILE")]
    pub(crate) api_cacert: Option<PathBuf>,
    /// Show the certificate in this file to balancers that ask for one
    #[arg(long, env = "DISCOVERCTL_API_CERT", value_name = "FILE")]
    pub(crate) api_cert: Option<PathBuf>,
    /// Use the key in this file for --api-cert
    #[arg(long, env = "DISCOVERCTL_API_KEY", value_name = "FILE")]
    pub(crate) api_key: Option<PathBuf>,
}

/// Options of the change log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Change log")]
pub(crate) struct Logging {
    /// Keep the entry of a change below `log/` this long. 0 writes none
    #[arg(long, value_name = "TIME", default_value = "90d", env = "DISCOVERCTL_LOG_FOR", value_parser = parse_log_for)]
    pub(crate) log_for: Duration,
}

/// The longest time that etcd grants a lease for is 9,000,000,000 s (`MaxLeaseTTL`). Ten years are enough for a log.
const LONGEST_LOG: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Parses a time, or `0`.
pub(crate) fn parse_log_for(text: &str) -> Result<Duration, String> {
    let time = if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) };
    let time = time.map_err(|error| error.to_string())?;
    if time > LONGEST_LOG { Err("at most ten years".to_owned()) } else { Ok(time) }
}

/// The options that every command has.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Print answers in this form
    #[arg(long, short, value_enum, default_value_t, env = "DISCOVERCTL_OUTPUT")]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) logging: Logging,
    #[command(flatten)]
    pub(crate) etcd: registry::Args,
}

/// Options of every command that changes keys.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct Changing {
    /// Write this reason into the change log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Print the changes, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't wait for the balancers
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Wait at most this long until every live balancer follows
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

/// The kind of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Type {
    /// Routed by host and path
    Http,
    /// Bound to ports of its own
    Tcp,
}

impl From<Type> for Kind {
    fn from(given: Type) -> Self {
        match given {
            Type::Http => Self::Http,
            Type::Tcp => Self::Tcp,
        }
    }
}
