//! The part of the store that confgen follows: which keys, and how much of each value. Pure: no I/O, no clock.

use std::borrow::Cow;

use discovery::{Change, Entry, Key};

/// The longest key in bytes that the replica keeps. The longest key that confgen follows has some 530 bytes.
const LONGEST_KEY: usize = 1024;

/// The folder of the balancer records.
const BALANCERS: &str = "balancers/";

/// True for a balancer record and for an entry of the change log. HAProxy needs neither.
pub(super) fn concerns_no_service(key: &str) -> bool {
    key.starts_with(BALANCERS) || Key::is_log(key)
}

/// Returns the part of an entry that the replica keeps. `None` for an entry of the change log, and if the key is longer than any key
/// that confgen follows. 60 rejected values of 1.4 MB each once stood whole in memory and in store.json.
pub fn bound_entry(entry: Entry) -> Option<Entry> {
    is_followed(&entry.key).then(|| entry.with_bounded_value())
}

/// False for an entry of the change log, and for a key that is longer than any key that confgen follows.
pub(super) fn is_followed(key: &str) -> bool {
    key.len() <= LONGEST_KEY && !Key::is_log(key)
}

/// Cuts the change's value to the length that confgen reads. `None` for a key that isn't followed.
pub(super) fn bound_change(change: &Change) -> Option<Cow<'_, Change>> {
    match change {
        _ if !is_followed(change.key()) => None,
        Change::Put(entry) => Some(Cow::Owned(Change::Put(entry.clone().with_bounded_value()))),
        // Nothing keeps the previous value that a removal carries.
        Change::Delete { .. } => Some(Cow::Borrowed(change)),
    }
}
