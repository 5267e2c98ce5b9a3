//! The activities in progress, each with its age, so that nothing hangs unseen. It stops none of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `/ready` mentions an activity that takes longer. Each ordinary one ends within a second.
pub const LONG: Duration = Duration::from_secs(5);

/// confgen isn't ready while an activity takes longer. `haproxy -c` of 50,000 upstreams takes some 3 s, and a restart gives HAProxy 15 s
/// to serve. Changes over the Runtime API go on meanwhile, but files and restarts don't.
pub const HANGS: Duration = Duration::from_secs(15);

/// The kinds of activities, as metrics and the API name them.
pub const KINDS: [&str; 5] = ["start", "look", "runtime", "file", "restart"];

/// The activities of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Activities(Arc<Mutex<Ongoing>>);

#[derive(Debug, Default)]
struct Ongoing {
    next: u64,
    by_number: BTreeMap<u64, (&'static str, String, Instant)>,
}

/// An activity in progress. It ends when this is dropped.
#[derive(Debug)]
pub struct Activity {
    number: u64,
    of: Activities,
}

/// A copy of an activity in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// One of `KINDS`.
    pub kind: &'static str,
    pub reason: String,
    /// The time since its begin, as of the copy.
    pub taken: Duration,
}

impl Activities {
    /// Begins an activity. `kind` is one of [`KINDS`], because each has a series in the metrics.
    pub fn begin(&self, kind: &'static str, reason: impl Into<String>) -> Activity {
        self.begin_at(kind, reason, Instant::now())
    }

    fn begin_at(&self, kind: &'static str, reason: impl Into<String>, at: Instant) -> Activity {
        // A panic of another thread leaves the map whole, so a poisoned lock must not take `/ready` away.
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = running.next;
        running.next += 1;
        running.by_number.insert(number, (kind, reason.into(), at));
        Activity { number, of: self.clone() }
    }

    /// All activities in progress, the longest first.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = running.by_number.values().map(|(kind, reason, since)| UnderWay {
            kind,
            reason: reason.clone(),
            taken: since.elapsed(),
        });
        let mut shown: Vec<UnderWay> = shown.collect();
        shown.sort_by_key(|it| std::cmp::Reverse(it.taken));
        shown
    }

    /// The longest activity, if it takes longer than [`LONG`].
    pub fn find_long(&self) -> Option<UnderWay> {
        self.under_way().into_iter().next().filter(|it| it.taken > LONG)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.of.0.lock().unwrap_or_else(PoisonError::into_inner).by_number.remove(&self.number);
    }
}

impl UnderWay {
    /// True if it has taken longer than [`HANGS`]. confgen isn't ready then.
    pub fn is_hanging(&self) -> bool {
        self.taken > HANGS
    }

    pub fn describe(&self) -> String {
        format!("under way for {} s: {} ({})", self.taken.as_secs(), self.kind, self.reason)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Activities with one that began so long ago.
    pub fn begun_ago(kind: &'static str, taken: Duration) -> (Activities, Activity) {
        let activities = Activities::default();
        let activity = activities.begin_at(kind, "a test", Instant::now().checked_sub(taken).unwrap());
        (activities, activity)
    }

    #[test]
    fn an_activity_is_shown_until_it_ends_and_mentioned_if_it_is_long() {
        let (activities, long) = begun_ago("file", LONG + Duration::from_secs(1));
        let short = activities.clone().begin("look", "files");
        let kinds = || activities.under_way().iter().map(|it| it.kind).collect::<Vec<_>>();
        assert_eq!(kinds(), ["file", "look"]);
        let words = activities.find_long().unwrap();
        assert!(!words.is_hanging() && words.describe().starts_with("under way for 6 s: file"), "{}", words.describe());
        drop(long);
        assert_eq!((kinds(), activities.find_long()), (vec!["look"], None));
        drop(short);
        assert!(activities.under_way().is_empty());
    }
}
