//! The lines of changes in confgen's log. A thread of its own logs them: the journal may take no line for a while.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use discovery::balancer_api::AppliedChange;
use discovery::{Key, SettingName};
use program::text::escape_line;

use super::flaps::{FlapFilter, Summary};

/// A summary is at most this late.
const TICK: Duration = Duration::from_secs(1);

/// The prefix of the fields in the journal: `CONFGEN_KEY`.
const FIELD_PREFIX: &str = "CONFGEN";

/// Logs changes until the sender is gone.
pub(super) fn log_changes(node: &str, batches: &Receiver<Vec<AppliedChange>>) {
    match program::log::journal_with_fields(FIELD_PREFIX) {
        Some(journal) => tracing::dispatcher::with_default(&journal, || log_batches(node, batches, Message::Whole)),
        None => log_batches(node, batches, Message::Short),
    }
}

/// The message of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// The event alone. The line has the fields behind it.
    Short,
    /// The facts in words, because `journalctl` shows no fields.
    Whole,
}

fn log_batches(node: &str, batches: &Receiver<Vec<AppliedChange>>, message: Message) {
    let mut flaps = FlapFilter::default();
    loop {
        let next = match flaps.is_empty() {
            true => batches.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => batches.recv_timeout(TICK),
        };
        // Before the next change, which would count in a window that is over.
        flaps.end_windows(Instant::now()).iter().for_each(|summary| log_summary(node, summary));
        match next {
            Ok(changes) => {
                let now = Instant::now();
                for change in changes.iter().filter(|change| flaps.admit(&change.key, now)) {
                    log_change(node, change, message);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn log_summary(node: &str, Summary { key, changes }: &Summary) {
    match key {
        Some(key) => tracing::warn!(%key, changes, within = "1m", balancer = %node, "key changes often"),
        None => tracing::info!(changes, within = "1m", balancer = %node, "more changes without lines of their own"),
    }
}

fn log_change(node: &str, change: &AppliedChange, message: Message) {
    let AppliedChange { key, revision, seconds, .. } = change;
    let (what, why, balancer) = (describe_change(change), describe_cause(change), node);
    let (by, refused) = (change.applied_by.as_deref(), change.refused.as_deref());
    let text = match message {
        Message::Short if refused.is_some() => "change not applied".to_owned(),
        Message::Short => "change applied".to_owned(),
        Message::Whole => describe_whole(change, &what, &why),
    };
    tracing::info!(what, why, %key, revision, %balancer, by, seconds, refused, "{text}");
}

/// `active color changed: http-services/shop/active at revision 7, by runtime after 0.004 s; alice@admin-1: …`.
fn describe_whole(change: &AppliedChange, what: &str, why: &str) -> String {
    let AppliedChange { key, revision, .. } = change;
    let applied = match (&change.refused, &change.applied_by, change.seconds) {
        (Some(reason), ..) => format!(", not applied: {reason}"),
        (None, Some(by), Some(seconds)) => format!(", by {by} after {seconds:.3} s"),
        _ => String::new(),
    };
    escape_line(&format!("{what}: {key} at revision {revision}{applied}; {why}")).into_owned()
}

/// Names the key's part and its change: `active set`, `upstream added`.
fn describe_change(change: &AppliedChange) -> String {
    let act = match (&change.before, &change.after) {
        (None, Some(_)) => "added",
        (Some(_), None) => "removed",
        _ => "changed",
    };
    let subject = match change.key.parse::<Key>() {
        Ok(Key::Setting { name: SettingName::Active, .. }) => "active color",
        Ok(Key::Setting { .. }) => "setting",
        Ok(Key::Upstream { .. }) => "upstream",
        Ok(Key::Override { .. }) => "override",
        Ok(Key::Balancer(_)) => "balancer",
        _ => "key",
    };
    format!("{subject} {act}")
}

/// Names the writer and the reason, as far as the store has them.
fn describe_cause(change: &AppliedChange) -> String {
    match &change.author {
        Some(author) => match &author.reason {
            Some(reason) => format!("{author}: {} ({reason})", author.command),
            None => format!("{author}: {}", author.command),
        },
        None if change.after_revision.is_some() => "changed while this balancer was away".into(),
        None => match change.key.parse::<Key>() {
            Ok(Key::Upstream { .. } | Key::Balancer(_)) if change.after.is_none() => {
                "deleted, or its lease ended".into()
            }
            Ok(Key::Upstream { .. } | Key::Balancer(_)) => "announced".into(),
            _ => "not by discoverctl, so the writer is unknown".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use discovery::Author;

    use super::*;

    fn change(key: &str, before: Option<&str>, after: Option<&str>) -> AppliedChange {
        let text = |value: Option<&str>| value.map(str::to_owned);
        AppliedChange { key: key.into(), before: text(before), after: text(after), ..AppliedChange::default() }
    }

    #[test]
    fn a_line_says_what_and_why() {
        let switch = change("http-services/shop/active", Some("blue"), Some("green"));
        let author = Author {
            user: "alice".into(),
            host: "admin-1".into(),
            command: "discoverctl color shop green".into(),
            reason: Some("release 7".into()),
        };
        assert_eq!(describe_change(&switch), "active color changed");
        assert_eq!(describe_cause(&switch), "not by discoverctl, so the writer is unknown");
        let switch = AppliedChange { author: Some(author), ..switch };
        assert_eq!(describe_cause(&switch), "alice@admin-1: discoverctl color shop green (release 7)");
        let gone = change("http-services/shop/upstreams/a", Some("10.0.0.1:80"), None);
        assert_eq!(
            (describe_change(&gone).as_str(), describe_cause(&gone).as_str()),
            ("upstream removed", "deleted, or its lease ended")
        );
        let missed = AppliedChange { after_revision: Some(7), ..gone };
        assert_eq!(describe_cause(&missed), "changed while this balancer was away");
        let by = (Some("runtime".to_owned()), Some(0.0041));
        let whole = AppliedChange { revision: 7, applied_by: by.0, seconds: by.1, ..switch };
        assert_eq!(
            describe_whole(&whole, "active color changed", "a\nb"),
            "active color changed: http-services/shop/active at revision 7, by runtime after 0.004 s; a\\nb"
        );
    }
}
