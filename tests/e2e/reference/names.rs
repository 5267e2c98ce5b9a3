//! Every link, path and flag that a page names is there.

use std::collections::BTreeSet;
use std::fs::read_dir;
use std::path::{Component, Path, PathBuf};

use lab::SOURCE;

use super::read;

/// Options of other programs that pages name by themselves, without the program.
const FOREIGN: [&str; 17] = [
    "--auto-compaction-retention",
    "--cap-add",
    "--cap-drop",
    "--deploy-hook",
    "--enable-v2",
    "--header",
    "--health-cmd",
    "--hostname",
    "--ignored",
    "--lib",
    "--local-ttl",
    "--network",
    "--provider",
    "--security-opt",
    "--ulimit",
    "--workspace",
    // Any option, where deploy.md says what an empty value is.
    "--name",
];

/// Folders of the checkout that a path in a page begins with.
const FOLDERS: [&str; 8] =
    ["crates/", "tests/", "units/", "docs/", "templates/", "vagrant/", "ansible/", "observability/"];

/// All files of the checkout, without what is built or hidden.
fn files() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::from(SOURCE)];
    while let Some(folder) = folders.pop() {
        for entry in read_dir(&folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name == "target" || name.starts_with('.') {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(SOURCE).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn pages(files: &BTreeSet<String>) -> Vec<&String> {
    let is_page = |file: &&String| {
        let is_at_top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].contains(&file.as_str());
        is_at_top || (file.starts_with("docs/") && file.ends_with(".md"))
    };
    files.iter().filter(is_page).collect()
}

fn is_there(files: &BTreeSet<String>, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    files.contains(path) || files.iter().any(|file| file.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
}

/// The words between backquotes, in the lines that are no blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| !line.starts_with("    "));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The targets of `[…](…)`, without those on the web.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://"))
}

/// A heading's anchor, as the forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// `docs/x.md` and `../README.md` are `README.md`.
fn beside(page: &str, target: &str) -> String {
    let mut path = PathBuf::new();
    for part in Path::new(page).parent().unwrap().join(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{page} links to {target}"),
            part => path.push(part),
        }
    }
    path.to_str().unwrap().to_owned()
}

/// Whether a link's file is there, and has the heading.
fn leads_somewhere(files: &BTreeSet<String>, page: &str, target: &str) -> bool {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let file = if file.is_empty() { page.to_owned() } else { beside(page, file) };
    if heading.is_empty() {
        return is_there(files, &file);
    }
    files.contains(&file)
        && read(&file)
            .lines()
            .filter(|line| line.starts_with('#'))
            .any(|it| anchor(it.trim_matches(['#', ' '])) == heading)
}

/// A file of Rust may be named from its crate, as ARCHITECTURE.md says: `registry/follow.rs` is
/// `crates/registry/src/follow.rs`. Without a crate it is a file of the crate or folder that the sentence is about.
fn is_source(files: &BTreeSet<String>, path: &str) -> bool {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    files.contains(&format!("crates/{first}/src/{rest}"))
        || files.contains(&format!("tests/{path}"))
        || files.iter().any(|file| file.ends_with(&format!("/{path}")))
}

fn is_path(span: &str) -> bool {
    let is_plain = span.chars().all(|it| it.is_ascii_alphanumeric() || "/._@-".contains(it));
    // Examples of a form, and what Vagrant writes.
    let is_example = span.ends_with("/x.rs") || span.contains("/.vagrant/");
    is_plain && !is_example
}

/// The options that a span has, if it begins with one: `--guard 50%`, `--api-cert FILE`.
fn flags(span: &str) -> impl Iterator<Item = &str> {
    let words = span.split([' ', '=']).filter(|_| span.starts_with("--"));
    words.filter(|word| word.len() > 2 && word.starts_with("--"))
}

#[test]
fn every_link_path_and_flag_of_a_page_is_there() {
    let files = files();
    let options = ["announcer", "confgen", "discoverctl", "handover"].map(|it| read(&format!("docs/flags-{it}.md")));
    let is_option = |flag: &str| {
        let forms = [' ', '`', '=', ',', '\n', '*', '|'].map(|end| format!("{flag}{end}"));
        options.iter().any(|page| forms.iter().any(|form| page.contains(form)))
    };
    let mut wrong = Vec::new();
    for page in pages(&files) {
        let text = read(page);
        wrong.extend(links(&text).filter(|it| !leads_somewhere(&files, page, it)).map(|it| format!("{page}: {it}")));
        for span in code_spans(&text) {
            let is_checked = is_path(span);
            let is_missing = if is_checked && FOLDERS.iter().any(|it| span.starts_with(it)) {
                !is_there(&files, span)
            } else {
                is_checked && span.ends_with(".rs") && !is_source(&files, span)
            };
            if is_missing {
                wrong.push(format!("{page}: {span}"));
            }
            let unknown = flags(span).filter(|it| !FOREIGN.contains(it) && !is_option(it));
            wrong.extend(unknown.map(|it| format!("{page}: {it}")));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_fault_has_the_test_that_the_table_names() {
    let page = read("docs/internals/bugs.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() > 40, "{rows:?}");
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let (file, test) = cell.split_once(": ").unwrap_or_else(|| panic!("no file and test: {row}"));
        let file = file.trim_matches('`');
        let path = if file.starts_with("crates/") { file.to_owned() } else { format!("tests/e2e/{file}") };
        assert!(read(&path).contains(&format!("fn {}(", test.trim_matches('`'))), "{path} has no {test}");
    }
}

#[test]
fn a_name_that_is_not_there_is_found() {
    let files = BTreeSet::from(["docs/a.md", "crates/confgen/src/store.rs"].map(str::to_owned));
    assert!(is_there(&files, "crates/confgen/") && !is_there(&files, "crates/conf"));
    assert!(is_source(&files, "store.rs") && is_source(&files, "confgen/store.rs"));
    assert!(!is_source(&files, "registry/store.rs") && !is_source(&files, "mirror.rs"));
    assert!(!leads_somewhere(&files, "docs/a.md", "b.md") && leads_somewhere(&files, "docs/a.md", "a.md"));
    assert_eq!(beside("docs/a.md", "../b.md"), "b.md");
    assert_eq!(anchor("HAProxy's `rights`, and more"), "haproxys-rights-and-more");
    assert_eq!(flags("--guard 50% --every=1s").collect::<Vec<_>>(), ["--guard", "--every"]);
    assert_eq!(flags("etcdctl --hex").count(), 0);
    assert_eq!(links("[a](b.md#c) and [d](https://e)").collect::<Vec<_>>(), ["b.md#c"]);
}
