//! The language of haproxy-discover: names, keys, settings, records, and the topology built from them.
//!
//! Architecture invariant: pure. Nothing here awaits, reads a clock or touches the world, and no input panics.

mod store;

pub use store::{Change, Entry, Snapshot};
