//! The release of the HAProxy that checks files. It makes no difference to the files themselves.

use anyhow::bail;
use haproxy::check::Checker;
use haproxy::version::Support;

/// Refuses a HAProxy that is too old, and warns of one that is newer than the tested ones.
///
/// confgen asks once, at its start. The running HAProxy may be another release, because a package's upgrade replaces the program
/// while it runs. All releases get the same file, so an upgrade alone is no reason for a restart.
pub fn check_haproxy_version(checker: &Checker) -> anyhow::Result<()> {
    match checker.read_version() {
        Ok(version) => match version.support() {
            Support::TooOld => bail!("HAProxy {version} is too old: 2.6 or newer is needed (--check-command)"),
            Support::Known => tracing::info!(%version, "HAProxy checks the files"),
            Support::Newer => tracing::warn!(
                %version,
                "HAProxy is newer than 3.4, the newest that confgen was tested with; it gets the same file"
            ),
        },
        // HAProxy may be installed later. Until then each check fails with its own words.
        Err(error) => tracing::warn!(%error, "can't tell the release of the HAProxy that checks the files"),
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
