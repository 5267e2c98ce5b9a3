//! The values at an earlier point: today's values, with all later changes undone. Pure: no I/O, no clock.
//!
//! Each undone change has to lead to the value that is there. So a hole in the list is found, and nothing is guessed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::merge::PastChange;
use super::point::Point;

/// The reason why the values at a point can't be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UndoError {
    /// A change is missing in the list.
    #[error("{key}: no log has the change before revision {revision}")]
    Hole {
        /// The key with the missing change.
        key: String,
        /// The revision of the change after the hole.
        revision: i64,
    },
    /// The log has not the whole value.
    #[error("{key}: the log doesn't have the whole value that revision {revision} replaced")]
    Cut {
        /// The key.
        key: String,
        /// The revision of the change.
        revision: i64,
    },
    /// It isn't known whether the change was before or after the point.
    #[error("{key}: nobody says when revision {revision} was written, so give a revision instead of a time")]
    UnknownTime {
        /// The key.
        key: String,
        /// The revision of the change.
        revision: i64,
    },
}

/// Computes the values at a point. `now` has the present ones by key, `changes` those that led to them, the oldest first.
pub(crate) fn undo_changes(
    now: &BTreeMap<String, String>,
    changes: &[PastChange],
    point: Point,
) -> Result<BTreeMap<String, String>, UndoError> {
    let mut values = now.clone();
    // Newest first, because each step needs the values just after its change.
    for (change, is_later) in changes.iter().zip(compare_with_point(changes, point)).rev() {
        let (key, revision) = (change.key.clone(), change.revision);
        match is_later {
            Some(false) => continue,
            None => return Err(UndoError::UnknownTime { key, revision }),
            Some(true) => {}
        }
        if change.is_cut {
            return Err(UndoError::Cut { key, revision });
        }
        if values.get(&key) != change.after.as_ref() {
            return Err(UndoError::Hole { key, revision });
        }
        match &change.before {
            Some(before) => values.insert(key, before.clone()),
            None => values.remove(&key),
        };
    }
    Ok(values)
}

/// True for each change that is later than the point, None where that isn't known.
pub(crate) fn compare_with_point(changes: &[PastChange], point: Point) -> Vec<Option<bool>> {
    let at = match point {
        Point::Revision(revision) => {
            let compare = |change: &PastChange| match change.after_revision {
                _ if change.revision <= revision => Some(false),
                Some(after) if after < revision => None,
                _ => Some(true),
            };
            return changes.iter().map(compare).collect();
        }
        Point::Time(at) => at,
    };
    changes.iter().map(|change| compare_with_time(change, changes, at)).collect()
}

/// A change without a time lies between the changes before and after it. One that was missed lies after the changes before its
/// gap.
fn compare_with_time(change: &PastChange, changes: &[PastChange], at: SystemTime) -> Option<bool> {
    let known = |it: &&PastChange| it.after_revision.is_none();
    let is_known = change.after_revision.is_none();
    if let Some(time) = change.time.filter(|time| is_known || *time <= at) {
        return Some(time > at);
    }
    let from = change.after_revision.unwrap_or(change.revision);
    let earlier = changes.iter().filter(known).filter(|it| it.revision <= from);
    let later = changes.iter().filter(known).filter(|it| it.revision >= change.revision);
    if earlier.filter_map(|it| it.time).max().is_some_and(|time| time > at) {
        return Some(true);
    }
    if later.filter_map(|it| it.time).min().is_some_and(|time| time <= at) {
        return Some(false);
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn time(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    /// A change at the second of its revision.
    fn change(revision: i64, key: &str, before: &str, after: &str) -> PastChange {
        let text = |value: &str| (value != "–").then(|| value.to_owned());
        let time = Some(time(revision.unsigned_abs()));
        let (before, after) = (text(before), text(after));
        PastChange { revision, key: key.into(), before, after, time, ..PastChange::default() }
    }

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_past_comes_back() {
        let changes = [
            change(3, "a", "–", "1"),
            change(5, "a", "1", "2"),
            change(6, "b", "–", "x"),
            change(8, "a", "2", "–"),
            change(9, "b", "x", "y"),
        ];
        let now = values(&[("b", "y"), ("c", "z")]);
        let then = |point| undo_changes(&now, &changes, point);
        assert_eq!(then(Point::Revision(9)).unwrap(), now);
        assert_eq!(then(Point::Revision(6)).unwrap(), values(&[("a", "2"), ("b", "x"), ("c", "z")]));
        assert_eq!(then(Point::Time(time(5))).unwrap(), values(&[("a", "2"), ("c", "z")]));
        assert_eq!(then(Point::Time(time(0))).unwrap(), values(&[("c", "z")]));
    }

    #[test]
    fn a_hole_and_a_cut_value_are_found() {
        let changes = [change(3, "a", "–", "1"), change(8, "a", "2", "3")];
        let now = values(&[("a", "3")]);
        assert_eq!(undo_changes(&now, &changes, Point::Revision(3)), Ok(values(&[("a", "2")])));
        let hole = UndoError::Hole { key: "a".into(), revision: 3 };
        assert_eq!(undo_changes(&now, &changes, Point::Revision(2)), Err(hole));
        let other = values(&[("a", "4")]);
        assert!(matches!(undo_changes(&other, &changes, Point::Revision(5)), Err(UndoError::Hole { revision: 8, .. })));
        let cut = [PastChange { is_cut: true, ..change(8, "a", "2", "3") }];
        assert!(matches!(undo_changes(&now, &cut, Point::Revision(5)), Err(UndoError::Cut { .. })));
        assert_eq!(undo_changes(&now, &cut, Point::Revision(8)).as_ref(), Ok(&now));
    }

    #[test]
    fn a_time_that_nobody_knows_is_bounded_by_its_neighbors() {
        let unknown = |revision, before, after| PastChange { time: None, ..change(revision, "a", before, after) };
        let changes = [change(3, "a", "–", "1"), unknown(5, "1", "2"), change(8, "a", "2", "3"), unknown(9, "3", "4")];
        let compare = |second| compare_with_point(&changes, Point::Time(time(second)));
        assert_eq!(compare(2), [Some(true), Some(true), Some(true), Some(true)]);
        assert_eq!(compare(4), [Some(false), None, Some(true), Some(true)]);
        assert_eq!(compare(8), [Some(false), Some(false), Some(false), None]);
        let then = undo_changes(&values(&[("a", "4")]), &changes, Point::Time(time(4)));
        assert_eq!(then, Err(UndoError::UnknownTime { key: "a".into(), revision: 5 }));
    }

    #[test]
    fn a_change_that_was_missed_counts_within_its_gap() {
        let missed = PastChange { after_revision: Some(3), ..change(8, "a", "1", "3") };
        let changes = [change(3, "a", "–", "1"), missed, change(12, "a", "3", "4")];
        let compare = |point| compare_with_point(&changes, point).get(1).copied().flatten();
        assert_eq!(compare(Point::Time(time(2))), Some(true));
        assert_eq!(compare(Point::Time(time(5))), None);
        assert_eq!(compare(Point::Time(time(8))), Some(false));
        assert_eq!(compare(Point::Revision(3)), Some(true));
        assert_eq!(compare(Point::Revision(5)), None);
        assert_eq!(compare(Point::Revision(8)), Some(false));
    }
}
