//! Changes of keys with the difference between the values. Pure.

use discovery::balancer_api::AppliedChange;
use similar::{ChangeTag, TextDiff};

use super::format::{Moment, cut_text, format_taken};

/// The longest value that is compared word by word. Longer values are cut.
const LONGEST: usize = 2_000;

/// A part of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `=` for words of both values, `-` for words of the old one, `+` for words of the new one.
    pub sign: char,
    pub text: String,
}

/// One change, as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRow {
    pub at: Moment,
    pub revision: i64,
    pub key: String,
    /// `set`, `changed` or `deleted`.
    pub verb: &'static str,
    pub parts: Vec<Part>,
    /// The writer and the command. `None` if discoverctl didn't make the change.
    pub author: Option<String>,
    /// The author's reason.
    pub reason: Option<String>,
    /// How HAProxy got it, or why not.
    pub outcome: String,
    pub is_refused: bool,
}

/// The newest change comes first.
pub fn show_changes(changes: Vec<AppliedChange>) -> Vec<ChangeRow> {
    changes.into_iter().rev().map(show_change).collect()
}

fn show_change(change: AppliedChange) -> ChangeRow {
    let verb = match (&change.before, &change.after) {
        (None, _) => "set",
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "deleted",
    };
    let taken = change.seconds.map(format_taken).unwrap_or_default();
    let outcome = match (&change.refused, change.applied_by.as_deref()) {
        (Some(reason), _) => format!("not followed: {reason}"),
        (None, Some("restart")) => format!("a restart of HAProxy, after {taken}"),
        (None, Some(_)) => format!("in HAProxy after {taken}"),
        (None, None) => "noted".to_owned(),
    };
    let author = change.author.as_ref().map(|author| format!("{}@{}: {}", author.user, author.host, author.command));
    ChangeRow {
        at: Moment::parse(&change.time),
        revision: change.revision,
        parts: compare_values(change.before.as_deref(), change.after.as_deref()),
        verb,
        reason: change.author.and_then(|author| author.reason).map(|reason| cut_text(&reason, LONGEST)),
        author: author.map(|author| cut_text(&author, LONGEST)),
        is_refused: change.refused.is_some(),
        outcome,
        key: change.key,
    }
}

/// The words that went, stayed and came.
fn compare_values(before: Option<&str>, after: Option<&str>) -> Vec<Part> {
    let (before, after) = (cut_text(before.unwrap_or_default(), LONGEST), cut_text(after.unwrap_or_default(), LONGEST));
    let mut parts: Vec<Part> = Vec::new();
    // By words, because a record is one line of JSON.
    for change in TextDiff::from_words(&before, &after).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Equal => '=',
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
        };
        match parts.last_mut().filter(|part| part.sign == sign) {
            Some(part) => part.text.push_str(change.value()),
            None => parts.push(Part { sign, text: change.value().to_owned() }),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_what_went_and_what_came() {
        let parts = |before, after| -> Vec<String> {
            compare_values(before, after).into_iter().map(|part| format!("{}{}", part.sign, part.text)).collect()
        };
        assert_eq!(parts(None, Some("a b")), ["+a b"]);
        assert_eq!(parts(Some("a b"), None), ["-a b"]);
        assert_eq!(parts(Some("blue=90 green=10"), Some("blue=50 green=10")), ["-blue=90", "+blue=50", "= green=10"]);
        let change = AppliedChange {
            time: "2026-11-30T10:13:06.123Z".into(),
            before: Some("a".into()),
            after: Some("b".into()),
            applied_by: Some("runtime".into()),
            seconds: Some(0.004),
            ..AppliedChange::default()
        };
        let refused = AppliedChange { refused: Some("no".into()), applied_by: None, ..change.clone() };
        let rows = show_changes(vec![change, refused]);
        assert_eq!(rows[0].outcome, "not followed: no");
        assert_eq!((rows[1].outcome.as_str(), rows[1].verb), ("in HAProxy after 4.0 ms", "changed"));
    }
}
