use std::time::{Duration, UNIX_EPOCH};

use super::*;

const DOMAIN: &str = "http-services/shop/domain";

fn mark(kind: MarkKind, cluster: &str, revision: i64) -> Mark {
    Mark { mark: kind, time: time(revision), cluster: cluster.into(), revision }
}

/// A time of which a second is one revision.
fn time(revision: i64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_secs(revision.unsigned_abs())).to_string()
}

fn change(key: &str, revision: i64) -> AppliedChange {
    let after = Some(format!("v{revision}\n\u{202e}"));
    AppliedChange { time: time(revision), revision, key: key.into(), after, ..AppliedChange::default() }
}

fn append(files: &mut ChangeFiles, change: &AppliedChange) {
    let line = format_change(change).unwrap();
    let kind = LogKind::of_key(&change.key);
    files.append(kind, &line, &mark(MarkKind::Continue, "7", change.revision)).unwrap();
}

fn query() -> ChangeQuery {
    ChangeQuery { limit: 1_000_000, ..ChangeQuery::default() }
}

fn revisions(changes: &discovery::balancer_api::Changes) -> Vec<i64> {
    changes.changes.iter().map(|change| change.revision).collect()
}

#[test]
fn a_crash_at_any_byte_costs_at_most_the_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = ChangeFiles::new(dir.path());
    assert!(files.is_incomplete());
    let begin = format_mark(&mark(MarkKind::Begin, "7", 1)).unwrap();
    files.append(LogKind::Settings, &begin, &mark(MarkKind::Begin, "7", 1)).unwrap();
    (2..5).for_each(|revision| append(&mut files, &change(DOMAIN, revision)));
    let path = LogKind::Settings.path(&dir.path().join(FOLDER), 0);
    let whole = fs::read(&path).unwrap();
    let last_line = whole.len() - format_change(&change(DOMAIN, 4)).unwrap().len();
    for length in 0..whole.len() {
        crate::state_dir::replace_file(&path, &whole[..length], 0o600).unwrap();
        let mut files = ChangeFiles::new(dir.path());
        append(&mut files, &change(DOMAIN, 9));
        let read = read_changes(dir.path(), &query()).unwrap();
        assert_eq!(revisions(&read).last(), Some(&9), "cut at {length}");
        if length >= last_line {
            let found = revisions(&read);
            assert!(found == [2, 3, 9] || found == [2, 3, 4, 9], "cut at {length}: {found:?}");
        }
    }
}

#[test]
fn a_log_is_bounded_and_upstreams_push_no_setting_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = ChangeFiles::new(dir.path());
    append(&mut files, &change(DOMAIN, 1));
    let long = AppliedChange { before: Some("x".repeat(1 << 20)), ..change("http-services/shop/upstreams/a", 2) };
    for revision in 2..30 {
        append(
            &mut files,
            &AppliedChange { revision, time: time(revision), before: Some("x".repeat(300 << 10)), ..long.clone() },
        );
    }
    append(&mut files, &long);
    let folder = dir.path().join(FOLDER);
    let bytes: u64 = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= FILE_BYTES * 5 && LogKind::Upstreams.list_files(&folder).len() >= 3, "{bytes}");
    let read = read_changes(dir.path(), &query()).unwrap();
    assert_eq!((revisions(&read)[0], read.since_revision), (1, 1));
    let settings = read_changes(dir.path(), &ChangeQuery { settings_only: true, ..query() }).unwrap();
    assert_eq!(revisions(&settings), [1]);
}

#[test]
fn a_query_selects() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = ChangeFiles::new(dir.path());
    for (revision, key) in (1..).zip([DOMAIN, "tcp-services/db/ports", "services/shop/color", "balancers/lb2", DOMAIN])
    {
        append(&mut files, &change(key, revision));
    }
    let read = |query: ChangeQuery| read_changes(dir.path(), &query).unwrap();
    let service = DOMAIN.parse::<Key>().unwrap().service_id().cloned();
    assert_eq!(revisions(&read(query())), [1, 2, 3, 4, 5]);
    assert_eq!(revisions(&read(ChangeQuery { service, ..query() })), [1, 3, 4, 5]);
    let since = Some(UNIX_EPOCH + Duration::from_secs(4));
    assert_eq!(revisions(&read(ChangeQuery { since, ..query() })), [4, 5]);
    let newest = read(ChangeQuery { limit: 2, ..query() });
    assert_eq!((revisions(&newest), newest.more), (vec![4, 5], true));
    assert!(!read(query()).more);
    assert_eq!(read_changes(&dir.path().join("none"), &query()).unwrap(), Default::default());
}

#[test]
fn a_log_is_whole_since_its_last_begin_and_has_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = ChangeFiles::new(dir.path());
    let begin = |files: &mut ChangeFiles, cluster: &str, revision| {
        let mark = mark(MarkKind::Begin, cluster, revision);
        files.append(LogKind::Settings, &format_mark(&mark).unwrap(), &mark).unwrap();
    };
    begin(&mut files, "7", 3);
    append(&mut files, &change(DOMAIN, 4));
    begin(&mut files, "7", 10);
    append(&mut files, &change(DOMAIN, 11));
    let read = read_changes(dir.path(), &query()).unwrap();
    assert_eq!((revisions(&read), read.since_revision, read.since), (vec![4, 11], 10, Some(time(10))));
    begin(&mut files, "8", 2);
    append(&mut files, &change(DOMAIN, 3));
    let read = read_changes(dir.path(), &query()).unwrap();
    assert_eq!((revisions(&read), read.since_revision), (vec![3], 2));
}
