//! `haproxy -c`: HAProxy's own word on a configuration.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::command::{self, CommandLine};
use crate::version::{NoVersion, Version};

/// The command that has HAProxy check files.
#[derive(Debug, Clone)]
pub struct Checker {
    command: CommandLine,
    timeout: Duration,
}

/// What HAProxy says of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    /// It would start with it.
    Valid {
        /// The lines of its warnings, as printed; empty for a clean file.
        warnings: Vec<String>,
    },
    /// It would not.
    Rejected {
        /// Everything that HAProxy printed.
        output: String,
    },
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command didn't run to its end.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// It ended in a way that says nothing about the files.
    #[error("`{command}` ended with {status}, which is no verdict: {output}")]
    Inconclusive {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// `haproxy -v` printed something else.
    #[error("`{command}`: {source}")]
    Version {
        /// The whole command line.
        command: String,
        /// What was read.
        source: NoVersion,
    },
}

impl Checker {
    /// A checker that runs `command` (`haproxy -c`, or a longer line that ends up there) with a
    /// `-f` for each file, for at most `timeout`.
    pub fn new(command: CommandLine, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    /// Has HAProxy check the files, or directories of `*.cfg`, in this order.
    ///
    /// # Errors
    /// When the command doesn't start, runs too long or ends in a way that is no verdict.
    pub fn check_files(&self, files: &[PathBuf]) -> Result<CheckResult, Error> {
        run_check(&files.iter().fold(self.command.clone(), |line, file| line.arg("-f").arg(file)), self.timeout)
    }

    /// The version of the HAProxy that checks: the same command with `-v` in place of its `-c`.
    ///
    /// # Errors
    /// When the command doesn't run, or prints no version.
    pub fn read_version(&self) -> Result<Version, Error> {
        let words = self.command.words().filter(|word| *word != OsStr::new("-c")).map(OsStr::to_owned);
        let line = CommandLine::from_words(words).unwrap_or_else(|| CommandLine::new("haproxy")).arg("-v");
        let outcome = line.run_within(self.timeout)?;
        Version::from_banner(&outcome.output).map_err(|source| Error::Version { command: line.to_string(), source })
    }
}

/// Runs a whole check command line, such as `haproxy -f /etc/haproxy/haproxy.cfg -c`.
///
/// # Errors
/// When it doesn't start, runs too long or ends in a way that is no verdict.
pub fn run_check(line: &CommandLine, timeout: Duration) -> Result<CheckResult, Error> {
    let outcome = line.run_within(timeout)?;
    match outcome.status.code() {
        Some(0) => Ok(CheckResult::Valid { warnings: extract_warnings(&outcome.output) }),
        // 1: errors; 2: none, "but will not start (no listener)". Others are a wrapper's (`docker exec`: 125–127).
        Some(1 | 2) => Ok(CheckResult::Rejected { output: outcome.output }),
        _ => Err(Error::Inconclusive { command: line.to_string(), status: outcome.status, output: outcome.output }),
    }
}

/// The warnings among what a successful check prints: everything but notices and the closing words.
fn extract_warnings(output: &str) -> Vec<String> {
    const CLOSING: [&str; 2] = ["Configuration file is valid", "Warnings were found."];
    output
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with("[NOTICE]") && !CLOSING.contains(line))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn check(text: &str) -> Result<CheckResult, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
        Checker::new("haproxy -c".parse().unwrap(), LONG).check_files(&[file.path().to_owned()])
    }

    const TIMEOUTS: &str = "defaults\n timeout client 1s\n timeout server 1s\n timeout connect 1s\n";

    #[test]
    fn a_clean_file_has_no_warnings() {
        let verdict = check(&format!("{TIMEOUTS}listen l\n bind 127.0.0.1:1\n")).unwrap();
        assert_eq!(verdict, CheckResult::Valid { warnings: vec![] });
    }

    #[test]
    fn warnings_are_kept_whole() {
        let verdict = check("listen l\n bind 127.0.0.1:1\n").unwrap();
        let CheckResult::Valid { warnings } = verdict else { panic!("{verdict:?}") };
        assert!(warnings.iter().any(|line| line.contains("missing timeouts for proxy 'l'")), "{warnings:?}");
        assert!(!warnings.iter().any(|line| line.contains("NOTICE")), "{warnings:?}");
    }

    #[test]
    fn a_refusal_carries_haproxys_words() {
        let verdict = check("listen l\n bnid 127.0.0.1:1\n").unwrap();
        assert!(
            matches!(&verdict, CheckResult::Rejected { output } if output.contains("unknown keyword 'bnid'")),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_file_without_listener_is_refused() {
        assert!(matches!(check(TIMEOUTS), Ok(CheckResult::Rejected { .. })));
    }

    #[test]
    fn a_wrapper_that_fails_is_no_verdict() {
        let checker = Checker::new("sh -c 'echo no such container; exit 125'".parse().unwrap(), LONG);
        let error = checker.check_files(&[]).unwrap_err();
        assert!(error.to_string().contains("no such container"), "{error}");
    }

    #[test]
    fn knows_the_version_of_what_it_runs() {
        let version = Checker::new("env haproxy -c".parse().unwrap(), LONG).read_version().unwrap();
        assert!(version >= Version::new(2, 6, 0), "{version}");
    }
}
