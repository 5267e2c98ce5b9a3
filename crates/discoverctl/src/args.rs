//! The command line. Each command's own options are in the command's module.

pub(crate) mod completion;

use clap::{CommandFactory, Parser};

use crate::commands::Command;
use crate::shared_options::Common;

const EXAMPLES: &str = "Examples:
  List the services, and their state at every balancer:
      discoverctl list
      discoverctl show shop
  Explain why an upstream gets no requests:
      discoverctl explain shop/node-1
  Take an upstream out, wait until its last request is answered, and put it back:
      discoverctl drain shop/node-1
      discoverctl ready shop/node-1
  Take all upstreams of a host out before it reboots, and put them back:
      discoverctl drain --host web-1
      discoverctl ready --host web-1
  Switch from blue to green in steps, and go back if too many requests fail:
      discoverctl switch shop green --steps 10,50,100 --every 30s --max-errors 1%
  Find out what is wrong, and what to do:
      discoverctl doctor
  Print JSON for programs:
      discoverctl list --output json
  Write man pages, and completions for bash, zsh or fish. The other programs have these commands, too:
      discoverctl man /usr/local/share/man/man1
      discoverctl completions bash > /etc/bash_completion.d/discoverctl

Options for a whole host are in /etc/haproxy-discover/discoverctl.toml, options for a user in \
~/.config/haproxy-discover/discoverctl.toml. `discoverctl config` shows the options in effect.

SVC is a service's name, as in its keys: `shop`. If an HTTP and a TCP service have that name, SVC is the name of HAProxy's \
section: `http-shop` or `tcp-shop`. SVC/ID is an upstream.

Exit codes:
  0    yes, or done, and every live balancer follows
  1    no: not balanced, not found, or lint or doctor found a fault
  2    the command line makes no sense
  3    etcd can't be reached, or refuses the login. Nothing was changed
  4    refused. Nothing was changed: no such service or upstream, forbidden by etcd's roles, another owner's key or claim
  5    changed, but a balancer doesn't follow: it refuses the change, is too late or has vanished. Or changed in part only
  6    a balancer can't be asked, and the answer needs it
  7    a switch went back, or was stopped on its way. The last line names the active colors
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

/// The command line's definition.
pub(crate) fn command() -> clap::Command {
    // Operators write options behind the command too, so every option is global.
    Cli::command().mut_args(|arg| arg.global(true))
}

#[cfg(test)]
mod tests {

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
