//! The app as a child process: its start, its signals and its end. It decides nothing.

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
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::config::App;
use crate::processes::reaper::{ChildChange, Leader, Reaper};
use crate::processes::table;
use crate::processes::terminal::Terminal;
use crate::processes::tether::{self, Limit};
use crate::retry;
use crate::state::Event;
use crate::state::message::Message;

/// Signals that the announcer forwards. A registered handler also gives the app the default action, even if the
/// announcer was started with the signal ignored.
const FORWARDED: [Signal; 5] = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

/// Wait after SIGKILL. A process that hangs in a system call takes longer, and no signal ends it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// Failure to start the app.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// The program is missing or can't be executed.
    #[error("can't run {program}: {source}")]
    Spawn {
        /// Path or name from the command line.
        program: String,
        /// Error of fork or exec.
        source: io::Error,
    },
    /// No handler for a signal that should be forwarded.
    #[error("can't handle signals: {0}")]
    Signals(#[source] io::Error),
}

impl ChildError {
    /// The shells' exit codes: 127 if there is no such program, 126 if it can't be run.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Spawn { .. } | Self::Signals(_) => 126,
        }
    }
}

/// The running app: its process group and, if this process adopts orphans, all its descendants. Clones refer to one
/// app.
#[derive(Clone)]
pub(crate) struct RunningApp {
    leader: Leader,
    /// Set when no process is left. The kernel may then reuse the group's number.
    is_gone: Arc<AtomicBool>,
    /// Set when no process of the group is left, which is earlier if orphans are.
    has_no_group: CancellationToken,
    /// Last signal that was sent to stop the app. Orphans get it too once the group is gone.
    stop_signal: Arc<Mutex<Option<Signal>>>,
}

impl RunningApp {
    /// Sends a stop signal to the group, and remembers it for orphans.
    pub(crate) fn send_stop_signal(&self, signal: Signal) {
        *self.stop_signal.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
        self.send_signal(signal);
    }

    /// Sends SIGKILL to everything that is left.
    pub(crate) fn kill_all(&self) {
        self.send_stop_signal(Signal::SIGKILL);
    }

    /// Sends a signal to the process group while a process of it is left.
    fn send_signal(&self, signal: Signal) {
        if !self.leader.has_ended() {
            self.leader.signal_group(signal);
        // The reaper no longer knows the group after its leader ended. Its other members still take signals.
        } else if !self.is_gone.load(Ordering::Relaxed)
            && let Err(error) = killpg(self.leader.pid, signal)
            // The last process may end between the look and the signal.
            && error != Errno::ESRCH
        {
            tracing::warn!(%signal, %error, "can't signal the rest of the app");
        }
    }

    fn last_stop_signal(&self) -> Option<Signal> {
        *self.stop_signal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, after the main process ended, until no process is left. A shell that gets a stop signal ends before the
    /// app that it started.
    async fn wait_until_gone(&self) {
        let pid = self.leader.pid.as_raw();
        let (mut signalled, mut killed_at) = (HashMap::new(), None);
        let mut is_logged = false;
        for delay in retry::local_delays() {
            let has_group = table::has_running_member(self.leader.pid);
            if !has_group {
                // The guard is a child too, and would count as an orphan.
                self.has_no_group.cancel();
            }
            let has_orphans = !has_group && table::adopts_orphans() && table::has_child();
            if !has_group && !has_orphans {
                break;
            }
            if has_orphans {
                self.signal_orphans(&mut signalled);
            }
            if !std::mem::replace(&mut is_logged, true) {
                tracing::info!(pid, "the app's main process has ended, waiting for its other processes");
            }
            // The limit runs from the first look after SIGKILL, not from the stop signal.
            if self.last_stop_signal() == Some(Signal::SIGKILL)
                && killed_at.get_or_insert_with(Instant::now).elapsed() > KILL_PATIENCE
            {
                tracing::warn!(pid, "a process of the app survives SIGKILL, not waiting for it");
                break;
            }
            sleep(delay).await;
        }
        self.has_no_group.cancel();
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// Sends the stop signal to orphans, once to each. `signalled` has those that got it.
    fn signal_orphans(&self, signalled: &mut HashMap<Pid, Signal>) {
        let Some(signal) = self.last_stop_signal() else { return };
        // A pid can't be reused between the listing and the signal: the reaper runs on this thread.
        for pid in table::running_children() {
            // Once for each signal: many programs take a second SIGTERM as an order to hurry, as the announcer does.
            if signalled.insert(pid, signal) != Some(signal) {
                let _ = kill(pid, signal);
            }
        }
    }
}

/// Starts the app. Reports the end of its main process, and later that no process is left. Signals of `--stop-on` are
/// not forwarded. With `limits` the app ends with this process, and at the latest limit. Must be called within a tokio
/// runtime.
pub(crate) fn start_app(
    app: &App,
    stop_on: &[i32],
    reaper: &Reaper,
    limits: Option<watch::Receiver<Limit>>,
    messages: mpsc::Sender<Message>,
) -> Result<RunningApp, ChildError> {
    // Before the fork: the app inherits an ignored signal, and gets the default action of a handled one.
    let forwarded = handle_forwarded_signals(stop_on)?;
    let program = app.program.to_string_lossy();
    // This error is about the announcer's own file. The launcher reports an error about the app's file.
    let (mut command, program) = match &limits {
        Some(limits) => {
            let command = tether::launcher_command(&app.program, &app.arguments, *limits.borrow());
            (command, format!("{} for {program}", tether::THIS_PROGRAM))
        }
        None => (Command::new(&app.program), program.into_owned()),
    };
    if limits.is_none() {
        command.args(&app.arguments);
    }
    command.stdin(Stdio::inherit());
    let terminal = Terminal::of_stdin();
    let (leader, changes) = reaper.spawn(&mut command).map_err(|source| ChildError::Spawn { program, source })?;
    // As a shell does for a foreground job. Otherwise the app is stopped when it reads from the terminal.
    if let Some(terminal) = &terminal {
        terminal.give_to(leader.pid);
    }
    tracing::info!(pid = leader.pid.as_raw(), program = %app.program.display(), "the app runs");
    let running = RunningApp {
        leader,
        is_gone: Arc::default(),
        has_no_group: CancellationToken::new(),
        stop_signal: Arc::default(),
    };
    if let Some(limits) = limits {
        tokio::spawn(tether::keep_guard(reaper.clone(), running.leader.pid, limits, running.has_no_group.clone()));
    }
    let mut forwarding = JoinSet::new();
    for (number, signals) in forwarded {
        forwarding.spawn(forward_signals(running.clone(), number, signals));
    }
    tokio::spawn(report_app_changes(running.clone(), changes, terminal, messages, forwarding));
    Ok(running)
}

/// Handles the signals that the app gets, except those of `--stop-on`. They no longer end this process, with an app or
/// without one.
pub(crate) fn handle_forwarded_signals(stop_on: &[i32]) -> Result<Vec<(Signal, Signals)>, ChildError> {
    let forwarded = FORWARDED.into_iter().filter(|number| !stop_on.contains(&(*number as i32)));
    let handled = forwarded.map(|number| Ok((number, signal(SignalKind::from_raw(number as i32))?)));
    handled.collect::<io::Result<_>>().map_err(ChildError::Signals)
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
    messages: mpsc::Sender<Message>,
    // Ends with this task. A later app gets the signals from its own.
    _forwarding: JoinSet<()>,
) {
    while let Some(change) = changes.recv().await {
        match (change, &terminal) {
            (ChildChange::Ended(status), _) => {
                if let Some(terminal) = &terminal {
                    terminal.take_back();
                }
                let _ = messages.send(Message::AppExited(status)).await;
                running.wait_until_gone().await;
                let _ = messages.send(Message::Event(Event::AppGone)).await;
            }
            // A launcher stops itself. Only an app is suspended at a terminal.
            (ChildChange::Stopped, Some(terminal)) if !tether::is_launcher(running.leader.pid) => {
                terminal.suspend_job(running.leader.pid);
            }
            (ChildChange::Stopped, _) => {}
        }
    }
}
