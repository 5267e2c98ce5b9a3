//! The two-step shutdown: the first signal drains, the second aborts. It ends nothing itself.

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Tokens that the parts of a daemon wait for. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Set by the first signal: finish the work in progress.
    pub drain: CancellationToken,
    /// Set by the second signal: finish now. Never set before `drain`.
    pub abort: CancellationToken,
    /// Number of the first signal, set before `drain`.
    pub first_signal: Arc<OnceLock<i32>>,
}

impl Shutdown {
    /// Tokens that SIGTERM and SIGINT set. From here on, neither ends the process. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// A handler can't be installed.
    pub fn on_signals() -> io::Result<Self> {
        Self::on_numbers(&[SignalKind::terminate().as_raw_value(), SignalKind::interrupt().as_raw_value()])
    }

    /// Tokens that these signals set, by number, since real-time signals have no name in every library.
    ///
    /// # Errors
    /// A signal can't be handled, such as SIGKILL.
    pub fn on_numbers(numbers: &[i32]) -> io::Result<Self> {
        let signals = numbers.iter().map(|number| Ok((*number, signal(SignalKind::from_raw(*number))?)));
        let signals = signals.collect::<io::Result<Vec<_>>>()?;
        let shutdown = Self::default();
        tokio::spawn(shutdown.clone().cancel_on_signals(signals));
        Ok(shutdown)
    }

    async fn cancel_on_signals(self, mut signals: Vec<(i32, Signal)>) {
        for token in [self.drain, self.abort] {
            let number = next_signal(&mut signals).await;
            // Before the log, which may be the thing that hangs.
            let _ = self.first_signal.set(number);
            token.cancel();
            match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => tracing::info!(%signal, "signal received"),
                Err(_) => tracing::info!(signal = number, "signal received"),
            }
        }
    }
}

/// Number of the next signal.
async fn next_signal(signals: &mut [(i32, Signal)]) -> i32 {
    poll_fn(|context| {
        let mut signals = signals.iter_mut();
        let came = signals.find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
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
        assert!(!shutdown.abort.is_cancelled() && shutdown.first_signal.get() == Some(&15));
        raise(Signal::SIGINT).unwrap();
        shutdown.abort.cancelled().await;
    }
}
