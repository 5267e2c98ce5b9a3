//! Runs the operator's commands of `--before` and `--after`.

use std::io;
use std::os::fd::AsFd as _;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// The environment variables of the command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HookEnv {
    /// `DISCOVER_SERVICE`, the service's own name.
    pub(crate) service: String,
    /// `DISCOVER_COLOR`, the color to make active.
    pub(crate) color: String,
    /// `DISCOVER_UPSTREAMS`, the new color's addresses, separated by blanks.
    pub(crate) upstreams: String,
    /// `DISCOVER_DOMAIN`, the service's first host; empty if it has none.
    pub(crate) domain: String,
    /// `DISCOVER_PREVIEW`, the host that previews the new color; empty if there is no preview.
    pub(crate) preview: String,
}

/// A running command. Dropping it ends the command with its whole process group.
struct RunningHook(Child, Option<Pid>);

impl Drop for RunningHook {
    fn drop(&mut self) {
        // A command that has ended has no group any more, and its id may belong to another process.
        if let Some(group) = self.1.filter(|_| matches!(self.0.try_wait(), Ok(None))) {
            let _ = killpg(group, Signal::SIGTERM);
        }
    }
}

/// Runs the command of an option until it ends. Its output goes to standard error. The error says why it failed.
pub(crate) async fn run_hook(option: &str, command: &str, env: &HookEnv) -> Result<(), String> {
    let why = match run_command(command, env).await {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(format!("{option} failed ({command}): {why}"))
}

async fn run_command(command: &str, env: &HookEnv) -> io::Result<ExitStatus> {
    // Standard output belongs to the answer of discoverctl.
    let out = io::stderr().as_fd().try_clone_to_owned()?;
    let child = Command::new("sh")
        .args(["-c", command])
        .env("DISCOVER_SERVICE", &env.service)
        .env("DISCOVER_COLOR", &env.color)
        .env("DISCOVER_UPSTREAMS", &env.upstreams)
        .env("DISCOVER_DOMAIN", &env.domain)
        .env("DISCOVER_PREVIEW", &env.preview)
        .stdin(Stdio::null())
        .stdout(out)
        // In a group of its own the command doesn't get the terminal's Ctrl-C. The switch gets it first, and then ends
        // the group.
        .process_group(0)
        .spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut running = RunningHook(child, group);
    running.0.wait().await
}
