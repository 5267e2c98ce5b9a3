//! Changes between the moment when confgen learns of them and the moment when HAProxy has them. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use discovery::balancer_api::AppliedChange;
use discovery::{Author, Change, Entry, Key, LogEntry, Service, ServiceId, Topology};

/// The most changes that wait for HAProxy. The oldest of more are written without a word on HAProxy.
const MOST_WAITING: usize = 20_000;

/// The longest value that an entry of the log has. No longer setting is read.
const LONGEST_VALUE: usize = 16 * 1024;

/// The beginning of a value that the replica has cut.
const CUT_MARK: &[u8] = b"\0cut from ";

/// The moment when changes are noted.
#[derive(Clone, Debug)]
pub struct Noted {
    /// RFC 3339 in UTC.
    pub time: String,
    pub at: Instant,
}

impl Noted {
    pub fn now() -> Self {
        Self { time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(), at: Instant::now() }
    }
}

/// The changes that HAProxy may not have yet.
#[derive(Debug, Default)]
pub struct ChangeTracker {
    waiting: VecDeque<Waiting>,
    /// Changes that need nothing of HAProxy.
    ready: Vec<AppliedChange>,
}

#[derive(Debug)]
struct Waiting {
    change: AppliedChange,
    service: ServiceId,
    noted_at: Instant,
    /// The service waited for a restart since.
    was_pending: bool,
}

impl ChangeTracker {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty()
    }

    /// The lowest revision that waits for HAProxy.
    pub fn oldest_waiting(&self) -> Option<i64> {
        self.waiting.iter().map(|it| it.change.revision).min()
    }

    /// True if there are changes that need nothing of HAProxy.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Notes changes that confgen followed. `before` is the store without them.
    pub fn note_changes(&mut self, before: &Topology, changes: &[Change], noted: &Noted) {
        let authors = find_authors(changes);
        // A batch may have several changes of one key.
        let mut values: BTreeMap<&str, Option<&[u8]>> = BTreeMap::new();
        for change in changes.iter().filter(|change| !Key::is_log(change.key())) {
            let (revision, after) = match change {
                Change::Put(entry) => (entry.mod_revision, Some(entry)),
                Change::Delete { revision, .. } => (*revision, None),
            };
            // A malformed key changes nothing in HAProxy. The quarantine has it.
            let Ok(key) = change.key().parse::<Key>() else { continue };
            if let Key::Balancer(_) = key {
                self.note_balancer(change, revision, noted);
                continue;
            }
            let Some(service) = logged_service(&key) else { continue };
            let standing = before.find_entry(&key).map(|entry| entry.value.as_slice());
            let after = after.map(|entry| entry.value.as_slice());
            let old = values.insert(change.key(), after).unwrap_or(standing);
            // An announcer writes its record again under another lease.
            if old != after {
                let author = authors.get(&revision).cloned();
                let change = AppliedChange { revision, author, ..new_change(change.key(), &key, old, after, noted) };
                self.push(change, service, noted);
            }
        }
    }

    /// Notes a balancer that comes or goes. Its record changes with each change of the store.
    fn note_balancer(&mut self, change: &Change, revision: i64, noted: &Noted) {
        let is_there = match change {
            Change::Put(entry) if entry.create_revision != entry.mod_revision => return,
            Change::Put(_) => true,
            Change::Delete { .. } => false,
        };
        let state = |is_there: bool| is_there.then(|| "alive".to_owned());
        let (before, after) = (state(!is_there), state(is_there));
        let (time, key) = (noted.time.clone(), change.key().to_owned());
        self.ready.push(AppliedChange { time, revision, key, before, after, ..AppliedChange::default() });
    }

    /// Notes the differences between two states of the store, of which the second was listed. The store was at the first one of
    /// `revisions` before.
    pub fn note_listing(&mut self, before: &Topology, after: &Topology, revisions: (i64, i64), noted: &Noted) {
        let ids: BTreeSet<&ServiceId> = before.services().keys().chain(after.services().keys()).collect();
        for id in ids {
            let (old, new) = (before.services().get(id), after.services().get(id));
            // A listing shares the services that it doesn't change.
            if let (Some(old), Some(new)) = (old, new)
                && Arc::ptr_eq(old, new)
            {
                continue;
            }
            let (old, new) = (entries_by_key(old), entries_by_key(new));
            let keys: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
            for name in keys {
                let Ok(key) = name.parse::<Key>() else { continue };
                let (then, now) = (old.get(name), new.get(name));
                let value = |entry: Option<&&Entry>| entry.map(|entry| entry.value.clone());
                let (then_value, now_value) = (value(then), value(now));
                if then_value == now_value {
                    continue;
                }
                let change = new_change(name, &key, then_value.as_deref(), now_value.as_deref(), noted);
                let revision = now.map_or(revisions.1, |entry| entry.mod_revision);
                let change = AppliedChange { revision, after_revision: Some(revisions.0), ..change };
                self.push(change, id, noted);
            }
        }
        self.note_balancers(before, after, revisions, noted);
    }

    /// Notes the balancers that came or went meanwhile.
    fn note_balancers(&mut self, before: &Topology, after: &Topology, revisions: (i64, i64), noted: &Noted) {
        let (old, new) = (before.balancer_entries(), after.balancer_entries());
        for node in old.keys().chain(new.keys()).filter(|node| old.contains_key(*node) != new.contains_key(*node)) {
            let state = |is_there: bool| is_there.then(|| "alive".to_owned());
            self.ready.push(AppliedChange {
                time: noted.time.clone(),
                revision: revisions.1,
                after_revision: Some(revisions.0),
                key: Key::Balancer(node.clone()).to_string(),
                before: state(old.contains_key(node)),
                after: state(new.contains_key(node)),
                ..AppliedChange::default()
            });
        }
    }

    fn push(&mut self, change: AppliedChange, service: &ServiceId, noted: &Noted) {
        self.waiting.push_back(Waiting { change, service: service.clone(), noted_at: noted.at, was_pending: false });
    }

    /// Takes the changes that HAProxy has: those up to the `applied` revision, except of pending services. A quarantined key has
    /// its reason.
    pub fn take_applied(
        &mut self,
        applied: i64,
        pending: &BTreeSet<ServiceId>,
        quarantined: &BTreeMap<String, String>,
        now: Instant,
    ) -> Vec<AppliedChange> {
        let mut done = std::mem::take(&mut self.ready);
        for mut it in std::mem::take(&mut self.waiting) {
            // A pending service may serve the old value until the restart.
            let is_pending = pending.contains(&it.service);
            it.was_pending |= is_pending && it.change.revision <= applied;
            let refused = quarantined.get(&it.change.key);
            if it.change.revision > applied || (is_pending && refused.is_none()) {
                self.waiting.push_back(it);
                continue;
            }
            done.push(match refused {
                Some(_) => AppliedChange { refused: refused.cloned(), ..it.change },
                None => AppliedChange {
                    applied_by: Some(if it.was_pending { "restart" } else { "runtime" }.to_owned()),
                    seconds: Some(now.saturating_duration_since(it.noted_at).as_secs_f64()),
                    ..it.change
                },
            });
        }
        // While HAProxy is down, changes wait without an end.
        let surplus = self.waiting.len().saturating_sub(MOST_WAITING);
        done.extend(self.waiting.drain(..surplus).map(|it| it.change));
        done
    }
}

/// The authors of transactions, by revision.
fn find_authors(changes: &[Change]) -> BTreeMap<i64, Author> {
    let mut authors = BTreeMap::new();
    for change in changes.iter().filter(|change| Key::is_log(change.key())) {
        if let Change::Put(entry) = change
            && let Ok(logged) = LogEntry::parse(&entry.value)
        {
            authors.insert(entry.mod_revision, logged.author);
        }
    }
    authors
}

/// The service of a key that the log has. `None` for slots and stand-bys, which balancers ignore.
fn logged_service(key: &Key) -> Option<&ServiceId> {
    match key {
        Key::Setting { service, .. } | Key::Upstream { service, .. } | Key::Override { service, .. } => Some(service),
        Key::Slot { .. } | Key::Standby { .. } | Key::Balancer(_) | Key::AcceptStore | Key::Log(_) => None,
    }
}

fn entries_by_key(service: Option<&Arc<Service>>) -> BTreeMap<&str, &Entry> {
    service.into_iter().flat_map(|service| service.entries()).map(|entry| (entry.key.as_str(), entry)).collect()
}

fn new_change(name: &str, key: &Key, before: Option<&[u8]>, after: Option<&[u8]>, noted: &Noted) -> AppliedChange {
    let (mut cut, is_secret) = (false, key.is_secret());
    let mut text = |value: &[u8]| {
        let (text, is_whole) = if is_secret { ("…".to_owned(), false) } else { show_value(value) };
        cut |= !is_whole;
        text
    };
    let (before, after) = (before.map(&mut text), after.map(&mut text));
    let (time, key) = (noted.time.clone(), name.to_owned());
    AppliedChange { time, key, before, after, cut, ..AppliedChange::default() }
}

/// A value as text. False if it isn't the whole value.
fn show_value(value: &[u8]) -> (String, bool) {
    let head = value.get(..LONGEST_VALUE).unwrap_or(value);
    match std::str::from_utf8(head) {
        Ok(text) => (text.to_owned(), head.len() == value.len() && !value.starts_with(CUT_MARK)),
        Err(_) => (String::from_utf8_lossy(head).into_owned(), false),
    }
}

#[cfg(test)]
mod tests;
