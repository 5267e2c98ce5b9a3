//! The change log: who changes keys, from which host, by which command and why.
//!
//! The entry is a key below `log/` in the transaction of the change, so that neither is written without the other.

mod author;

use std::time::{Duration, SystemTime};

use discovery::{Author, Entry, Key, LogEntry};
use program::output;
use registry::{Client, Committed, LeaseId, Txn};
use tokio::sync::Mutex;

use crate::error::Error;
use crate::shared_options::Logging;

/// The most entries of the log. Every listing of the store has them all: 5,000 have some 2 MB.
const MOST_ENTRIES: usize = 5_000;
/// The most old entries that one transaction deletes. With the entry itself they leave room for 110 keys (`edit.rs`).
const MOST_DELETED: usize = 16;

/// The writer of this command's entries.
pub(crate) struct ChangeLog {
    author: Author,
    state: Mutex<State>,
}

/// The facts that a write may change.
struct State {
    /// The life of an entry. None if nothing is logged.
    keep: Option<Duration>,
    /// The lease of this command's entries. None before the first one.
    lease: Option<LeaseId>,
}

/// The facts about one transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Note<'a> {
    /// The keys that it writes or deletes.
    pub(crate) keys: Vec<&'a str>,
    /// The text of --reason.
    pub(crate) reason: Option<&'a str>,
    /// Old entries that it deletes: [`find_surplus_entries`].
    pub(crate) surplus: Vec<String>,
}

impl ChangeLog {
    /// Takes the user, the host and the command line of this process.
    pub(crate) fn new(options: &Logging) -> Self {
        let keep = Some(options.log_for).filter(|keep| !keep.is_zero());
        Self { author: author::find_author(), state: Mutex::new(State { keep, lease: None }) }
    }

    /// Runs a transaction with its entry. If etcd's roles let this user write the keys and no entry, the transaction goes without
    /// one, and a message says so.
    pub(crate) async fn commit(
        &self,
        client: &Client,
        txn: Txn,
        note: &Note<'_>,
    ) -> Result<Committed, registry::Error> {
        // The lock is held over the call, so that all transactions of one command share one lease.
        let mut state = self.state.lock().await;
        let Some(keep) = state.keep else { return client.commit(txn).await };
        let lease = match state.lease {
            Some(lease) => lease,
            None => *state.lease.insert(client.grant_lease(keep).await?),
        };
        let committed = client.commit(self.add_entry(txn.clone(), lease, note)).await;
        match committed {
            Err(error) if error.is_permission_denied() => {
                self.drop_lease(client, &mut state).await;
                let committed = client.commit(txn).await?;
                // The next transaction of this command would be refused in the same way.
                state.keep = None;
                output::print_message(&format!("discoverctl: the change isn't logged: {error} (docs/secure.md)"));
                Ok(committed)
            }
            committed => {
                // A try without an answer may have been written, and its entry needs the lease.
                let is_unwritten = match &committed {
                    Ok(committed) => !committed.succeeded,
                    Err(error) => !error.is_unreachable(),
                };
                if is_unwritten {
                    self.drop_lease(client, &mut state).await;
                }
                committed
            }
        }
    }

    /// Revokes a lease that has no entry. An earlier transaction's entries keep theirs.
    async fn drop_lease(&self, client: &Client, state: &mut State) {
        let Some(lease) = state.lease else { return };
        // Without an answer the lease ends by itself.
        if let Ok(Some(keys)) = client.lease_keys(lease).await
            && keys.is_empty()
        {
            let _ = client.revoke_lease(lease).await;
            state.lease = None;
        }
    }

    fn add_entry(&self, txn: Txn, lease: LeaseId, note: &Note<'_>) -> Txn {
        let now = SystemTime::now();
        let reason = note.reason.map(str::to_owned);
        let entry = LogEntry::new(now, Author { reason, ..self.author.clone() }, note.keys.iter().copied());
        let txn = txn.put(name_entry(now, author::random()), entry.to_string(), Some(lease));
        note.surplus.iter().fold(txn, |txn, key| txn.delete(key.as_str()))
    }
}

/// The key of an entry: `log/20261130T101306.123Z-1f9c03ab`. Two entries of one millisecond differ in the random part.
fn name_entry(now: SystemTime, random: u32) -> String {
    let time = humantime::format_rfc3339_millis(now).to_string().replace(['-', ':'], "");
    format!("log/{time}-{random:08x}")
}

/// Finds the oldest entries, so that a new one keeps the log within its bound. An expired lease deletes the others.
pub(crate) fn find_surplus_entries(entries: &[Entry]) -> Vec<String> {
    // The names sort by time, and so do the entries.
    let logged: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).filter(|key| Key::is_log(key)).collect();
    let surplus = (logged.len() + 1).saturating_sub(MOST_ENTRIES).min(MOST_DELETED);
    logged.into_iter().take(surplus).map(str::to_owned).collect()
}

/// Checks the text of --reason.
pub(crate) fn check_reason(reason: Option<&str>) -> Result<(), Error> {
    match reason.map(|reason| reason.chars().count()) {
        Some(count) if count > Author::LONGEST_TEXT => {
            Err(Error::Usage(format!("--reason has {count} characters, at most {} are kept", Author::LONGEST_TEXT)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn an_entry_is_named_by_its_time() {
        let name = name_entry(UNIX_EPOCH + Duration::from_millis(1_780_000_000_123), 7);
        assert_eq!(name, "log/20260528T202640.123Z-00000007");
        assert!(matches!(name.parse(), Ok(Key::Log(_))));
        assert!(name_entry(UNIX_EPOCH + Duration::from_secs(1_780_000_001), 0) > name);
    }

    #[test]
    fn a_full_log_loses_its_oldest_entries() {
        let log = |count: usize| -> Vec<Entry> {
            let keys = (0..count).map(|number| format!("log/{number:06}"));
            let keys = ["http-services/a/domain".to_owned()].into_iter().chain(keys);
            keys.map(|key| Entry { key, value: Vec::new(), create_revision: 1, mod_revision: 1, lease: 7 }).collect()
        };
        assert_eq!(find_surplus_entries(&log(MOST_ENTRIES - 1)), Vec::<String>::new());
        assert_eq!(find_surplus_entries(&log(MOST_ENTRIES)), ["log/000000"]);
        assert_eq!(find_surplus_entries(&log(MOST_ENTRIES + 999)).len(), MOST_DELETED);
    }

    #[test]
    fn a_long_reason_is_refused() {
        assert!(check_reason(None).is_ok() && check_reason(Some(&"ä".repeat(500))).is_ok());
        let refused = check_reason(Some(&"ä".repeat(501))).unwrap_err();
        assert_eq!(refused.to_string(), "--reason has 501 characters, at most 500 are kept");
    }
}
