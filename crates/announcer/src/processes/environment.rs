//! Removes the announcer's secrets from what its children inherit: the app and the checks' commands.

use std::process::Command;

use program::variable;

/// Own variables that hold a secret or lead to one. A check's header may be an `Authorization`.
const OWN_SECRETS: [&str; 4] =
    ["ANNOUNCER_ADMIN_TOKEN_FILE", "ANNOUNCER_ADMIN_CERT", "ANNOUNCER_ADMIN_KEY", "ANNOUNCER_CHECK_HEADER"];

/// Removes secrets from what a command inherits. Everything else stays: an app may read `ANNOUNCER_PORT` or
/// `ETCDCTL_ENDPOINTS`.
pub(crate) fn remove_secrets(command: &mut Command) {
    for name in withheld_variables() {
        command.env_remove(name);
    }
}

fn withheld_variables() -> impl Iterator<Item = &'static str> {
    variable::withheld_variables(&registry::SECRET_VARIABLES, &OWN_SECRETS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::config::cli::Cli;

    #[test]
    fn every_variable_that_help_hides_or_that_names_a_secret_is_removed() {
        let withheld: BTreeSet<String> = withheld_variables().map(str::to_owned).collect();
        let secrets = program::options::secret_variables(&Cli::command());
        assert!(secrets.len() >= 6, "{secrets:?}");
        let inherited: Vec<_> = secrets.difference(&withheld).collect();
        assert!(inherited.is_empty(), "left in the app's environment: {inherited:?}");
    }
}
