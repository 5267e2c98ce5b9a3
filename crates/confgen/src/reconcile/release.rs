//! Which HAProxy it is that checks the files, and whether it can be written for.

use anyhow::bail;
use haproxy::check::Checker;
use haproxy::version::Support;

/// Refuses a HAProxy that is too old, and warns of one that nobody has tested.
///
/// It is asked once, at the start. What runs may be another release, since a package's upgrade replaces the program under
/// it: the file is the same for all of them, so that an upgrade alone is no reason for a restart.
pub fn check_haproxy_version(checker: &Checker) -> anyhow::Result<()> {
    match checker.read_version() {
        Ok(version) => match version.support() {
            Support::TooOld => bail!("HAProxy {version} is too old: 2.6 or newer is needed (--check-command)"),
            Support::Known => tracing::info!("HAProxy {version} checks the files"),
            Support::Newer => tracing::warn!(
                "HAProxy {version} is newer than 3.2, the newest that confgen was tested with; it gets the same file"
            ),
        },
        // Perhaps it is only not there yet; each check says what is wrong with it.
        Err(error) => tracing::warn!("which HAProxy checks the files can't be told: {error}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::state_dir::replace_file;

    fn vet_one_that_says(text: &str) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let program = dir.path().join("haproxy");
        replace_file(&program, format!("#!/bin/sh\necho '{text}'\n").as_bytes(), 0o700)?;
        assert_eq!(std::fs::metadata(&program)?.permissions().mode() & 0o777, 0o700);
        check_haproxy_version(&Checker::new(format!("{} -c", program.display()).parse()?, Duration::from_secs(10)))
    }

    #[test]
    fn only_what_is_known_to_be_too_old_is_refused() {
        let error = vet_one_that_says("HAProxy version 2.4.22-0ubuntu0 2023/02/14").unwrap_err();
        assert!(error.to_string().starts_with("HAProxy 2.4.22 is too old: 2.6 or newer"), "{error}");
        for fine in ["HAProxy version 2.6.12-1+deb12u2", "HAProxy version 3.2.26-1", "HAProxy version 4.0.0", "?"] {
            vet_one_that_says(fine).unwrap();
        }
    }
}
