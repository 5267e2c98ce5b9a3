use super::*;
use crate::desired::tests::{settle, topology};

const SHOP: &str = "http-services/shop/upstreams/a 10.0.0.1:80\n";
const DB: &str = "tcp-services/db/upstreams/a 10.0.0.2:3306\n";
const TEXT: &str = "backend mine\n# discover shop: server <id> <address>\nserver x 10.0.0.9:1\n\n\
                    # discover tcp-services/db: server db-<id> <address>\n";

fn settled(store: &str) -> DesiredState {
    settle(&topology(store), &Default::default(), &Default::default())
}

fn fill(text: &str, before: Option<&FilledFile>) -> FilledFile {
    FilledFile::new("/mine.cfg".into(), "/real.cfg".into(), text.into(), before)
}

fn fills(text: &str) -> FilledFiles {
    FilledFiles::new(vec![fill(text, None)])
}

fn will(fills: &FilledFiles, store: &str) -> String {
    fills.pending_edits(&settled(store)).into_iter().map(|due| String::from_utf8(due.after).unwrap()).collect()
}

#[test]
fn each_run_has_its_services_upstreams() {
    let fills = fills(TEXT);
    let both = will(&fills, &format!("{SHOP}{DB}"));
    assert!(
        both.contains("<address>\nserver a 10.0.0.1:80\n\n#") && both.ends_with("\nserver db-a 10.0.0.2:3306\n"),
        "{both}"
    );
    assert_eq!(fills.list_remarks(&settled(&format!("{SHOP}{DB}"))), Vec::<String>::new());
    let none = will(&fills, "");
    assert!(!none.contains("\nserver"), "{none}");
    let said = ["/mine.cfg:2: there is no service shop", "/mine.cfg:5: there is no service tcp-services/db"];
    assert_eq!(fills.list_remarks(&settled("")), said);
    assert!(will(&fills, &SHOP.replace("http-", "tcp-")).contains("server a 10.0.0.1:80"), "the kind that there is");
}

#[test]
fn an_ambiguous_name_leaves_the_lines_as_they_are() {
    let (two, both) = (fills(TEXT), format!("{SHOP}{}", SHOP.replace("http-", "tcp-")));
    assert!(will(&two, &both).is_empty(), "the lines stay");
    let said = "/mine.cfg:2: say which: http-services/shop or tcp-services/shop; the lines below are left as they are";
    assert_eq!(two.list_unfilled(&settled(&both)), [said]);
    assert_eq!(two.unfilled_services(&settled(&both)).len(), 2, "a drain of either isn't done there");
    assert_eq!(two.list_unfilled(&settled(SHOP)), Vec::<String>::new());
    let remarks = fills("# nothing\n").list_remarks(&settled(""));
    assert!(remarks[0].contains("nothing to fill"), "{remarks:?}");
}

#[test]
fn a_block_with_a_bad_pattern_is_not_filled_and_its_service_waits() {
    let left = fills(&TEXT.replace("<address>\nserver x", "<address> \"check\nserver x"));
    assert!(!will(&left, SHOP).contains("10.0.0.1:80"), "the lines stay");
    let said =
        "/mine.cfg:2: a quote that isn't closed, or a backslash at its end; the lines below are left as they are";
    assert_eq!(left.list_unfilled(&settled(SHOP)), [said]);
    let waits: Vec<String> = left.unfilled_services(&settled(SHOP)).iter().map(ToString::to_string).collect();
    assert_eq!(waits, ["http-shop", "tcp-shop"]);
    assert_eq!(left.list_remarks(&settled(&format!("{SHOP}{DB}"))), Vec::<String>::new(), "it is said once");
}

#[test]
fn a_block_has_a_fingerprint_of_its_lines_and_service() {
    let fills = fills(TEXT);
    let prints = |store: &str| fills.fingerprint_blocks(&settled(store));
    assert!(prints("").is_empty(), "an empty run says nothing");
    let one = prints(SHOP);
    assert_eq!(
        one.iter().map(|(place, it)| (place.as_str(), it.service.as_str())).collect::<Vec<_>>(),
        [("/mine.cfg#0", "http-shop")]
    );
    assert_ne!(one, prints(&SHOP.replace(":80", ":81")));
    assert_eq!(one, prints(&format!("{SHOP}http-services/shop/domain a.com\nhttp-services/other/domain b.com\n")));
    assert_eq!(prints(&format!("{SHOP}{DB}"))["/mine.cfg#1"].service, "tcp-db");
    let id = |text: &str| crate::desired::names::parse_section(text).unwrap();
    assert!(fills.mentions_any([&id("http-shop")].into_iter()) && fills.mentions_any([&id("tcp-db")].into_iter()));
    assert!(!fills.mentions_any([&id("http-db")].into_iter()));
}

#[test]
fn a_rejected_file_stays_until_the_operator_edits_it() {
    let mut fills = fills(TEXT);
    fills.mark_rejected(&[("/mine.cfg".into(), "bad".to_owned())].into());
    assert_eq!(fills.list_rejections(), ["/mine.cfg can't be filled: bad"]);
    assert!(will(&fills, SHOP).is_empty() && fills.rejected_services().len() == 3, "{:?}", fills.rejected_services());
    let left = fills.get(Path::new("/mine.cfg")).unwrap();
    let edited = |text: &str| FilledFiles::new(vec![fill(text, Some(left))]).list_rejections().len();
    assert_eq!(edited(&TEXT.replace("server x", "server y")), 1, "nobody's hand below the comment helps");
    assert_eq!(edited(&TEXT.replace("<address>", "<address> check")), 0);
    assert!(fills.clear_rejections() && !will(&fills, SHOP).is_empty() && !fills.clear_rejections());
}

#[test]
fn an_edit_below_the_comment_is_told_from_confgens_own() {
    let mut fills = fills(TEXT);
    let due = fills.pending_edits(&settled(SHOP));
    assert_eq!((due[0].is_ours, due[0].edited_lines.len()), (false, 0), "before the first time nobody knows");
    fills.mark_written(&due);
    assert!(fills.pending_edits(&settled(SHOP)).is_empty());
    let known = fills.get(Path::new("/mine.cfg")).unwrap();
    let written = String::from_utf8(due[0].after.clone()).unwrap();
    let read = |text: &str, store: &str| {
        let due = FilledFiles::new(vec![fill(text, Some(known))]).pending_edits(&settled(store));
        due.into_iter().next().map(|due| (due.is_ours, due.edited_lines))
    };
    assert_eq!(read(&written, SHOP), None);
    assert_eq!(read(&written, DB), Some((true, vec![])), "the store has changed, nobody else");
    assert_eq!(read(&written.replace("server a", "server b"), SHOP), Some((false, vec![2])));
    assert_eq!(read(&written.replace("mine", "ours").replace("server a", "server b"), SHOP), Some((false, vec![])));
}

#[test]
fn an_edit_that_changes_the_operators_part_is_a_violation() {
    let file = fill(TEXT, None);
    let good = file.pending_edit(&settled(SHOP)).unwrap();
    assert_eq!(good.find_violation(), None);
    let text = String::from_utf8(good.after.clone()).unwrap();
    for broken in
        [text.replace("backend mine", "backend ours"), format!("{text}server stray 10.0.0.9:1\nmore\n"), String::new()]
    {
        let edit = PendingEdit { after: broken.clone().into(), ..good.clone() };
        assert!(edit.find_violation().is_some(), "{broken}");
    }
}
