//! The environment variables that confgen's commands (`haproxy -c`, `supervisorctl`) do not inherit.

use haproxy::command::{self, CommandLine};

/// The variables of confgen's own that lead to a secret.
const OWN: [&str; 4] =
    ["CONFGEN_ADMIN_TOKEN_FILE", "CONFGEN_ADMIN_CERT", "CONFGEN_ADMIN_KEY", "CONFGEN_STATS_PASSWORD_FILE"];

/// Reads a command line that runs without secrets and without systemd's notification socket.
pub(super) fn without_secrets(text: &str) -> Result<CommandLine, command::Error> {
    Ok(text.parse::<CommandLine>()?.without_variables(withheld()))
}

fn withheld() -> impl Iterator<Item = &'static str> {
    daemon::systemd::VARIABLES.into_iter().chain(registry::SECRET_VARIABLES).chain(OWN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;

    #[test]
    fn every_variable_that_names_a_secret_is_withheld() {
        let withheld: BTreeSet<_> = super::withheld().collect();
        let mut secrets = 0;
        for arg in Cli::command().get_arguments() {
            let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
            let is_secret = arg.is_hide_env_values_set()
                || ["PASSWORD", "TOKEN", "_KEY", "SECRET", "ETCDCTL_USER"].iter().any(|word| name.contains(word));
            assert!(!is_secret || withheld.contains(name), "commands inherit {name}");
            secrets += usize::from(is_secret);
        }
        assert!(secrets >= 6, "{secrets}");
    }

    #[test]
    fn the_commands_of_the_options_run_without_them() {
        for args in [&["confgen"][..], &["confgen", "--check-command", "hap -c", "--restart-command", "restart it"]] {
            let options = Cli::try_parse_from(args).unwrap().common.options;
            for command in [&options.check_command, &options.restart_command] {
                assert_eq!(*command, super::without_secrets(&command.to_string()).unwrap());
            }
        }
    }
}
