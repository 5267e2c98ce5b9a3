//! `--before` and `--after`: a command of the operator's.

use std::os::fd::AsFd as _;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// What the command is told, by environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HookEnv {
    /// The service's name.
    pub(crate) service: String,
    /// The new color.
    pub(crate) color: String,
    /// Its upstreams' addresses, separated by blanks.
    pub(crate) upstreams: String,
    /// The service's first host; empty where it has none.
    pub(crate) domain: String,
    /// The host that previews the new color; empty where there is no preview.
    pub(crate) preview: String,
}

/// A command that runs. It and what it started end with this.
struct RunningHook(Child, Option<Pid>);

impl Drop for RunningHook {
    fn drop(&mut self) {
        if let Some(group) = self.1.filter(|_| matches!(self.0.try_wait(), Ok(None))) {
            let _ = killpg(group, Signal::SIGTERM);
        }
    }
}

/// Runs it to its end; what it prints goes to standard error. An error says why it failed.
pub(crate) async fn run_hook(option: &str, command: &str, told: &HookEnv) -> Result<(), String> {
    let failed = |why: String| format!("{option} failed ({command}): {why}");
    // Standard output is the answer's.
    let out = std::io::stderr().as_fd().try_clone_to_owned().map_err(|error| failed(error.to_string()))?;
    let child = Command::new("sh")
        .args(["-c", command])
        .env("DISCOVER_SERVICE", &told.service)
        .env("DISCOVER_COLOR", &told.color)
        .env("DISCOVER_UPSTREAMS", &told.upstreams)
        .env("DISCOVER_DOMAIN", &told.domain)
        .env("DISCOVER_PREVIEW", &told.preview)
        .stdin(Stdio::null())
        .stdout(out)
        // Ctrl-C is for the switch to see first: it ends the command's whole group.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut running = RunningHook(child, group);
    let status = running.0.wait().await.map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}
