//! The options that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use discovery::Kind;

/// How the answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people, as wide as the terminal
    #[default]
    Table,
    /// The same cells separated by tabs, without a head
    Plain,
    /// JSON; names that are there stay
    Json,
    /// The same as YAML
    Yaml,
}

/// How the balancers' API is asked. Where it is, they say themselves below `balancers/`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Balancers' API")]
pub(crate) struct Api {
    /// The token of confgen's --admin-token-file
    #[arg(long, env = "DISCOVERCTL_API_TOKEN_FILE", value_name = "FILE")]
    pub(crate) api_token_file: Option<PathBuf>,
    /// The CA that the balancers' certificates must be signed by; needed for https
    #[arg(long, env = "DISCOVERCTL_API_CACERT", value_name = "FILE")]
    pub(crate) api_cacert: Option<PathBuf>,
    /// The certificate shown to balancers that ask for one
    #[arg(long, env = "DISCOVERCTL_API_CERT", value_name = "FILE")]
    pub(crate) api_cert: Option<PathBuf>,
    /// The key of --api-cert
    #[arg(long, env = "DISCOVERCTL_API_KEY", value_name = "FILE")]
    pub(crate) api_key: Option<PathBuf>,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// How the answer is printed
    #[arg(long, short, value_enum, default_value_t, env = "DISCOVERCTL_OUTPUT")]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) api: Api,
    #[command(flatten)]
    pub(crate) etcd: registry::Args,
}

/// What every command takes that changes something.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Waiting")]
pub(crate) struct Changing {
    /// Say what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't wait for the balancers
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait until every live balancer follows
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
