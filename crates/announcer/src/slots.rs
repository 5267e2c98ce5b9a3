//! The life of a copy of a service whose number of copies is limited: stand by, hold a slot, run the app, hand the slot over.
//!
//! `state` decides on events, `choice` on slots, `write` on transactions, `fence` and `restarts` on times. They are pure.
//! `keeper` feeds them and acts. It starts and stops the app through `app`, and doesn't know what the app is.

pub(crate) mod app;
pub(crate) mod choice;
pub(crate) mod fence;
pub(crate) mod keeper;
pub(crate) mod offer;
mod restarts;
pub(crate) mod state;
mod tempo;
pub(crate) mod view;
pub(crate) mod write;
