//! What the store holds can't turn the order of a line, hide in a name or move a terminal's cursor: discoverctl escapes it in
//! every form of its answers, and so do the errors and the logs.

use std::process::Command;

use lab::{Etcd, bin, light};
use serde_json::Value;

/// A bidi override and isolate, zero-width signs, separators of lines, C1, a tag: nothing of it is seen.
const HOSTILE: &str = "a\u{202e}b\u{2066}c\u{200b}d\u{feff}e\u{2028}f\u{9b}g\u{e0041}h\u{7f}i\u{ad}j";

fn is_hidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[test]
fn discoverctl_shows_all_that_a_value_holds() {
    let _turn = light();
    let etcd = Etcd::start();
    for (key, value) in [
        ("http-services/shop/domain", "shop.test"),
        ("http-services/shop/upstreams/a", "127.0.0.1:9"),
        ("http-services/shop/balance", HOSTILE),
        ("http-services/shop/upstreams/b", HOSTILE),
        ("http-services/shop/overrides/a", HOSTILE),
        ("http-services/shop/active", HOSTILE),
        ("balancers/lb", HOSTILE),
    ] {
        etcd.put(key, value);
    }
    etcd.put(&format!("http-services/shop/{HOSTILE}"), HOSTILE);
    etcd.put(&format!("http-services/{HOSTILE}/domain"), "x.test");
    let mut values = 0;
    for words in [
        "list",
        "show shop",
        "explain shop",
        "lint",
        "export",
        "history shop --all",
        "diff 2",
        "color shop",
        "check shop",
    ] {
        for format in ["table", "plain", "json", "yaml"] {
            let mut command = Command::new(bin("discoverctl"));
            command.args(words.split(' ')).args(["--output", format, "--endpoints", &etcd.endpoints()]);
            let output = command.output().unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let (answer, said) = (text(output.stdout), text(output.stderr));
            assert!(!answer.chars().chain(said.chars()).any(is_hidden), "{words} {format}: {answer:?} {said:?}");
            assert!(output.status.code().is_some_and(|code| code != 2), "{words} {format}: {said}");
            if format == "json" && !answer.is_empty() {
                let json: Value =
                    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{words}: {error}: {answer}"));
                values += usize::from(json.to_string().contains(HOSTILE));
            }
        }
    }
    assert!(values >= 3, "JSON holds the values as they are: {values}");
}

#[test]
fn what_is_exported_can_be_imported() {
    let _turn = light();
    let (from, to) = (Etcd::start(), Etcd::start());
    from.put("http-services/shop/domain", "shop.test");
    from.put("http-services/shop/upstreams/a", r#"{"address":"127.0.0.1:9","permanent":true}"#);
    let run = |etcd: &Etcd, words: &[&str]| {
        let output =
            Command::new(bin("discoverctl")).args(words).args(["--endpoints", &etcd.endpoints()]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        output.stdout
    };
    for format in ["yaml", "json"] {
        let document = run(&from, &["export", "--output", format]);
        let folder = lab::Scratch::new();
        lab::write(folder.join("document"), document);
        let file = folder.join("document").display().to_string();
        run(&to, &["import", &file, "--no-wait"]);
        for key in ["http-services/shop/domain", "http-services/shop/upstreams/a"] {
            assert_eq!(to.get(key), from.get(key), "{format} {key}");
        }
        to.delete_all("http-services/");
    }
}
