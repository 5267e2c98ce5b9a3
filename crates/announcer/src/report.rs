//! What the tasks in the background tell the loop.

use discovery::UpstreamAddress;

use crate::state::Event;

/// One piece of news.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Report {
    /// The app works, and this is where.
    Healthy(UpstreamAddress),
    /// The app ended with this exit status, as a shell would put it.
    AppExited(u8),
    /// Anything that needs no more words.
    Event(Event),
}
