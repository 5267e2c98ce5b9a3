//! Reading the log of changes. A line that can't be parsed is left out: the end of a line that a crash cut is one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::SystemTime;

use discovery::balancer_api::{AppliedChange, Changes};
use discovery::{Key, ServiceId};

use super::{FOLDER, LogKind, Mark, MarkKind};

/// The longest line that is read. Two values of 16 KiB, each byte of them escaped, have less.
const LONGEST_LINE: u64 = 512 << 10;

/// The changes that an answer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeQuery {
    /// Changes of this service's keys only, and of balancers that come and go. `None` has those of all services.
    pub service: Option<ServiceId>,
    /// Changes from this time on. `None` has all.
    pub since: Option<SystemTime>,
    /// Leave the records of upstreams out.
    pub settings_only: bool,
    /// The most changes. Older ones are left out.
    pub limit: usize,
    /// The most files of each log, the newest ones. `None` reads all.
    pub files: Option<usize>,
}

/// The lines of one log so far.
#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<AppliedChange>,
    /// The log is whole from here on. `None` before the first line.
    whole_since: Option<Mark>,
    more: bool,
}

/// Reads the changes of a state directory. A log that is missing has none.
pub fn read_changes(state_dir: &Path, query: &ChangeQuery) -> io::Result<Changes> {
    let folder = state_dir.join(FOLDER);
    let mut settings = Lines::default();
    settings.read_log(&folder, LogKind::Settings, query)?;
    let Lines { kept, whole_since, mut more } = settings;
    let mut changes: Vec<AppliedChange> = kept.into();
    if !query.settings_only {
        let mut upstreams = Lines::default();
        upstreams.read_log(&folder, LogKind::Upstreams, query)?;
        more |= upstreams.more;
        changes.extend(upstreams.kept);
        // The order of the two logs: by revision, and a listing's changes by their time.
        changes.sort_by(|one, other| (&one.time, one.revision).cmp(&(&other.time, other.revision)));
        let surplus = changes.len().saturating_sub(query.limit);
        more |= surplus > 0;
        changes.drain(..surplus);
    }
    let (since, since_revision) = whole_since.map_or((None, 0), |mark| (Some(mark.time), mark.revision));
    Ok(Changes { changes, since, since_revision, until_revision: 0, more })
}

impl Lines {
    fn read_log(&mut self, folder: &Path, kind: LogKind, query: &ChangeQuery) -> io::Result<()> {
        for number in kind.list_files(folder).into_iter().take(query.files.unwrap_or(usize::MAX)).rev() {
            let file = match File::open(kind.path(folder, number)) {
                Ok(file) => file,
                // The writer may have renamed or removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            self.read_lines(BufReader::new(file), query)?;
        }
        Ok(())
    }

    pub(super) fn read_lines(&mut self, mut file: impl BufRead, query: &ChangeQuery) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // confgen writes no longer line. The pieces of one can't be parsed.
            if io::Read::take(&mut file, LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.add_line(&line, query);
        }
    }

    fn add_line(&mut self, line: &[u8], query: &ChangeQuery) {
        if line.starts_with(b"{\"mark\"") {
            if let Ok(mark) = serde_json::from_slice(line) {
                self.add_mark(mark);
            }
        } else if let Ok(change) = serde_json::from_slice::<AppliedChange>(line)
            && query.selects(&change)
        {
            self.kept.push_back(change);
            if self.kept.len() > query.limit {
                self.kept.pop_front();
                self.more = true;
            }
        }
    }

    fn add_mark(&mut self, mark: Mark) {
        let is_other_store = self.whole_since.as_ref().is_some_and(|known| known.cluster != mark.cluster);
        if is_other_store {
            // Revisions of two stores have no common order.
            self.kept.clear();
        }
        if mark.mark == MarkKind::Begin || self.whole_since.is_none() {
            self.whole_since = Some(mark);
        }
    }
}

impl ChangeQuery {
    fn selects(&self, change: &AppliedChange) -> bool {
        let time = humantime::parse_rfc3339(&change.time);
        if change.key.is_empty()
            || time.as_ref().is_ok_and(|time| self.since.is_some_and(|since| *time < since))
            || time.is_err()
        {
            return false;
        }
        match (&self.service, change.key.parse::<Key>()) {
            (None, _) | (_, Ok(Key::Balancer(_))) => true,
            (Some(id), Ok(key)) => key.service_id() == Some(id),
            (Some(_), Err(_)) => false,
        }
    }
}
