//! The two-step shutdown: the first SIGTERM or SIGINT drains, the second aborts.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the parts of a daemon look at to know that it ends. Clones share the tokens.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish politely: the first signal came.
    pub drain: CancellationToken,
    /// Finish now: the second signal came. Never set before `drain`.
    pub abort: CancellationToken,
}

impl Shutdown {
    /// Tokens that SIGTERM and SIGINT set. Must be called within a tokio runtime.
    ///
    /// From here on, neither signal ends the process by itself.
    pub fn on_signals() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = Self::default();
        tokio::spawn(shutdown.clone().listen(terminate, interrupt));
        Ok(shutdown)
    }

    async fn listen(self, mut terminate: Signal, mut interrupt: Signal) {
        for token in [self.drain, self.abort] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            token.cancel();
            tracing::info!("{name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn the_first_signal_drains_the_second_aborts() {
        let shutdown = Shutdown::on_signals().unwrap();
        assert!(!shutdown.drain.is_cancelled());
        raise(Signal::SIGTERM).unwrap();
        shutdown.drain.cancelled().await;
        assert!(!shutdown.abort.is_cancelled());
        raise(Signal::SIGINT).unwrap();
        shutdown.abort.cancelled().await;
    }
}
