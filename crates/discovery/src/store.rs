//! The contents of the store, as all crates pass them on: entries, listings and changes. Pure: no I/O, no clock.

mod revision;

pub use revision::{ResetReason, StoreRevision};

use crate::Key;

/// One key with its value, as etcd keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key below the prefix: `http-services/shop/domain`. Bytes that are no UTF-8 are U+FFFD, which no valid key has.
    pub key: String,
    /// The value's bytes, not validated in any way.
    pub value: Vec<u8>,
    /// The store's revision at which the key was created.
    pub create_revision: i64,
    /// The store's revision at which the value was last written.
    pub mod_revision: i64,
    /// The id of the key's lease. 0 is none.
    pub lease: i64,
}

/// The longest record in bytes. JSON with every field and the longest names is under 1 kB.
pub(crate) const LONGEST_RECORD: usize = 4 * 1024;

/// The longest text of a setting in bytes: a list of some five hundred host names.
pub(crate) const LONGEST_SETTING: usize = 16 * 1024;

/// The beginning of a value that was cut. No value that is read holds a NUL.
const CUT_MARK: &str = "\0cut from ";
/// The bytes that are kept of a value that is cut, and room for the mark and the length before them.
const CUT_HEAD: usize = 200;
const CUT_PREFACE: usize = 64;

impl Entry {
    /// True if the value is too short to be cut. One that was cut before is, since its mark has the original length.
    fn is_surely_short(&self) -> bool {
        self.value.len() <= CUT_HEAD + CUT_PREFACE
    }

    /// The entry with at most as much of its value as is ever read. A longer value is refused with its own length, cut or
    /// not.
    #[must_use]
    pub fn with_bounded_value(self) -> Self {
        if self.is_surely_short() {
            return self;
        }
        // confgen keeps every entry in memory and on disk. 60 refused values of 1.4 MB were 84 MB in both.
        let is_setting = matches!(self.key.parse(), Ok(Key::Setting { .. }));
        let limit = if is_setting { LONGEST_SETTING } else { LONGEST_RECORD };
        let length = value_length(&self.value);
        if length <= limit {
            return self;
        }
        let head = self.value.get(..CUT_HEAD).unwrap_or_default();
        let value = [format!("{CUT_MARK}{length} bytes\0").as_bytes(), head].concat();
        Self { value, ..self }
    }
}

/// The value's length in bytes, from before it was cut.
pub(crate) fn value_length(value: &[u8]) -> usize {
    // The mark may be a writer's. So it can only make a value longer, and never gets a long one accepted.
    original_length(value).map_or(value.len(), |length| length.max(value.len()))
}

/// The length that the mark of a cut value names. `None` without a mark.
fn original_length(value: &[u8]) -> Option<usize> {
    let rest = value.strip_prefix(CUT_MARK.as_bytes())?;
    let digits = rest.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Every key below a folder at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's cluster id. A recreated store may have the old one's.
    pub cluster: u64,
    /// The revision that all entries were read at.
    pub revision: i64,
    /// The store's raft term, which never goes back while the store lives.
    pub raft_term: u64,
    /// The entries, sorted by key.
    pub entries: Vec<Entry>,
}

/// One event of the watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Entry),
    /// The key was removed: by a deletion, or with its lease, which expired or was revoked. etcd doesn't tell them apart.
    Delete {
        /// The key below the prefix.
        key: String,
        /// The revision at which the key was removed.
        revision: i64,
        /// The entry before the removal. `None` if etcd has compacted it away.
        previous: Option<Entry>,
    },
}

impl Change {
    /// The key below the prefix.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, Override, Refusal, Setting, SettingName, Upstream};

    fn entry(key: &str, value: Vec<u8>) -> Entry {
        Entry { key: key.into(), value, create_revision: 1, mod_revision: 2, lease: 3 }
    }

    #[test]
    fn a_value_beyond_what_is_read_is_cut_and_refused_as_before() {
        let long = |length: usize| b"10.0.0.1:80 ".iter().copied().cycle().take(length).collect::<Vec<u8>>();
        let setting = |value: &[u8]| Setting::parse_stored(Kind::Http, SettingName::Domain, value).value;
        for (key, length) in [("http-services/a/domain", 1_400_000), ("http-services/a/upstreams/b", 5_000)] {
            let whole = entry(key, long(length));
            let cut = whole.clone().with_bounded_value();
            assert!(cut.value.len() < 300 && cut.value.ends_with(&long(CUT_HEAD)));
            assert_eq!(Entry { value: Vec::new(), ..cut.clone() }, Entry { value: Vec::new(), ..whole.clone() });
            assert_eq!(cut.clone().with_bounded_value(), cut);
            let refusal = |value: &[u8]| match key.ends_with("domain") {
                true => setting(value).unwrap_err(),
                false => Upstream::parse(value).unwrap_err(),
            };
            assert_eq!(refusal(&cut.value), refusal(&whole.value));
            assert!(matches!(refusal(&cut.value), Refusal::TooLong { length: it, .. } if it == length));
            assert!(Override::parse(&cut.value).is_err());
        }
        let fits = entry("http-services/a/domain", long(16 * 1024));
        assert_eq!(fits.clone().with_bounded_value(), fits);
    }

    #[test]
    fn a_value_that_pretends_to_be_cut_gains_nothing() {
        let domain = |value: &[u8]| Setting::parse_stored(Kind::Http, SettingName::Domain, value);
        let long = domain(b"\0cut from 99999 bytes\0 a.com").value;
        assert!(matches!(long, Err(Refusal::TooLong { length: 99_999, .. })), "{long:?}");
        // Its good words count, as those of any other value.
        assert!(domain(b"\0cut from 7 bytes\0 a.com").refused_words.is_some());
        assert!(Upstream::parse(b"\0cut from 7 bytes\x0010.0.0.1:80").is_err());
    }
}
