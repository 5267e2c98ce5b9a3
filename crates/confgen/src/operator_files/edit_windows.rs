//! Edit windows: times in which a filled file had an editor's lines in place of confgen's. HAProxy may have started with those
//! lines. Pure: no I/O, the clock is an argument.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// The error of a start time, since HAProxy tells its age in whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// The time after which a window can't concern a new HAProxy. A HAProxy that read the lines answers within it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A time in which a filled file had an editor's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditWindow {
    /// The path that HAProxy reads.
    pub path: PathBuf,
    /// The time at which the editor saved them.
    pub from: SystemTime,
    /// The time at which confgen wrote its own lines again.
    pub until: SystemTime,
}

impl EditWindow {
    /// True if a HAProxy that started at this time, or up to a second before, may have read the lines.
    fn covers_start(&self, born: SystemTime) -> bool {
        self.from <= born && born <= self.until + SECOND
    }
}

/// The file that a HAProxy may have read with an editor's lines. `born` is the latest time at which that HAProxy can have
/// started. Removes the windows that can concern no later HAProxy.
pub fn find_suspect(windows: &mut Vec<EditWindow>, born: SystemTime, now: SystemTime) -> Option<PathBuf> {
    // A HAProxy that lives on may still be one that read the lines, so its window stays.
    windows.retain(|it| it.covers_start(born) || now <= it.until + FORGOTTEN_AFTER);
    windows.iter().find(|it| it.covers_start(born)).map(|it| it.path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_haproxy_that_was_born_meanwhile_is_suspected_and_no_other() {
        let at = |tenths: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(tenths * 100);
        let one = EditWindow { path: "/mine.cfg".into(), from: at(100), until: at(105) };
        for (born, now, is_met, is_kept) in [
            (50, 105, false, true),
            // A later one may still be found to have been born by then.
            (50, 705, false, true),
            (50, 706, false, false),
            (99, 106, false, true),
            (100, 106, true, true),
            (115, 116, true, true),
            // The process lives on.
            (104, 900, true, true),
            (116, 706, false, false),
        ] {
            let mut stood = vec![one.clone()];
            assert_eq!(find_suspect(&mut stood, at(born), at(now)).is_some(), is_met, "born {born}, now {now}");
            assert_eq!(!stood.is_empty(), is_kept, "born {born}, now {now}");
        }
    }
}
