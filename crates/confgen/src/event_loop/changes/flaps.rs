//! The decision which changes get a line in confgen's log. A key that changes often gets a summary. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The time that a summary is about.
const WINDOW: Duration = Duration::from_secs(60);

/// The lines of one key in a window. A switch in four steps has one for each.
const LINES_PER_KEY: usize = 5;

/// The lines of all keys in a window. A host with a hundred upstreams may come at once.
const LINES_IN_ALL: usize = 200;

/// The most keys that are counted on their own.
const MOST_KEYS: usize = 10_000;

/// The lines of the present window.
#[derive(Debug, Default)]
pub struct FlapFilter {
    keys: BTreeMap<String, Window>,
    /// `None` while no window runs.
    all: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    logged: usize,
    left_out: usize,
}

/// Changes without lines of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The key that changed. `None` for changes of many keys.
    pub key: Option<String>,
    /// The number of changes in the window. For many keys, those without a line.
    pub changes: usize,
}

impl FlapFilter {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.all.is_none()
    }

    /// True if a change of this key gets a line. [`FlapFilter::end_windows`] comes first.
    pub fn admit(&mut self, key: &str, now: Instant) -> bool {
        let fresh = Window { began: now, logged: 0, left_out: 0 };
        let all = self.all.get_or_insert(fresh);
        // Keys beyond the bound count only among all.
        if self.keys.len() < MOST_KEYS || self.keys.contains_key(key) {
            let window = self.keys.entry(key.to_owned()).or_insert(fresh);
            if window.logged >= LINES_PER_KEY {
                window.left_out += 1;
                return false;
            }
            window.logged += 1;
        }
        let has_room = all.logged < LINES_IN_ALL;
        if has_room {
            all.logged += 1;
        } else {
            all.left_out += 1;
        }
        has_room
    }

    /// Ends the windows that are over. Returns what they left out.
    pub fn end_windows(&mut self, now: Instant) -> Vec<Summary> {
        let is_over = |window: &Window| now.saturating_duration_since(window.began) >= WINDOW;
        let mut summaries = Vec::new();
        self.keys.retain(|key, window| {
            if is_over(window) && window.left_out > 0 {
                summaries.push(Summary { key: Some(key.clone()), changes: window.logged + window.left_out });
            }
            !is_over(window)
        });
        if let Some(all) = self.all.take_if(|all| is_over(all))
            && all.left_out > 0
        {
            summaries.push(Summary { key: None, changes: all.left_out });
        }
        summaries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_flaps_gets_one_summary_in_a_window() {
        let (mut filter, start) = (FlapFilter::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut lines = 0;
        let mut summaries = Vec::new();
        for tick in 0..150 {
            let now = start + second * tick;
            summaries.extend(filter.end_windows(now));
            lines += usize::from(filter.admit("a", now));
        }
        assert_eq!(lines, 3 * LINES_PER_KEY);
        let summary = Summary { key: Some("a".into()), changes: 60 };
        assert_eq!(summaries, [summary.clone(), summary]);
        assert_eq!(filter.end_windows(start + second * 180), [Summary { key: Some("a".into()), changes: 30 }]);
        assert!(filter.is_empty());
    }

    #[test]
    fn many_keys_get_a_summary_together() {
        let (mut filter, start) = (FlapFilter::default(), Instant::now());
        let lines = (0..20_000).filter(|number| filter.admit(&number.to_string(), start)).count();
        assert_eq!(lines, LINES_IN_ALL);
        assert!(filter.end_windows(start).is_empty() && filter.keys.len() == MOST_KEYS);
        assert_eq!(filter.end_windows(start + WINDOW), [Summary { key: None, changes: 20_000 - LINES_IN_ALL }]);
        assert!(filter.admit("a", start + WINDOW));
    }
}
