//! How long a hand's lines stood where confgen's belong: HAProxy may have been started with them. Pure.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// HAProxy counts its age in whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// A HAProxy that reads them answers within this, and the one before it no longer.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// One time that lines of somebody else's stood in a filled file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EditWindow {
    /// The file, as HAProxy reads it.
    pub path: PathBuf,
    /// When they were saved.
    pub from: SystemTime,
    /// When confgen's stood there again.
    pub until: SystemTime,
}

impl EditWindow {
    /// Whether a HAProxy that was born then, or up to a second sooner, may have read them.
    fn covers_start(&self, born: SystemTime) -> bool {
        self.from <= born && born <= self.until + SECOND
    }
}

/// The file that a HAProxy may have read so, which was born then at the latest. What can't be any later one's fault is
/// forgotten.
pub fn find_suspect(stood: &mut Vec<EditWindow>, born: SystemTime, now: SystemTime) -> Option<PathBuf> {
    stood.retain(|it| it.covers_start(born) || now <= it.until + FORGOTTEN_AFTER);
    stood.iter().find(|it| it.covers_start(born)).map(|it| it.path.clone())
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
