use std::collections::BTreeMap;
use std::process::Command;

use super::*;

fn all(line: &str) -> Vec<String> {
    let shown = |word: ConfigWord| if word.has_unknown_variable { format!("<{}>", word.text) } else { word.text };
    tokenize(line).into_iter().map(shown).collect()
}

#[test]
fn splits_as_haproxy_does() {
    assert_eq!(all("  server one\t10.0.0.1:80  # c"), ["server", "one", "10.0.0.1:80"]);
    assert_eq!(all("a#b c"), ["a"]);
    assert_eq!(all(r#"'a b' "c d" e\ f g\#h"#), ["a b", "c d", "e f", "g#h"]);
    assert_eq!(all(r#"'$X' "$X" "\$X" $X"#), ["$X", "<$X>", "$X", "$X"]);
    assert_eq!(all(r#""${A B}:80""#), ["<${A B}:80>"]);
    assert_eq!(all(r#""open 'quote"#), ["open 'quote"]);
    assert_eq!(all("\"$X\\"), ["<$X\\>"]);
    assert_eq!(all(""), Vec::<String>::new());
    assert_eq!(all("\x0bbind\x0b:80\x0c"), ["bind", ":80"]);
    assert_eq!(all(r#"bind :\x38\x30 "\x2a:80" '\x38' \d \xz"#), ["bind", ":80", "*:80", r"\x38", r"\d", "z"]);
    assert_eq!(all(r"a\tb\nc"), ["a\tb\nc"]);
}

#[test]
fn a_variable_is_replaced_where_its_value_is_known() {
    let value = |name: &str| (name == "PORT").then(|| "80".to_owned());
    let texts = |line: &str| {
        tokenize_with(line, &value).into_iter().map(|word| (word.text, word.has_unknown_variable)).collect()
    };
    let expected = |text: &str, is_open| vec![(text.to_owned(), is_open)];
    for (line, text, is_open) in [
        (r#""*:${PORT}""#, "*:80", false),
        (r#""*:$PORT,:81""#, "*:80,:81", false),
        (r#""*:${PORT-81}""#, "*:80", false),
        (r#""${HOST}:${PORT}""#, "${HOST}:80", true),
        (r#""${HOST-10.0.0.1}:80""#, "${HOST-10.0.0.1}:80", true),
        (r#""${PORT[*]}""#, "80", false),
        (r#""${PORTS[*]}""#, "${PORTS[*]}", true),
        ("'${PORT}'", "${PORT}", false),
        ("${PORT}", "${PORT}", false),
        (r#""${PORT"#, "80", false),
    ] {
        let found: Vec<(String, bool)> = texts(line);
        assert_eq!(found, expected(text, is_open), "{line}");
    }
}

#[test]
fn a_variable_may_be_several_words() {
    let value = |name: &str| (name == "LIST").then(|| " :80  :81 ".to_owned());
    let texts = |line: &str| tokenize_with(line, &value).into_iter().map(|word| word.text).collect::<Vec<_>>();
    assert_eq!(texts(r#"bind "${LIST[*]}ssl" x"#), ["bind", ":80", ":81", "ssl", "x"]);
    assert_eq!(texts(r#"bind "${LIST}""#), ["bind", " :80  :81 "]);
}

#[test]
fn a_comment_begins_at_a_sign_outside_of_quotes() {
    for (line, comment) in [
        ("server a 10.0.0.1:80 # it's \"", Some("# it's \"")),
        ("a#b", Some("#b")),
        ("#", Some("#")),
        ("sni str(\"#\") '#' \\# caf\u{e9} # \u{e9}", Some("# \u{e9}")),
        ("'# open", None),
        ("  ", None),
        ("", None),
    ] {
        assert_eq!(find_comment(line).and_then(|at| line.get(at..)), comment, "{line}");
    }
}

/// Parts of which the lines are made that HAProxy and this module read. A line with a line feed in a word would cut HAProxy's output.
const PARTS: [&str; 22] = [
    "a", "-", " ", "  ", "\t", "\x0b", "#", "'", "\"", "\\", "\\x41", "\\t", "$", "$A", "${A}", "${A-d}", "${A[*]}",
    "${EMPTY}", "{", "}", "\u{e9}", "[*]",
];

/// All lines of up to three parts, and longer ones at random, always the same.
fn lines() -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut last = lines.clone();
    for _ in 0..3 {
        last = last.iter().flat_map(|line| PARTS.map(|part| format!("{line}{part}"))).collect();
        lines.extend(last.iter().cloned());
    }
    let mut random = fastrand::Rng::with_seed(7);
    lines.extend((0..4_000).map(|_| {
        let parts: Vec<&str> = (0..random.usize(4..14)).filter_map(|_| random.choice(PARTS)).collect();
        parts.concat()
    }));
    lines
}

const VARIABLES: [(&str, &str); 2] = [("A", "v w"), ("EMPTY", "")];

/// HAProxy's first word of each line, or its second word if there is one. The lines that HAProxy refuses are missing.
fn ask_haproxy(lines: &[String]) -> BTreeMap<usize, Result<String, String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut asked: BTreeMap<usize, &String> = (2..).zip(lines).collect();
    loop {
        let mut text = "global\n".to_owned();
        for number in 2..lines.len() + 2 {
            text += &asked.get(&number).map_or("\n".to_owned(), |line| format!(".notice {line}\n"));
        }
        let mut opened = std::fs::File::create(file.path()).unwrap();
        std::io::Write::write_all(&mut opened, text.as_bytes()).unwrap();
        let mut haproxy = Command::new("haproxy");
        haproxy.env_clear().envs(VARIABLES).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let output = haproxy.args(["-V", "-c", "-f"]).arg(file.path()).output().unwrap();
        let output = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let mut found = BTreeMap::new();
        let before = asked.len();
        let begin = format!("parsing [{}:", file.path().display());
        for (_, message) in output.lines().filter_map(|line| line.split_once(&begin)) {
            let (number, words) = message.split_once("]: ").unwrap();
            let number = number.parse().unwrap();
            let second =
                words.strip_prefix("Unexpected argument '").and_then(|rest| rest.split_once("' for '.notice'."));
            let first = words.strip_prefix('\'').and_then(|rest| rest.strip_suffix("'."));
            match (second, first) {
                (Some((second, _)), _) => _ = found.insert(number, Err(second.to_owned())),
                (None, Some(first)) => _ = found.insert(number, Ok(first.to_owned())),
                // From 3.2 on, HAProxy reads nothing more beside a line with an open quote.
                (None, None) => _ = asked.remove(&number),
            }
        }
        if asked.len() == before {
            return found;
        }
    }
}

#[test]
fn every_line_is_split_as_haproxy_splits_it() {
    let lines = lines();
    let found = ask_haproxy(&lines);
    assert!(found.len() > lines.len() / 2, "HAProxy takes {} of {} lines", found.len(), lines.len());
    let value = |name: &str| VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let mut wrong = Vec::new();
    for (number, line) in (2..).zip(&lines) {
        let Some(haproxys) = found.get(&number) else { continue };
        let words: Vec<String> = tokenize_with(line, &value).into_iter().map(|word| word.text).collect();
        let first = words.first().cloned().unwrap_or_default();
        let ours = match words.get(1) {
            Some(second) if !second.is_empty() => Err(second.clone()),
            _ => Ok(first),
        };
        if ours != *haproxys {
            wrong.push(format!("{line:?}: {ours:?}, HAProxy {haproxys:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), found.len(), wrong.iter().take(20).collect::<Vec<_>>());
}
