//! A restart: supervisord is asked for it, and HAProxy whether it took.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use haproxy::supervisor::State;

use super::{HaproxyControl, running};

/// A restart checks the file, starts HAProxy and waits for its answer: under a second for thousands of servers. A
/// process that isn't live after this is looked at again by the next try.
const LIVE_WITHIN: Duration = Duration::from_secs(15);
/// How soon, and how often, supervisord is asked whether HAProxy's start has failed.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(500);
/// How long supervisord is left to start it by itself: a second after a start that failed, another one for its own look at
/// what is due, and the program's `startsecs`.
const BY_ITSELF: Duration = Duration::from_secs(3);
/// How often supervisord is asked meanwhile; being asked, it looks at what is due.
const ASK_SUPERVISORD_EVERY: Duration = Duration::from_millis(50);
/// How often HAProxy is asked whether it has got there.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// While both processes hold the socket, for some tens of milliseconds, either may answer: the new one has it alone when
/// it has answered so often in a row.
const SURE: u32 = 5;

/// How a restart went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// HAProxy runs the wanted generation.
    Taken,
    /// An operator has stopped it, and so it stays.
    Stopped,
    /// It didn't take, for this reason.
    NotLive(String),
}

impl HaproxyControl {
    /// Takes the marker away where it no longer stands for a stop without its start: a confgen that was killed may have
    /// left it, and an operator's stop would be taken for ours.
    pub(super) fn started(&self) -> anyhow::Result<()> {
        let under_way = |state| !matches!(state, State::Stopped | State::Stopping | State::Unknown);
        if self.marker.exists() && self.control.state().is_ok_and(under_way) { self.unmark() } else { Ok(()) }
    }

    fn unmark(&self) -> anyhow::Result<()> {
        fs::remove_file(&self.marker).with_context(|| format!("remove {}", self.marker.display()))
    }

    /// Has HAProxy restarted into the generation that lies on disk, and waits until it runs it. Afresh: one that is just
    /// starting may have read what lay there before, and isn't enough.
    pub fn restart(&mut self, stamp: &str, afresh: bool) -> anyhow::Result<Restart> {
        self.doubt();
        // A stop of ours that a crash cut short is mended; one of an operator's is respected.
        if matches!(self.control.state(), Ok(State::Stopped | State::Stopping)) && !self.marker.exists() {
            return Ok(Restart::Stopped);
        }
        let begun = SystemTime::now();
        // The old process may run the same generation: servers alone are no part of its stamp.
        let process = || self.socket.info().ok().map(|info| info.pid);
        let mut old = process();
        let is_new = |old| process() != old && running(&self.socket).as_deref() == Some(stamp);
        if !self.is_started(|| !afresh && is_new(old)) {
            old = process();
            fs::File::create(&self.marker).with_context(|| format!("create {}", self.marker.display()))?;
            if let Err(error) = self.control.restart() {
                // It may have failed between the stop and the start, and is then ours to finish.
                self.started()?;
                return Ok(self.not_live(begun, error.to_string()));
            }
            self.unmark()?;
        }
        let deadline = Instant::now() + LIVE_WITHIN;
        let mut answers = 0;
        let mut ask_supervisord = Instant::now() + GIVEN_UP_AFTER;
        while Instant::now() < deadline {
            if answers == 0 && Instant::now() >= ask_supervisord {
                ask_supervisord += GIVEN_UP_AFTER;
                if let Ok(state @ (State::Backoff | State::Fatal | State::Exited)) = self.control.state() {
                    return Ok(self.not_live(begun, format!("HAProxy doesn't start (supervisord: {state})")));
                }
            }
            answers = if is_new(old) { answers + 1 } else { 0 };
            if answers == SURE {
                return Ok(Restart::Taken);
            }
            std::thread::sleep(ASK_EVERY);
        }
        let state = self.control.state().map_or_else(|error| error.to_string(), |state| state.to_string());
        let reason = format!("HAProxy doesn't run generation {stamp} after {LIVE_WITHIN:?} (supervisord: {state})");
        Ok(self.not_live(begun, reason))
    }

    /// The reason with the words of the start that failed, in which HAProxy itself says why.
    fn not_live(&self, begun: SystemTime, reason: String) -> Restart {
        let words = self.control.words_of_failure(self.socket.path(), begun);
        Restart::NotLive(match words {
            Some(words) => format!("{reason}: {words}"),
            None => reason,
        })
    }

    /// Whether supervisord starts the new one by itself; it is left to do so for a while. What it is told to end right after
    /// its start may not hear of it: supervisord's child catches the signal until it has become the program. supervisord
    /// would wait for the whole `stopwaitsecs`, and all changes with it.
    fn is_started(&self, is_new: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + BY_ITSELF;
        while Instant::now() < deadline && matches!(self.control.state(), Ok(State::Backoff | State::Starting)) {
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
    use crate::state_dir::{StateDir, replace};

    /// A supervisorctl that knows one state, and does what `restart` says to it.
    fn proxy(dir: &Path, state: &str, restart: &str) -> HaproxyControl {
        let (script, file) = (dir.join("script"), dir.join("state"));
        let text = format!(
            "case $2 in\nstatus) echo \"haproxy $(cat {file})\" ;;\nrestart) {restart} ;;\nesac\n",
            file = file.display(),
            restart = restart.replace("STATE", &file.display().to_string())
        );
        replace(&script, text.as_bytes(), 0o600).unwrap();
        replace(&file, state.as_bytes(), 0o600).unwrap();
        let command = format!("sh {} supervisorctl restart haproxy", script.display());
        let control = Control::new(command.parse().unwrap(), None);
        HaproxyControl::new(Socket::new(dir.join("none.sock")), control, dir.join("restarting"))
    }

    #[test]
    fn an_operators_stop_is_respected() {
        for state in ["STOPPED", "STOPPING"] {
            let dir = tempfile::tempdir().unwrap();
            let mut proxy = proxy(dir.path(), state, "exit 9");
            assert_eq!(proxy.restart("0123456789abcdef", false).unwrap(), Restart::Stopped, "{state}");
        }
    }

    #[test]
    fn a_start_that_fails_after_our_stop_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "echo STOPPED >STATE; exit 1");
        for _ in 0..2 {
            assert!(matches!(proxy.restart("0123456789abcdef", false).unwrap(), Restart::NotLive(_)));
        }
    }

    #[test]
    fn a_restart_that_fails_is_told_in_the_words_that_handover_left() {
        let dir = tempfile::tempdir().unwrap();
        let masters = haproxy::masters::directory(&dir.path().join("none.sock"));
        fs::create_dir(&masters).unwrap();
        let (words, file) = (dir.path().join("words"), masters.join(haproxy::failure::FILE));
        replace(&words, &haproxy::failure::encode("[ALERT] cannot bind socket"), 0o600).unwrap();
        let fails = format!("cat {} >{}; echo 'ERROR (spawn error)'; exit 7", words.display(), file.display());
        let Restart::NotLive(reason) = proxy(dir.path(), "RUNNING", &fails).restart("0123456789abcdef", false).unwrap()
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
                replace(&state, b"RUNNING", 0o600).unwrap();
            });
            assert!(matches!(proxy.restart("0123456789abcdef", false).unwrap(), Restart::NotLive(_)));
            assert_eq!(fs::read_to_string(dir.path().join("state.then")).unwrap(), "RUNNING", "{under_way}");
            supervisord.join().unwrap();
        }
    }

    #[test]
    fn a_marker_that_a_killed_confgen_left_ends_with_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let disk = StateDir::open(&dir.path().join("haproxy.cfg"), dir.path()).unwrap();
        let mut proxy = proxy(dir.path(), "RUNNING", "exit 9");
        replace(&dir.path().join("restarting"), b" ", 0o600).unwrap();
        proxy.follow(&DesiredState::default(), std::iter::empty(), &disk).unwrap();
        replace(&dir.path().join("state"), b"STOPPED", 0o600).unwrap();
        assert_eq!(proxy.restart("0123456789abcdef", false).unwrap(), Restart::Stopped);
    }
}
