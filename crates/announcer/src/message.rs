//! What the tasks in the background tell the loop.

use discovery::UpstreamAddress;

use crate::{health::Health, state::Event};

/// One piece of news.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// An upstream began to work, or no longer does.
    Health {
        /// Which one, as they are configured.
        upstream: usize,
        /// Where it is announced.
        address: UpstreamAddress,
        /// What is known of it.
        health: Health,
    },
    /// The app's main process ended with this exit status, as a shell would put it.
    AppExited(u8),
    /// What keeps balancers from sending requests, in one line; None: nothing that is known.
    BlockedBy(Option<String>),
    /// Anything that needs no more words.
    Event(Event),
}
