//! The variables that no child of the announcer gets: neither the app nor a check's command.

use std::process::Command;

/// The announcer's own variables that hold a secret or lead to one. A header may be an `Authorization`.
const OWN_SECRETS: [&str; 4] =
    ["ANNOUNCER_ADMIN_TOKEN_FILE", "ANNOUNCER_ADMIN_CERT", "ANNOUNCER_ADMIN_KEY", "ANNOUNCER_CHECK_HEADER"];

/// Takes them out of what a command would inherit. Everything else stays: an app may well read `ANNOUNCER_PORT` or
/// `ETCDCTL_ENDPOINTS`.
pub(crate) fn remove_secrets(command: &mut Command) {
    for name in secret_variables() {
        command.env_remove(name);
    }
}

fn secret_variables() -> impl Iterator<Item = &'static str> {
    daemon::systemd::VARIABLES.into_iter().chain(registry::SECRET_VARIABLES).chain(OWN_SECRETS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::config::cli::Cli;

    #[test]
    fn every_variable_that_help_hides_or_that_names_a_secret_is_removed() {
        let removed: BTreeSet<_> = secret_variables().collect();
        let mut seen = 0;
        for arg in Cli::command().get_arguments() {
            let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
            let is_secret = arg.is_hide_env_values_set()
                || ["PASSWORD", "TOKEN", "KEY", "SECRET", "USER"].iter().any(|word| name.contains(word));
            assert!(!is_secret || removed.contains(name), "{name} is left in the app's environment");
            seen += usize::from(is_secret);
        }
        assert!(seen >= 6, "{seen}");
    }
}
