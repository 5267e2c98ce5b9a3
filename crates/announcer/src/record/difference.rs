//! Settings in the store that differ from those of the options. Pure. It overwrites none.

use discovery::{Entry, Key, Setting};

use crate::record::Record;

/// A setting that has another value in the store than in the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Key relative to the prefix.
    pub key: String,
    /// Value in the store, shortened. `None` if the key is missing.
    pub stored: Option<String>,
    pub given: String,
}

/// Differences of all settings of a record. A setting that is not in `found` counts as missing.
pub fn list_differences(record: &Record, found: &[Entry]) -> Vec<Difference> {
    let settings = record.keyed_settings();
    settings
        .filter_map(|(key, setting)| match found.iter().find(|entry| entry.key == key) {
            Some(entry) => compare_setting(entry, setting),
            None => Some(Difference { key, stored: None, given: setting.to_string() }),
        })
        .collect()
}

/// Compares meanings, not spellings. `None` if they are equal.
pub fn compare_setting(entry: &Entry, setting: &Setting) -> Option<Difference> {
    let kind = match entry.key.parse() {
        Ok(Key::Setting { service, .. }) => Some(service.kind),
        _ => None,
    };
    // An operator may write the same domains in capitals, or separate them by commas.
    let stored = kind.and_then(|kind| Setting::parse(kind, setting.name(), &entry.value).ok());
    (stored.as_ref() != Some(setting)).then(|| Difference {
        key: entry.key.clone(),
        stored: Some(truncate_value(&entry.value)),
        given: setting.to_string(),
    })
}

/// Shortens a value for a message. Any writer of the store may have written it, at any length.
pub fn truncate_value(value: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(value);
    let mut start: String = text.chars().take(MOST).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}
