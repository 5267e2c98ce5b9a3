//! Keys and values between etcd and this API: below the prefix there, relative to it here. Pure: no I/O, no clock.

use std::fmt;

use discovery::Entry;
use etcd_client::proto::PbKeyValue;

/// Returns the entry as a listing keeps it. `None` leaves it out. `Some` keeps every entry whole.
pub type KeepEntry = fn(Entry) -> Option<Entry>;

/// The prefix of all keys, with one slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

impl Prefix {
    /// Reads a prefix. Slashes at its end don't count. An error has the fault, and a prefix that is right.
    ///
    /// All programs and etcdctl must mean the same keys. So one prefix has one spelling: a slash before each part, and no
    /// character that a reader can't see.
    pub(crate) fn parse(text: &str) -> Result<Self, (&'static str, String)> {
        let name = text.trim_end_matches('/');
        let reason = if name.is_empty() {
            "the whole store can't be one's own"
        } else if name.contains(is_odd) {
            "it holds blanks or characters that can't be seen"
        } else if !name.starts_with('/') {
            "it has to begin with a slash"
        } else if name.contains("//") {
            "it holds two slashes in a row"
        } else {
            return Ok(Self(format!("{name}/")));
        };
        let visible: String = name.chars().filter(|c| !is_odd(*c)).collect();
        let right: String = visible.split('/').filter(|part| !part.is_empty()).map(|part| format!("/{part}")).collect();
        Err((reason, if right.is_empty() { "/haproxy-discover".to_owned() } else { right }))
    }

    /// The prefix without the slash at its end.
    pub(crate) fn as_str(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }

    /// The key as the store has it.
    pub(crate) fn absolute_key(&self, key: &str) -> String {
        format!("{}{key}", self.0)
    }

    /// The folder as the store has it, with a slash at its end, so that `shop` doesn't include `shop2`.
    pub(crate) fn absolute_folder(&self, folder: &str) -> String {
        let range = self.absolute_key(folder);
        if range.ends_with('/') { range } else { format!("{range}/") }
    }

    /// The key below the prefix. Bytes that are no UTF-8 become U+FFFD, which no valid key has.
    pub(crate) fn relative_key(&self, key: &[u8]) -> String {
        String::from_utf8_lossy(key.strip_prefix(self.0.as_bytes()).unwrap_or(key)).into_owned()
    }

    pub(crate) fn entry_from(&self, kv: PbKeyValue) -> Entry {
        Entry {
            key: self.relative_key(&kv.key),
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            lease: kv.lease,
        }
    }
}

fn is_odd(c: char) -> bool {
    c.is_whitespace() || c.is_control() || !is_visible(c)
}

/// False for a character that `Debug` escapes: unassigned ones, and format characters such as bidi and zero-width signs.
fn is_visible(c: char) -> bool {
    // `escape_debug` escapes these three only for its quotes.
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1
}

/// The keys that a listing or a watch covers, as the store has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    start: String,
    /// The first key behind the range. `None`: the range is the one key.
    end: Option<Vec<u8>>,
}

impl Range {
    /// All keys below a folder, relative to the prefix.
    pub(crate) fn of_folder(prefix: &Prefix, folder: &str) -> Self {
        let start = prefix.absolute_folder(folder);
        Self { end: Some(range_end(&start)), start }
    }

    /// All keys from the first folder to the end of the last one, both relative to the prefix.
    pub(crate) fn of_folders(prefix: &Prefix, first: &str, last: &str) -> Self {
        Self { end: Some(range_end(&prefix.absolute_folder(last))), start: prefix.absolute_folder(first) }
    }

    /// One key, relative to the prefix.
    pub(crate) fn of_key(prefix: &Prefix, key: &str) -> Self {
        Self { start: prefix.absolute_key(key), end: None }
    }

    /// The first key, which names the range in errors.
    pub(crate) fn start(&self) -> &str {
        &self.start
    }

    /// The first key behind the range. `None` for one key.
    pub(crate) fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }
}

/// The first key behind all keys that begin with `range`: etcd's `range_end`.
pub(crate) fn range_end(range: &str) -> Vec<u8> {
    let mut end = range.as_bytes().to_vec();
    // The range ends in a slash, so its last byte can't overflow.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The id of a lease. It prints in hexadecimal, as etcdctl prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub(crate) i64);

impl LeaseId {
    /// The number, as [`discovery::Entry::lease`] has it.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for LeaseId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_relative_and_absolute() {
        let prefix = Prefix::parse("/haproxy-discover/").expect("valid");
        assert_eq!(prefix.as_str(), "/haproxy-discover");
        assert_eq!(prefix.absolute_key("http-services/a/domain"), "/haproxy-discover/http-services/a/domain");
        assert_eq!(prefix.relative_key(b"/haproxy-discover/http-services/a/domain"), "http-services/a/domain");
        assert_eq!(prefix.relative_key(b"/haproxy-discover/\xff\n"), "\u{fffd}\n");
    }

    #[test]
    fn a_range_ends_in_a_slash() {
        let prefix = Prefix::parse("/p").expect("valid");
        assert_eq!(prefix.absolute_folder(""), "/p/");
        assert_eq!(prefix.absolute_folder("balancers"), "/p/balancers/");
        assert_eq!(prefix.absolute_folder("balancers/"), "/p/balancers/");
        assert_eq!(range_end("/p/"), b"/p0");
    }

    #[test]
    fn a_key_is_a_range_without_an_end() {
        let prefix = Prefix::parse("/p").expect("valid");
        let (folder, key) = (Range::of_folder(&prefix, "a"), Range::of_key(&prefix, "a"));
        assert_eq!((folder.start(), folder.end()), ("/p/a/", Some(b"/p/a0".as_slice())));
        assert_eq!((key.start(), key.end()), ("/p/a", None));
    }

    #[test]
    fn a_range_of_folders_has_what_is_between_them() {
        let range = Range::of_folders(&Prefix::parse("/p").expect("valid"), "a/slots", "a/standby");
        assert_eq!((range.start(), range.end()), ("/p/a/slots/", Some(b"/p/a/standby0".as_slice())));
    }

    #[test]
    fn the_whole_store_is_no_prefix() {
        for whole in ["", "/", "///"] {
            let (_, right) = Prefix::parse(whole).expect_err("refused");
            assert_eq!(right, "/haproxy-discover");
        }
    }
}
