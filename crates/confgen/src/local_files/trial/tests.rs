use std::collections::BTreeSet;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::test_support::TempFiles;

fn find(size: usize, bad: &BTreeSet<usize>, tries: usize) -> (BTreeSet<usize>, usize) {
    let items: Vec<usize> = (0..size).collect();
    let mut judged = 0;
    let mut judge = |part: &[usize]| {
        judged += 1;
        Ok::<_, Infallible>(part.iter().find(|item| bad.contains(item)).map(|item| format!("{item} is bad")))
    };
    let Ok(found) = find_culprits(&items, tries, &mut judge);
    (found.into_iter().map(|(item, _)| item).collect(), judged)
}

#[test]
fn one_of_a_thousand_takes_twenty_tries() {
    let (found, judged) = find(1_000, &[617].into(), 100);
    assert_eq!(found, [617].into());
    assert!(judged <= 21, "{judged}");
}

#[test]
fn without_tries_left_no_item_is_cleared() {
    let (found, judged) = find(8, &[1, 6].into(), 3);
    assert!(found.is_superset(&[1, 6].into()), "{found:?}");
    assert_eq!(judged, 3);
}

#[test]
fn items_that_are_rejected_only_together_are_all_culprits() {
    let mut judge = |part: &[u8]| {
        Ok::<_, Infallible>((part.contains(&3) && part.contains(&6)).then(|| "they bind one port".to_owned()))
    };
    let Ok(found) = find_culprits(&[1, 2, 3, 4, 5, 6, 7, 8], 100, &mut judge);
    let found: Vec<u8> = found.into_iter().map(|(item, _)| item).collect();
    assert!(found.contains(&3) && found.contains(&6), "{found:?}");
}

proptest! {
    #[test]
    fn every_culprit_is_found_and_no_other_item(size in 1..60_usize, bad in prop::collection::btree_set(0..60_usize, 0..6)) {
        let bad: BTreeSet<usize> = bad.into_iter().filter(|item| *item < size).collect();
        prop_assert_eq!(find(size, &bad, 200).0, bad);
    }
}

#[test]
fn an_alert_of_several_lines_is_read_whole() {
    let of = "[NOTICE]   (1) : haproxy version is 3.2\n\
              [ALERT]    (1) : config : parsing [h.cfg:10] : 'bind *:443' in section 'frontend' : \n\
              \x20 'crt-list' : error processing line 1 : inconsistencies between key and certificate\n\
              [ALERT]    (1) : config : Fatal errors found in configuration.\n";
    let expected = "'bind *:443' in section 'frontend' : 'crt-list' : error processing line 1 : \
                    inconsistencies between key and certificate";
    assert_eq!(first_alert(of), expected);
}

/// Takes over files of text. A text that begins with `#` can't be parsed, and the trial rejects one with `bad` in it. Returns
/// the texts in use, the rejected keys, and how often the trial ran.
fn collected(place: &TempFiles, files: &[(&'static str, &str)]) -> (Vec<String>, Vec<&'static str>, usize) {
    let copies = Copies::new(place.path("copies"), 0o600, 100);
    let files = files.iter().map(|(key, text)| LocalFile {
        key: *key,
        copy_name: format!("{key}.copy"),
        content: if text.is_empty() { Err("unreadable".to_owned()) } else { Ok(text.as_bytes().to_vec()) },
    });
    let parse = |_: &&str, _: &str, content: &[u8]| {
        let text = String::from_utf8_lossy(content).into_owned();
        if text.starts_with('#') { Err("malformed".to_owned()) } else { Ok(text) }
    };
    let mut trials = 0;
    let find_complaint = |some: &[&Candidate]| {
        trials += 1;
        Ok(some.iter().any(|it| it.content.ends_with(b"bad")).then(|| "HAProxy says no".to_owned()))
    };
    let collected = collect(files.collect(), &copies, parse, find_complaint).unwrap();
    (collected.in_use.into_values().collect(), collected.rejected.into_keys().collect(), trials)
}

#[test]
fn a_rejected_file_serves_with_its_last_good_copy() {
    let place = TempFiles::with_folders(&["copies"]);
    assert_eq!(collected(&place, &[("a", "one"), ("b", "bad")]), (vec!["one".to_owned()], vec!["b"], 3));
    for broken in ["bad", "#", ""] {
        let (in_use, rejected, _) = collected(&place, &[("a", broken)]);
        assert_eq!((in_use, rejected), (vec!["one".to_owned()], vec!["a"]), "{broken}");
    }
    assert_eq!(collected(&place, &[("a", "two")]), (vec!["two".to_owned()], vec![], 1));
}

#[test]
fn an_unchanged_file_is_not_checked_again() {
    let place = TempFiles::with_folders(&["copies"]);
    assert_eq!(collected(&place, &[("a", "one")]).2, 1);
    assert_eq!(collected(&place, &[("a", "one")]).2, 0);
    assert_eq!(collected(&place, &[]).2, 0);
}
