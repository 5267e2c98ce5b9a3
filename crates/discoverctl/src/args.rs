//! The command line. Each command's own options are in the command's module.

use clap::Parser;

use crate::commands::Command;
use crate::shared_options::Common;

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

/// See, explain and change what haproxy-discover's balancers follow.
#[derive(Debug, Parser)]
#[command(name = "discoverctl", version, after_long_help = EXAMPLES, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
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
            .assert_eq(&manual::render_options_page(&Cli::command().mut_args(|arg| arg.global(true))));
    }

    #[test]
    fn the_options_fit_together() {
        Cli::command().mut_args(|arg| arg.global(true)).debug_assert();
    }
}
