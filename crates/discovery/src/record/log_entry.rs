//! An entry of the change log: the value of `log/<time>-<random>`, which discoverctl writes in the transaction of a change.
//!
//! The entry has the revision of the change, so a reader finds the changed keys by it. An entry is its writer's own word: etcd
//! doesn't check it. Pure: no I/O, no clock.

use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::Refusal;
use crate::refusal::escape_text;
use crate::store::{LONGEST_SETTING, value_length};

/// The most keys that an entry names. An import may change some hundred keys.
const MOST_KEYS: usize = 20;

/// The writer of a change, as discoverctl names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Author {
    /// The user on `host`. For a command under `sudo`, the user that called `sudo`.
    pub user: String,
    /// The host on which the command ran.
    pub host: String,
    /// The command without its options for etcd and for the balancers' API.
    pub command: String,
    /// The text of `--reason`; None without one.
    pub reason: Option<String>,
}

/// The value of `log/<time>-<random>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogEntry {
    /// The time just before the write, by the writer's clock: RFC 3339 in UTC.
    pub time: String,
    /// The writer.
    #[serde(flatten)]
    pub author: Author,
    /// The keys that the transaction writes or deletes, relative to the prefix: the first 20.
    #[serde(default)]
    pub keys: Vec<String>,
    /// The number of keys that are left out of `keys`.
    #[serde(default)]
    pub more: usize,
}

impl Author {
    /// The most characters of `command` and of `reason`.
    pub const LONGEST_TEXT: usize = 500;
    /// The most characters of `user` and of `host`.
    const LONGEST_NAME: usize = 253;

    /// Cuts each text to its length. A cut text ends in `…`.
    #[must_use]
    pub fn bounded(self) -> Self {
        let reason = self.reason.filter(|reason| !reason.is_empty());
        Self {
            user: cut_text(self.user, Self::LONGEST_NAME),
            host: cut_text(self.host, Self::LONGEST_NAME),
            command: cut_text(self.command, Self::LONGEST_TEXT),
            reason: reason.map(|reason| cut_text(reason, Self::LONGEST_TEXT)),
        }
    }
}

/// Prints `alice@admin-1`.
impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)
    }
}

impl LogEntry {
    /// The entry of a transaction that changes these keys.
    pub fn new<'a>(time: SystemTime, author: Author, keys: impl IntoIterator<Item = &'a str>) -> Self {
        let mut keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
        let more = keys.len().saturating_sub(MOST_KEYS);
        keys.truncate(MOST_KEYS);
        Self { time: humantime::format_rfc3339_millis(time).to_string(), author: author.bounded(), keys, more }
    }

    /// Reads a value. Unknown fields are ignored, so that a newer discoverctl may add some.
    pub fn parse(value: &[u8]) -> Result<Self, Refusal> {
        let length = value_length(value);
        if length > LONGEST_SETTING {
            return Err(Refusal::TooLong { length, limit: LONGEST_SETTING });
        }
        let entry: Self = serde_json::from_slice(value)
            .map_err(|error| Refusal::Json(escape_text(&error.to_string(), 200).into()))?;
        humantime::parse_rfc3339(&entry.time)
            .map_err(|_| Refusal::new_unexpected(&entry.time, "a time in UTC: 2026-11-30T10:13:06.123Z"))?;
        Ok(Self { author: entry.author.bounded(), ..entry })
    }
}

/// Prints the JSON value that [`LogEntry::parse`] reads.
impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn cut_text(text: String, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn an_entry_reads_and_prints() {
        let author = Author {
            user: "alice".into(),
            host: "admin-1".into(),
            command: "discoverctl set shop balance random".into(),
            reason: Some("load test".into()),
        };
        let time = UNIX_EPOCH + Duration::from_millis(1_780_000_000_123);
        let entry = LogEntry::new(time, author, ["http-services/shop/balance"]);
        let text = r#"{"time":"2026-05-28T20:26:40.123Z","user":"alice","host":"admin-1","command":"discoverctl set shop balance random","reason":"load test","keys":["http-services/shop/balance"],"more":0}"#;
        assert_eq!(entry.to_string(), text);
        assert_eq!(LogEntry::parse(text.as_bytes()), Ok(entry));
        let sparse = LogEntry::parse(br#"{"time":"2026-05-28T20:26:40Z","user":"eve","later":1}"#).unwrap();
        assert_eq!((sparse.author.to_string(), sparse.author.reason), ("eve@".into(), None));
    }

    #[test]
    fn garbage_is_refused() {
        for garbage in
            ["", "{}", "7", r#"{"time":"soon"}"#, r#"{"time":7}"#, r#"{"time":"2026-05-28T20:26:40Z","user":7}"#]
        {
            assert!(LogEntry::parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
        assert!(matches!(LogEntry::parse(&vec![b' '; 20_000]), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn an_entry_is_bounded() {
        let long = "ä".repeat(2_000);
        let author = Author { user: long.clone(), host: long.clone(), command: long.clone(), reason: Some(long) };
        let keys: Vec<String> = (0..128).map(|number| format!("{}{number}", "k".repeat(500))).collect();
        let entry = LogEntry::new(UNIX_EPOCH, author, keys.iter().map(String::as_str));
        assert_eq!((entry.keys.len(), entry.more), (20, 108));
        assert!(entry.author.command.ends_with("ä…") && entry.author.command.chars().count() == 501);
        assert!(entry.to_string().len() < LONGEST_SETTING);
        assert_eq!(LogEntry::parse(entry.to_string().as_bytes()).map(|it| it.keys.len()), Ok(20));
    }
}
