//! The app as a child process: what starts it, and what is meant for it.

use std::{
    io,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc,
};

use crate::{
    config::App,
    reaper::{Change, Leader, Reaper},
    report::Report,
    terminal::Terminal,
};

/// What is meant for the app, whoever gets it. Registering them also means that the app starts with their default
/// actions, even if we were started with some of them ignored.
const PASSED_ON: [Signal; 5] = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

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

/// Starts the app; its exit is reported. Must be called within a tokio runtime.
pub(crate) fn start(app: &App, reaper: &Reaper, reports: mpsc::Sender<Report>) -> Result<Leader, ChildError> {
    let passed_on = PASSED_ON.map(|number| (number, signal(SignalKind::from_raw(number as i32))));
    let mut command = Command::new(&app.program);
    command.args(&app.arguments).stdin(Stdio::inherit());
    let terminal = Terminal::foreground();
    let (leader, changes) = reaper
        .spawn(&mut command)
        .map_err(|source| ChildError::Spawn { program: app.program.to_string_lossy().into_owned(), source })?;
    if let Some(terminal) = &terminal {
        terminal.give_to(leader.pid);
    }
    tracing::info!(pid = leader.pid.as_raw(), program = %app.program.display(), "the app runs");
    for (number, signals) in passed_on {
        tokio::spawn(pass_on(leader.clone(), number, signals.map_err(ChildError::Signals)?));
    }
    tokio::spawn(follow(leader.clone(), changes, terminal, reports));
    Ok(leader)
}

async fn pass_on(leader: Leader, number: Signal, mut signals: Signals) {
    while signals.recv().await.is_some() {
        leader.signal(number);
    }
}

async fn follow(
    leader: Leader,
    mut changes: mpsc::Receiver<Change>,
    terminal: Option<Terminal>,
    reports: mpsc::Sender<Report>,
) {
    while let Some(change) = changes.recv().await {
        match (change, &terminal) {
            (Change::Ended(status), _) => {
                if let Some(terminal) = &terminal {
                    terminal.take_back();
                }
                let _ = reports.send(Report::AppExited(status)).await;
            }
            (Change::Stopped, Some(terminal)) => terminal.suspend(leader.pid),
            (Change::Stopped, None) => {}
        }
    }
}
