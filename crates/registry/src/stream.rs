//! Watch streams. `messages` reads one and notices silence, `routes` decides which watch a message is for, and `shared`
//! carries many watches over one stream.

pub(crate) mod messages;
mod routes;
pub(crate) mod shared;
