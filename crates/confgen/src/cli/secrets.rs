//! The environment variables that confgen's commands (`haproxy -c`, `supervisorctl`) do not inherit.

use haproxy::command::{self, CommandLine};

/// The variables of confgen's own that lead to a secret.
const OWN: [&str; 5] = [
    "CONFGEN_ADMIN_TOKEN_FILE",
    "CONFGEN_ADMIN_CERT",
    "CONFGEN_ADMIN_KEY",
    "CONFGEN_CHANGE_WEBHOOK",
    "CONFGEN_STATS_PASSWORD_FILE",
];

/// Reads a command line that runs without secrets and without systemd's notification socket.
pub(super) fn without_secrets(text: &str) -> Result<CommandLine, command::Error> {
    Ok(text.parse::<CommandLine>()?.without_variables(withheld()))
}

/// The variables that no command inherits.
pub fn withheld() -> impl Iterator<Item = &'static str> {
    program::variable::withheld_variables(&registry::SECRET_VARIABLES, &OWN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory, Parser};

    use crate::cli::Cli;

    #[test]
    fn every_variable_that_names_a_secret_is_withheld() {
        let withheld: BTreeSet<String> = super::withheld().map(str::to_owned).collect();
        let secrets = program::options::secret_variables(&Cli::command());
        assert!(secrets.len() >= 6, "{secrets:?}");
        let inherited: Vec<_> = secrets.difference(&withheld).collect();
        assert!(inherited.is_empty(), "commands inherit {inherited:?}");
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
