//! Ctrl-C and SIGTERM as events of a switch.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::state::Event;
use crate::error::Error;

/// The two signals that end a switch.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    event: Event,
}

impl Signals {
    /// Takes both signals from their default action. `is_undone` is --undo-on-interrupt.
    pub(super) fn new(is_undone: bool) -> Result<Self, Error> {
        let event = if is_undone { Event::UndoRequested } else { Event::Interrupted };
        Ok(Self {
            interrupt: listen_for(SignalKind::interrupt())?,
            terminate: listen_for(SignalKind::terminate())?,
            event,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! { _ = self.interrupt.recv() => self.event, _ = self.terminate.recv() => self.event }
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|error| Error::Failed(format!("can't listen for signals: {error}")))
}
