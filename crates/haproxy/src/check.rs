//! Runs `haproxy -c`, and reads HAProxy's verdict on a configuration. It changes nothing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::command::{self, CommandLine};
use crate::version::{NoVersion, Version};

/// A command that has HAProxy check files, with its time limit.
#[derive(Debug, Clone)]
pub struct Checker {
    command: CommandLine,
    timeout: Duration,
}

/// HAProxy's verdict on a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    /// HAProxy accepts the configuration.
    Valid {
        /// The lines of HAProxy's warnings, as printed. Empty for a clean file.
        warnings: Vec<String>,
    },
    /// HAProxy rejects the configuration.
    Rejected {
        /// HAProxy's whole output, at most 64 KiB.
        output: String,
    },
}

/// The reason that a check has no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command didn't run to its end.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The command ended in a way that says nothing about the files.
    #[error("`{command}` ended with {status}, which says nothing about the files. Its output: {output}")]
    Inconclusive {
        /// The command line, as a shell would read it.
        command: String,
        /// The exit status above 2, or the signal.
        status: ExitStatus,
        /// The command's whole output, at most 64 KiB.
        output: String,
    },
    /// `haproxy -v` printed no version.
    #[error("`{command}`: {source}")]
    Version {
        /// The command line, as a shell would read it.
        command: String,
        /// The beginning of the output.
        source: NoVersion,
    },
}

impl Checker {
    /// Makes a checker that runs `command` (`haproxy -c`, or a longer line that ends up there) with a `-f` for each
    /// file, for at most `timeout`.
    pub fn new(command: CommandLine, timeout: Duration) -> Self {
        Self { command, timeout }
    }

    /// Has HAProxy check the files, or directories of `*.cfg`, in this order.
    ///
    /// # Errors
    /// If the command doesn't start, runs too long, or ends in a way that says nothing about the files.
    pub fn check_files(&self, files: &[PathBuf]) -> Result<CheckResult, Error> {
        run_check(&files.iter().fold(self.command.clone(), |line, file| line.arg("-f").arg(file)), self.timeout)
    }

    /// Asks the HAProxy that checks for its version: the same command with `-v` in place of its `-c`.
    ///
    /// # Errors
    /// If the command doesn't run, or prints no version.
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
/// If the command doesn't start, runs too long, or ends in a way that says nothing about the files.
pub fn run_check(line: &CommandLine, timeout: Duration) -> Result<CheckResult, Error> {
    let outcome = line.run_within(timeout)?;
    match outcome.status.code() {
        Some(0) => Ok(CheckResult::Valid { warnings: extract_warnings(&outcome.output) }),
        // HAProxy exits with 1 for errors, and with 2 for a file that it "will not start" with (no listener). A wrapper
        // has others (`docker exec`: 125–127).
        Some(1 | 2) => Ok(CheckResult::Rejected { output: outcome.output }),
        _ => Err(Error::Inconclusive { command: line.to_string(), status: outcome.status, output: outcome.output }),
    }
}

/// Finds the warnings in the output of a successful check: everything but notices and the closing words.
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
