//! A restart: supervisord is asked for it, and HAProxy whether it took.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use haproxy::supervisor::State;

use super::{HaproxyControl, running_generation};

/// A restart checks the file, starts HAProxy and waits for its answer: under a second for thousands of servers. A
/// process that isn't live after this is looked at again by the next try.
const LIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// How soon, and how often, supervisord is asked whether HAProxy's start has failed.
const CHECK_FAILED_EVERY: Duration = Duration::from_millis(500);
/// How long supervisord is left to start it by itself: a second after a start that failed, another one for its own look at
/// what is due, and the program's `startsecs`.
const SUPERVISORD_START_WAIT: Duration = Duration::from_secs(3);
/// How often supervisord is asked meanwhile; being asked, it looks at what is due.
const ASK_SUPERVISORD_EVERY: Duration = Duration::from_millis(50);
/// How often HAProxy is asked whether it has got there.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// While both processes hold the socket, for some tens of milliseconds, either may answer: the new one has it alone when
/// it has answered so often in a row.
const CONFIRMATIONS: u32 = 5;

/// How a restart went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartResult {
    /// HAProxy runs the wanted generation.
    Taken,
    /// An operator has stopped it, and so it stays.
    Stopped,
    /// It didn't take, for this reason.
    Failed(String),
}

impl HaproxyControl {
    /// Takes the marker away where it no longer stands for a stop without its start: a confgen that was killed may have
    /// left it, and an operator's stop would be taken for ours.
    pub(super) fn clear_stale_marker(&self) -> anyhow::Result<()> {
        let under_way = |state| !matches!(state, State::Stopped | State::Stopping | State::Unknown);
        if self.stop_marker.exists() && self.control.query_state().is_ok_and(under_way) {
            self.remove_marker()
        } else {
            Ok(())
        }
    }

    fn remove_marker(&self) -> anyhow::Result<()> {
        fs::remove_file(&self.stop_marker).with_context(|| format!("remove {}", self.stop_marker.display()))
    }

    /// Has HAProxy restarted into the generation that lies on disk, and waits until it runs it. Afresh: one that is just
    /// starting may have read what lay there before, and isn't enough.
    pub fn restart_into(&mut self, stamp: &str, afresh: bool) -> anyhow::Result<RestartResult> {
        self.invalidate();
        // A stop of ours that a crash cut short is mended; one of an operator's is respected.
        if matches!(self.control.query_state(), Ok(State::Stopped | State::Stopping)) && !self.stop_marker.exists() {
            return Ok(RestartResult::Stopped);
        }
        let begun = SystemTime::now();
        // The old process may run the same generation: servers alone are no part of its stamp.
        let process = || self.socket.show_info().ok().map(|info| info.pid);
        let mut old = process();
        let is_new = |old| process() != old && running_generation(&self.socket).as_deref() == Some(stamp);
        if !self.await_supervisord_start(|| !afresh && is_new(old)) {
            old = process();
            fs::File::create(&self.stop_marker).with_context(|| format!("create {}", self.stop_marker.display()))?;
            if let Err(error) = self.control.restart_program() {
                // It may have failed between the stop and the start, and is then ours to finish.
                self.clear_stale_marker()?;
                return Ok(self.describe_failure(begun, error.to_string()));
            }
            self.remove_marker()?;
        }
        let deadline = Instant::now() + LIVE_TIMEOUT;
        let mut answers = 0;
        let mut ask_supervisord = Instant::now() + CHECK_FAILED_EVERY;
        while Instant::now() < deadline {
            if answers == 0 && Instant::now() >= ask_supervisord {
                ask_supervisord += CHECK_FAILED_EVERY;
                if let Ok(state @ (State::Backoff | State::Fatal | State::Exited)) = self.control.query_state() {
                    return Ok(self.describe_failure(begun, format!("HAProxy doesn't start (supervisord: {state})")));
                }
            }
            answers = if is_new(old) { answers + 1 } else { 0 };
            if answers == CONFIRMATIONS {
                return Ok(RestartResult::Taken);
            }
            std::thread::sleep(ASK_EVERY);
        }
        let state = self.control.query_state().map_or_else(|error| error.to_string(), |state| state.to_string());
        let reason = format!("HAProxy doesn't run generation {stamp} after {LIVE_TIMEOUT:?} (supervisord: {state})");
        Ok(self.describe_failure(begun, reason))
    }

    /// The reason with the words of the start that failed, in which HAProxy itself says why.
    fn describe_failure(&self, begun: SystemTime, reason: String) -> RestartResult {
        let words = self.control.read_failure_message(self.socket.path(), begun);
        RestartResult::Failed(match words {
            Some(words) => format!("{reason}: {words}"),
            None => reason,
        })
    }

    /// Whether supervisord starts the new one by itself; it is left to do so for a while. What it is told to end right after
    /// its start may not hear of it: supervisord's child catches the signal until it has become the program. supervisord
    /// would wait for the whole `stopwaitsecs`, and all changes with it.
    fn await_supervisord_start(&self, is_new: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + SUPERVISORD_START_WAIT;
        while Instant::now() < deadline && matches!(self.control.query_state(), Ok(State::Backoff | State::Starting)) {
            if is_new() {
                return true;
            }
            std::thread::sleep(ASK_SUPERVISORD_EVERY);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use haproxy::runtime::Socket;
    use haproxy::supervisor::Control;

    use super::*;
    use crate::desired::DesiredState;
    use crate::state_dir::{StateDir, replace_file};

    /// A supervisorctl that knows one state, and does what `restart` says to it.
    fn proxy(dir: &Path, state: &str, restart: &str) -> HaproxyControl {
        let (script, file) = (dir.join("script"), dir.join("state"));
        let text = format!(
            "case $2 in\nstatus) echo \"haproxy $(cat {file})\" ;;\nrestart) {restart} ;;\nesac\n",
            file = file.display(),
            restart = restart.replace("STATE", &file.display().to_string())
        );
        replace_file(&script, text.as_bytes(), 0o600).unwrap();
        replace_file(&file, state.as_bytes(), 0o600).unwrap();
        let command = format!("sh {} supervisorctl restart haproxy", script.display());
        let control = Control::new(command.parse().unwrap(), None);
        HaproxyControl::new(Socket::new(dir.join("none.sock")), control, dir.join("restarting"))
    }

    #[test]
    fn an_operators_stop_is_respected() {
        for state in ["STOPPED", "STOPPING"] {
            let dir = tempfile::tempdir().unwrap();
            let mut proxy = proxy(dir.path(), state, "exit 9");
            assert_eq!(proxy.restart_into("0123456789abcdef", false).unwrap(), RestartResult::Stopped, "{state}");
        }
    }

    #[test]
    fn a_start_that_fails_after_our_stop_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "echo STOPPED >STATE; exit 1");
        for _ in 0..2 {
            assert!(matches!(proxy.restart_into("0123456789abcdef", false).unwrap(), RestartResult::Failed(_)));
        }
    }

    #[test]
    fn a_restart_that_fails_is_told_in_the_words_that_handover_left() {
        let dir = tempfile::tempdir().unwrap();
        let masters = haproxy::masters::nested_directory(&dir.path().join("none.sock"));
        fs::create_dir(&masters).unwrap();
        let (words, file) = (dir.path().join("words"), masters.join(haproxy::failure::FILE));
        replace_file(&words, &haproxy::failure::encode_message("[ALERT] cannot bind socket"), 0o600).unwrap();
        let fails = format!("cat {} >{}; echo 'ERROR (spawn error)'; exit 7", words.display(), file.display());
        let RestartResult::Failed(reason) =
            proxy(dir.path(), "RUNNING", &fails).restart_into("0123456789abcdef", false).unwrap()
        else {
            panic!("it failed");
        };
        assert!(reason.contains("spawn error") && reason.ends_with(": [ALERT] cannot bind socket"), "{reason}");
    }

    #[test]
    fn a_start_under_way_is_not_cut_short() {
        for under_way in ["STARTING", "BACKOFF"] {
            let dir = tempfile::tempdir().unwrap();
            let mut proxy = proxy(dir.path(), under_way, "cp STATE STATE.then; exit 1");
            let state = dir.path().join("state");
            let supervisord = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                replace_file(&state, b"RUNNING", 0o600).unwrap();
            });
            assert!(matches!(proxy.restart_into("0123456789abcdef", false).unwrap(), RestartResult::Failed(_)));
            assert_eq!(fs::read_to_string(dir.path().join("state.then")).unwrap(), "RUNNING", "{under_way}");
            supervisord.join().unwrap();
        }
    }

    #[test]
    fn a_marker_that_a_killed_confgen_left_ends_with_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let disk = StateDir::open(&dir.path().join("haproxy.cfg"), dir.path()).unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "exit 9");
        replace_file(&dir.path().join("restarting"), b" ", 0o600).unwrap();
        proxy.apply_desired(&DesiredState::default(), std::iter::empty(), &disk).unwrap();
        replace_file(&dir.path().join("state"), b"STOPPED", 0o600).unwrap();
        assert_eq!(proxy.restart_into("0123456789abcdef", false).unwrap(), RestartResult::Stopped);
    }
}
