//! Restarts HAProxy through supervisord, and asks HAProxy which generation runs. Never trusts supervisord's exit code.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use haproxy::runtime::Socket;
use haproxy::supervisor::{Control, State};

use super::running_generation;

/// A restart checks the file, starts HAProxy and waits for its answer. That takes less than a second for thousands of servers.
/// After this time the restart counts as failed, and the next try observes HAProxy again.
const LIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// supervisord has one thread and answers in 2 ms. A failed start is noticed this late at most.
const CHECK_FAILED_EVERY: Duration = Duration::from_millis(500);
/// supervisord starts a program again by itself a second after a start that failed, notices that up to a second late, and
/// counts a start only after the program's `startsecs`.
const SUPERVISORD_START_WAIT: Duration = Duration::from_secs(3);
/// Each question makes supervisord start the programs that are due, so frequent questions shorten the wait.
const ASK_SUPERVISORD_EVERY: Duration = Duration::from_millis(50);
/// The pause between two questions to a HAProxy that starts.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// The new process must answer this many times in a row. While both processes hold the socket, for some tens of milliseconds,
/// either may answer.
const CONFIRMATIONS: u32 = 5;

/// The outcome of a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartResult {
    /// HAProxy runs the wanted generation.
    Taken,
    /// An operator stopped HAProxy. confgen doesn't start it.
    Stopped,
    /// HAProxy doesn't run the wanted generation, for this reason.
    Failed(String),
}

/// Restarts HAProxy, and waits for it. It has none of the reconciler's state, so it runs beside changes. Clones share the marker.
#[derive(Clone)]
pub struct Restarter {
    pub(super) socket: Socket,
    pub(super) control: Control,
    pub(super) stop_marker: StopMarker,
}

/// A file in the state directory that exists between confgen's stop of HAProxy and the start that follows. The mutex is locked while
/// its meaning may change.
#[derive(Clone)]
pub(super) struct StopMarker(pub(super) Arc<Mutex<PathBuf>>);

impl Restarter {
    /// Removes the stop marker unless HAProxy is stopped. A killed confgen may have left it, and confgen would take an operator's next stop
    /// for its own. supervisord may be slow to answer, so this happens on a thread of its own.
    pub(super) fn clear_stale_marker(&self) {
        // While the marker is locked, a restart is in progress, or another thread does this already.
        let is_there = self.stop_marker.0.try_lock().is_ok_and(|marker| marker.exists());
        if is_there {
            let restarter = self.clone();
            std::thread::spawn(move || {
                let marker = restarter.stop_marker.0.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = restarter.remove_stale(&marker) {
                    tracing::warn!(%error, "can't remove the stop marker");
                }
            });
        }
    }

    fn remove_stale(&self, marker: &PathBuf) -> anyhow::Result<()> {
        if !marker.exists() {
            return Ok(());
        }
        match self.control.query_state() {
            // Without an answer HAProxy may be stopped, and then the next try needs the marker.
            Ok(State::Stopped | State::Stopping | State::Unknown) | Err(_) => Ok(()),
            Ok(_) => remove_marker(marker),
        }
    }

    /// Restarts HAProxy into the generation on disk, and waits until it runs. With `afresh`, a process that is just starting doesn't
    /// count, because it may have read the files before.
    pub fn restart_into(&self, generation_id: &str, afresh: bool) -> anyhow::Result<RestartResult> {
        let marker = self.stop_marker.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = SystemTime::now();
        match self.control.query_state() {
            // The marker tells confgen's own stop, which a crash left without its start, from an operator's.
            Ok(State::Stopped | State::Stopping) if !marker.exists() => return Ok(RestartResult::Stopped),
            // A stop would wait for a minute, and supervisord would carry it out whenever it goes on.
            Err(error) if error.is_timeout() => {
                let reason = format!("supervisord doesn't answer, so HAProxy isn't restarted: {error}");
                return Ok(RestartResult::Failed(reason));
            }
            _ => {}
        }
        // The pid tells the processes apart. Both may run the same generation, of which servers are no part.
        let mut old_pid = self.ask_pid();
        if !self.await_supervisord_start(|| !afresh && self.is_replaced(old_pid, generation_id)) {
            old_pid = self.ask_pid();
            fs::File::create(&*marker).with_context(|| format!("create {}", marker.display()))?;
            if let Err(error) = self.control.restart_program() {
                // It may have failed between the stop and the start. The marker stays then, and the next try starts HAProxy.
                self.remove_stale(&marker)?;
                return Ok(self.describe_failure(begun, error.to_string()));
            }
            remove_marker(&marker)?;
        }
        drop(marker);
        let deadline = Instant::now() + LIVE_TIMEOUT;
        let mut answers = 0;
        let mut ask_supervisord = Instant::now() + CHECK_FAILED_EVERY;
        while Instant::now() < deadline {
            // HAProxy's own answers count more than supervisord's view. supervisord is asked only while there are none.
            if answers == 0 && Instant::now() >= ask_supervisord {
                ask_supervisord += CHECK_FAILED_EVERY;
                if let Ok(state @ (State::Backoff | State::Fatal | State::Exited)) = self.control.query_state() {
                    return Ok(self.describe_failure(begun, format!("HAProxy doesn't start (supervisord: {state})")));
                }
            }
            answers = if self.is_replaced(old_pid, generation_id) { answers + 1 } else { 0 };
            if answers == CONFIRMATIONS {
                return Ok(RestartResult::Taken);
            }
            std::thread::sleep(ASK_EVERY);
        }
        let state = self.control.query_state().map_or_else(|error| error.to_string(), |state| state.to_string());
        let reason =
            format!("HAProxy doesn't run generation {generation_id} after {LIVE_TIMEOUT:?} (supervisord: {state})");
        Ok(self.describe_failure(begun, reason))
    }

    /// `None` if HAProxy doesn't answer.
    fn ask_pid(&self) -> Option<u32> {
        self.socket.show_info().ok().map(|info| info.pid)
    }

    /// True if a new process answers, with this generation.
    fn is_replaced(&self, old_pid: Option<u32>, generation_id: &str) -> bool {
        self.ask_pid() != old_pid && running_generation(&self.socket).as_deref() == Some(generation_id)
    }

    /// Adds HAProxy's own message about the start that failed, which handover keeps.
    fn describe_failure(&self, begun: SystemTime, reason: String) -> RestartResult {
        let words = self.control.read_failure_message(self.socket.path(), begun);
        RestartResult::Failed(match words {
            Some(words) => format!("{reason}: {words}"),
            None => reason,
        })
    }

    /// Waits while supervisord starts HAProxy by itself. True if the new process serves.
    ///
    /// A restart in that time could lose the stop: supervisord's child catches SIGTERM until it has become the program.
    /// supervisord would wait for the whole `stopwaitsecs`, and all changes with it.
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

fn remove_marker(marker: &PathBuf) -> anyhow::Result<()> {
    fs::remove_file(marker).with_context(|| format!("remove {}", marker.display()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::HaproxyControl;
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
            let proxy = proxy(dir.path(), state, "exit 9");
            assert_eq!(
                proxy.restarter().restart_into("0123456789abcdef", false).unwrap(),
                RestartResult::Stopped,
                "{state}"
            );
        }
    }

    #[test]
    fn a_start_that_fails_after_our_stop_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let proxy = proxy(dir.path(), "RUNNING", "echo STOPPED >STATE; exit 1");
        for _ in 0..2 {
            assert!(matches!(
                proxy.restarter().restart_into("0123456789abcdef", false).unwrap(),
                RestartResult::Failed(_)
            ));
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
            proxy(dir.path(), "RUNNING", &fails).restarter().restart_into("0123456789abcdef", false).unwrap()
        else {
            panic!("it failed");
        };
        assert!(reason.contains("spawn error") && reason.ends_with(": [ALERT] cannot bind socket"), "{reason}");
    }

    #[test]
    fn a_start_under_way_is_not_cut_short() {
        for under_way in ["STARTING", "BACKOFF"] {
            let dir = tempfile::tempdir().unwrap();
            let proxy = proxy(dir.path(), under_way, "cp STATE STATE.then; exit 1");
            let state = dir.path().join("state");
            let supervisord = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                replace_file(&state, b"RUNNING", 0o600).unwrap();
            });
            assert!(matches!(
                proxy.restarter().restart_into("0123456789abcdef", false).unwrap(),
                RestartResult::Failed(_)
            ));
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
        proxy.apply_desired(&DesiredState::default(), None, std::iter::empty(), &disk).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while dir.path().join("restarting").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        replace_file(&dir.path().join("state"), b"STOPPED", 0o600).unwrap();
        assert_eq!(proxy.restarter().restart_into("0123456789abcdef", false).unwrap(), RestartResult::Stopped);
    }
}
