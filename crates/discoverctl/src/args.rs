//! The command line as it is written. Each command's own options stand beside the command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use discovery::Kind;

use crate::commands::Command;

const EXAMPLES: &str = "Examples:
  What is there, and what every balancer makes of it:
      discoverctl list
      discoverctl show shop
  Why does this upstream get no traffic?
      discoverctl explain shop/node-1
  Take an upstream out, wait until its last request is answered, put it back:
      discoverctl drain shop/node-1
      discoverctl ready shop/node-1
  A blue-green switch in steps that goes back by itself when too many requests fail:
      discoverctl switch shop green --steps 10,50,100 --every 30s --max-errors 1%
  For programs:
      discoverctl list --output json
  Man pages, and completions for bash, zsh or fish; the other commands have these too:
      discoverctl man /usr/local/share/man/man1
      discoverctl completions bash > /etc/bash_completion.d/discoverctl

Options that stand for a host or a user: /etc/haproxy-discover/discoverctl.toml and ~/.config/haproxy-discover/discoverctl.toml
(`discoverctl config` shows what counts).

A service is named as its keys are, `shop`; where an HTTP and a TCP service bear one name, as HAProxy's sections are:
`http-shop`, `tcp-shop`. An upstream is SVC/ID.

Exit codes:
  0    yes; done, and every live balancer follows
  1    no: not balanced, not found, something to complain about
  2    the command line doesn't make sense
  3    etcd can't be reached, or refuses the login; nothing was changed
  4    refused, nothing was changed: no such service or upstream, forbidden by etcd's roles, somebody else's key or claim
  5    changed, but a balancer doesn't follow: refused there, or not in time
  6    a balancer can't be asked, and the answer needs it
  7    a switch went back, or was stopped on its way; the last line says what is active
  130  interrupted";

/// Sees, explains and changes what haproxy-discover's balancers follow.
#[derive(Debug, Parser)]
#[command(name = "discoverctl", version, after_long_help = EXAMPLES, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_examples_and_stands_in_the_docs() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/discoverctl.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:") && help.contains(&format!("discoverctl {name}")), "{name}: {help}");
            let title = |line: &str| line.starts_with("## ") && line[3..].split(", ").any(|it| it == name);
            assert!(docs.lines().any(title), "docs/discoverctl.md has no section of {name}");
        }
    }

    #[test]
    fn the_page_of_options_is_the_code() {
        expect_test::expect_file!["../../../docs/flags-discoverctl.md"]
            .assert_eq(&manual::options(&Cli::command().mut_args(|arg| arg.global(true))));
    }

    #[test]
    fn the_options_fit_together() {
        Cli::command().mut_args(|arg| arg.global(true)).debug_assert();
    }
}
