//! Messages of the background tasks to the event loop.

use discovery::UpstreamAddress;

use crate::{health::Health, state::Event};

/// A message to the event loop.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// An upstream began to work, or no longer works.
    Health {
        /// Index in the configuration.
        upstream: usize,
        address: UpstreamAddress,
        health: Health,
    },
    /// The app's main process ended with this exit status, in the form of a shell: 128 + N after signal N.
    AppExited(u8),
    /// First reason why balancers don't send requests, in one line. `None` if none is known.
    BlockedBy(Option<String>),
    /// An event that `state` takes as it is.
    Event(Event),
}
