//! The app as a child process: what starts it, and what is meant for it.

use std::{
    collections::HashMap,
    io,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::config::App;
use crate::message::Message;
use crate::processes::reaper::{ChildChange, Leader, Reaper};
use crate::processes::table;
use crate::processes::terminal::Terminal;
use crate::retry;
use crate::state::Event;

/// What is meant for the app, whoever gets it. Registering them also means that the app starts with their default
/// actions, even if we were started with some of them ignored.
const FORWARDED: [Signal; 5] = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// The time that killed processes may take to be gone. A process that the kernel holds up in a system call takes longer, and
/// nothing here can end it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Why the app does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// The program can't be started.
    #[error("{program} can't be run: {source}")]
    Spawn {
        /// As it was given.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A signal handler can't be installed.
    #[error("signals can't be handled: {0}")]
    Signals(#[source] io::Error),
}

impl ChildError {
    /// The exit code that shells give: 127 where there is no such program, 126 where it can't be run.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Spawn { .. } | Self::Signals(_) => 126,
        }
    }
}

/// The app as it runs: its process group and, where this process adopts orphans, all that descends from it. Clones are the
/// same one.
#[derive(Clone)]
pub(crate) struct RunningApp {
    leader: Leader,
    /// Nothing of it is left: its group's number may be another's by now.
    is_gone: Arc<AtomicBool>,
    /// The last that the group was told; orphans are told it too, once the group is gone.
    stop_signal: Arc<Mutex<Option<Signal>>>,
}

impl RunningApp {
    /// Tells all of it to end.
    pub(crate) fn send_stop_signal(&self, signal: Signal) {
        *self.stop_signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
        self.send_signal(signal);
    }

    /// Kills all of it.
    pub(crate) fn kill_all(&self) {
        self.send_stop_signal(Signal::SIGKILL);
    }

    /// Sends a signal to the process group, as long as anything of it is left.
    fn send_signal(&self, signal: Signal) {
        if !self.leader.has_ended() {
            self.leader.signal_group(signal);
        } else if !self.is_gone.load(Ordering::Relaxed)
            && let Err(error) = killpg(self.leader.pid, signal)
            && error != Errno::ESRCH
        {
            tracing::warn!(%signal, %error, "what is left of the app can't be signalled");
        }
    }

    fn last_stop_signal(&self) -> Option<Signal> {
        *self.stop_signal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is left, after the main process has ended: a shell that was told to stop ends before the app
    /// that it has started.
    async fn wait_until_gone(&self) {
        let (mut orphans, mut killed) = (HashMap::new(), None);
        let mut is_said = false;
        for delay in retry::local_delays() {
            if !self.has_processes_left(&mut orphans) {
                break;
            }
            if !std::mem::replace(&mut is_said, true) {
                tracing::info!("the app's main process has ended before others of the app");
            }
            if self.last_stop_signal() == Some(Signal::SIGKILL)
                && killed.get_or_insert_with(Instant::now).elapsed() > KILL_PATIENCE
            {
                tracing::warn!("something of the app can't be killed: not waiting for it");
                break;
            }
            sleep(delay).await;
        }
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// True while any process of the app is left. Each orphan is told once.
    fn has_processes_left(&self, orphans: &mut HashMap<Pid, Signal>) -> bool {
        if table::has_running_member(self.leader.pid) {
            return true;
        }
        if !table::adopts_orphans() || !table::has_child() {
            return false;
        }
        if let Some(told) = self.last_stop_signal() {
            // No child is reaped between the look and the signal: both are on this thread.
            for pid in table::running_children() {
                if orphans.insert(pid, told) != Some(told) {
                    let _ = kill(pid, told);
                }
            }
        }
        true
    }
}

/// Starts the app. The end of its main process is reported, and then that nothing of it is left. The signals that ask for a
/// stop are not passed on to it. Must be called within a tokio runtime.
pub(crate) fn start_app(
    app: &App,
    stop_on: &[i32],
    reaper: &Reaper,
    reports: mpsc::Sender<Message>,
) -> Result<RunningApp, ChildError> {
    let passed_on = FORWARDED.into_iter().filter(|number| !stop_on.contains(&(*number as i32)));
    let passed_on: Vec<_> = passed_on.map(|number| (number, signal(SignalKind::from_raw(number as i32)))).collect();
    let mut command = Command::new(&app.program);
    command.args(&app.arguments).stdin(Stdio::inherit());
    let terminal = Terminal::of_stdin();
    let (leader, changes) = reaper
        .spawn(&mut command)
        .map_err(|source| ChildError::Spawn { program: app.program.to_string_lossy().into_owned(), source })?;
    if let Some(terminal) = &terminal {
        terminal.give_to(leader.pid);
    }
    tracing::info!(pid = leader.pid.as_raw(), program = %app.program.display(), "the app runs");
    let running = RunningApp { leader, is_gone: Arc::default(), stop_signal: Arc::default() };
    for (number, signals) in passed_on {
        tokio::spawn(forward_signals(running.clone(), number, signals.map_err(ChildError::Signals)?));
    }
    tokio::spawn(report_app_changes(running.clone(), changes, terminal, reports));
    Ok(running)
}

async fn forward_signals(running: RunningApp, number: Signal, mut signals: Signals) {
    while signals.recv().await.is_some() {
        running.send_signal(number);
    }
}

async fn report_app_changes(
    running: RunningApp,
    mut changes: mpsc::Receiver<ChildChange>,
    terminal: Option<Terminal>,
    reports: mpsc::Sender<Message>,
) {
    while let Some(change) = changes.recv().await {
        match (change, &terminal) {
            (ChildChange::Ended(status), _) => {
                if let Some(terminal) = &terminal {
                    terminal.take_back();
                }
                let _ = reports.send(Message::AppExited(status)).await;
                running.wait_until_gone().await;
                let _ = reports.send(Message::Event(Event::AppGone)).await;
            }
            (ChildChange::Stopped, Some(terminal)) => terminal.suspend_job(running.leader.pid),
            (ChildChange::Stopped, None) => {}
        }
    }
}
