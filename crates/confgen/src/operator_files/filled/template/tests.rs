use std::time::Duration;

use expect_test::expect;
use haproxy::check::{CheckResult, Checker};
use proptest::prelude::*;

use super::*;
use crate::desired::ServerState;

fn server(id: &str, address: &str) -> Server {
    let (id, address) = (id.parse().unwrap(), address.parse().unwrap());
    Server { id, address, weight: 100, state: ServerState::Ready, backup: false, is_unproven: false, hash_id: None }
}

/// The file with these servers for each run.
fn fill(text: &[u8], servers: &[Server]) -> Vec<u8> {
    Template::parse(text).with_blocks(|run| run.render_lines(servers))
}

fn filled(text: &str, servers: &[Server]) -> String {
    String::from_utf8(fill(text.as_bytes(), servers)).unwrap()
}

fn two() -> [Server; 2] {
    [server("shop-1", "10.0.0.1:8000"), server("shop-2", "[fd00::2]:8000")]
}

#[test]
fn the_run_below_the_comment_is_filled_and_nothing_else() {
    let text = "\
# discover is what this file is about
backend mine
    balance leastconn
    # discover shop: server <id> <address> check inter 2000 rise 2 fall 5
    server gone 10.0.0.9:8000 check
    server by-hand 10.0.0.8:8000

    server static 10.0.0.7:80
backend other
\t#discover  http-services/blog :server b-<id> <address>
    option httpchk
    server fixed 10.0.0.6:80
";
    expect![[r#"
        # discover is what this file is about
        backend mine
            balance leastconn
            # discover shop: server <id> <address> check inter 2000 rise 2 fall 5
            server shop-1 10.0.0.1:8000 check inter 2000 rise 2 fall 5
            server shop-2 [fd00::2]:8000 check inter 2000 rise 2 fall 5

            server static 10.0.0.7:80
        backend other
        	#discover  http-services/blog :server b-<id> <address>
        	server b-shop-1 10.0.0.1:8000
        	server b-shop-2 [fd00::2]:8000
            option httpchk
            server fixed 10.0.0.6:80
    "#]]
    .assert_eq(&filled(text, &two()));
    let template = Template::parse(text.as_bytes());
    let runs: Vec<_> =
        template.blocks().map(|run| (run.comment_line, run.section.as_str(), run.candidate_names())).collect();
    assert_eq!(runs, [(4, "mine", "http-shop tcp-shop".to_owned()), (10, "other", "http-blog".to_owned())]);
    let emptied = filled(text, &[]);
    assert!(!emptied.contains("gone") && emptied.contains("server static") && emptied.contains("server fixed"));
}

impl ServerBlock {
    fn candidate_names(&self) -> String {
        self.service.candidates().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn line_ends_are_the_comments_own() {
    let asked = "  # discover shop: server <id> <address>";
    let one = [server("a", "10.0.0.1:80")];
    let line = "  server a 10.0.0.1:80";
    for (text, expected) in [
        (
            format!("backend b\r\n{asked}\r\n\tserver x 10.0.0.2:80\r\n# end\r\n"),
            format!("backend b\r\n{asked}\r\n{line}\r\n# end\r\n"),
        ),
        (format!("backend b\n{asked}\n server x 10.0.0.2:80"), format!("backend b\n{asked}\n{line}\n")),
        (format!("backend b\r\n{asked}"), format!("backend b\r\n{asked}\r\n{line}\r\n")),
        (asked.to_owned(), format!("{asked}\n{line}\n")),
    ] {
        assert_eq!(filled(&text, &one), expected, "{text:?}");
        assert_eq!(filled(&expected, &one), expected, "twice is once");
    }
    assert_eq!(filled(asked, &[]), asked, "nothing to write, nothing written");
    let foreign = [b"# caf\xe9\n".as_slice(), asked.as_bytes(), b"\n# \xff"].concat();
    assert_eq!(fill(&foreign, &one), [b"# caf\xe9\n", asked.as_bytes(), b"\n", line.as_bytes(), b"\n# \xff"].concat());
}

#[test]
fn a_comment_and_a_byte_of_any_encoding_stay_in_each_line() {
    let one = [server("a", "10.0.0.1:80")];
    for text in
        [&b"# it's ours"[..], b"# caf\xe9 \"", "# é'".as_bytes(), b"sni str(caf\xe9)", b"sni str('\xff#') # \x80\xa0x"]
    {
        let asked = [b"# discover shop: server <id> <address> ", text, b"\r\n"].concat();
        let line = [b"server a 10.0.0.1:80 ", text, b"\r\n"].concat();
        assert_eq!(fill(&asked, &one), [asked.clone(), line].concat(), "{}", String::from_utf8_lossy(text));
    }
}

#[test]
fn prose_is_no_pattern_and_a_bad_pattern_is_left_alone() {
    for prose in
        ["# discover shop: see the wiki\n", "# discovered shop: server <id> <address>\n", "discover shop: server\n"]
    {
        assert_eq!(Template::parse(prose.as_bytes()).blocks().count(), 0, "{prose}");
    }
    for (bad, why) in [
        ("# discover shop: server <id> <adress>\nserver kept 10.0.0.1:80\n", "`<adress>`"),
        ("# discover my shop: server <id> <address>\nserver kept 10.0.0.1:80\n", "`my shop` is no service"),
        ("# discover tcp/db: server <id> <address>\nserver kept 10.0.0.1:80\n", "`tcp/db` is no service"),
    ] {
        assert_eq!(filled(bad, &two()), bad);
        assert!(Template::parse(bad.as_bytes()).blocks().next().unwrap().pattern_error().unwrap().contains(why));
    }
}

#[test]
fn a_template_that_lost_a_byte_is_not_whole() {
    let text = b"backend b\n# discover shop: server <id> <address>\nserver x 10.0.0.9:1\n# end\n";
    let mut template = Template::parse(text);
    assert!(template.is_whole(text));
    template.pieces.pop();
    assert!(!template.is_whole(text));
}

/// The indented block of the how-to that follows this mark.
fn block(mark: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operator-files.md")).unwrap();
    let after = page.split(&format!("<!-- {mark} -->\n\n")).nth(1).unwrap();
    let lines = after.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let text: String = lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    format!("{}\n", text.trim_end())
}

#[test]
fn the_how_to_is_true() {
    let mut servers = [1, 2, 3].map(|n| server(&format!("shop-{n}"), &format!("172.17.8.10{n}:8000")));
    servers[1].state = ServerState::Drain;
    servers[2].state = ServerState::Maint;
    let filled = filled(&block("before"), &servers);
    assert!(filled.ends_with(&format!("\n\n{}", block("after"))), "{filled}");
    // The certificates of the text don't exist here.
    let text: String = filled.lines().map(|line| format!("{}\n", line.split(" ssl ").next().unwrap())).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    let checker = Checker::new("haproxy -c".parse().unwrap(), Duration::from_secs(20));
    assert_eq!(checker.check_files(&[file.path().to_owned()]).unwrap(), CheckResult::Valid { warnings: Vec::new() });
}

/// A line as an operator may write it, or one that resembles confgen's.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop_oneof![
        Just("backend b"),
        Just("    # discover shop: server <id> <address> check"),
        Just("\t#discover tcp-services/db: server <id> <address>"),
        Just("# discover shop: server <id>"),
        Just("    server x 10.0.0.9:1"),
        Just("server"),
        Just("    servers are below"),
        Just(""),
    ];
    let known = known.prop_map(|line| line.as_bytes().to_owned());
    let behind = prop::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| {
        let asked = b"# discover shop: server <id> <address> ".iter();
        asked.chain(bytes.iter().filter(|byte| **byte != b'\n')).copied().collect()
    });
    prop_oneof![known, behind, "[ -~é]{0,20}".prop_map(String::into_bytes)]
}

proptest! {
    #[test]
    fn every_other_byte_stays_and_twice_is_once(
        lines in prop::collection::vec((line(), prop_oneof![Just("\n"), Just("\r\n")]), 0..20),
        cut in 0..3_usize,
        count in 0..4_usize,
    ) {
        let text: Vec<u8> = lines.iter().flat_map(|(line, end)| [line.as_slice(), end.as_bytes()]).flatten().copied().collect();
        let text = &text[..text.len().saturating_sub(cut)];
        let servers: Vec<Server> = (1..=count).map(|n| server(&format!("n{n}"), &format!("10.0.0.{n}:80"))).collect();
        let once = fill(text, &servers);
        prop_assert_eq!(fill(&once, &servers), once.clone());
        let (before, after) = (Template::parse(text).skeleton(), Template::parse(&once).skeleton());
        // A comment at the very end of the file gets an end when lines follow it.
        let kept = after == before || after == [before.as_slice(), b"\n"].concat() || after == [&before[..], b"\r\n"].concat();
        prop_assert!(kept, "{before:?} {after:?}");
        prop_assert_eq!(Template::parse(text).with_blocks(|run| run.current.clone()), text);
    }
}
