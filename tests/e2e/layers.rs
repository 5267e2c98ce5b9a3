//! The layers that ARCHITECTURE.md draws, held against the imports of every crate.
//!
//! It reads sources only and starts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lab::SOURCE;

/// The most modules at the top of a crate that a reader can keep in mind.
const MOST_MODULES: usize = 18;

/// The layers of one crate, from the top down.
type Layers = Vec<BTreeSet<String>>;

/// An import: the top-level module that has it, the module that it names, and where it stands.
type Import = (String, String, String);

/// Reads the lines `name: a · b > c > d` of the section "Layers".
fn drawn(page: &str) -> BTreeMap<String, Layers> {
    let section = page.split("\n## Layers").nth(1).expect("ARCHITECTURE.md has a section `Layers`");
    let block = section.split("```").nth(1).expect("the section has a fenced block");
    let lines = block.lines().filter_map(|line| line.split_once(": "));
    let layer = |layer: &str| layer.split('·').map(|name| name.trim().to_owned()).collect();
    lines.map(|(name, layers)| (name.trim().to_owned(), layers.split('>').map(layer).collect())).collect()
}

/// The imports that do not point to a lower layer.
fn upward(layers: &Layers, imports: &[Import]) -> Vec<String> {
    let floor = |module: &str| layers.iter().position(|layer| layer.contains(module));
    let wrong = imports.iter().filter(|(from, to, _)| floor(from) >= floor(to));
    wrong.map(|(from, to, place)| format!("{place}: {from} imports {to}")).collect()
}

/// Every path of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for sign in inner.chars() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if sign == ',' && depth == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(sign);
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(part)).map(|path| format!("{prefix}{path}")).collect()
}

/// The modules of this crate that a source names outside of its tests, as paths from the crate's root.
fn named(module: &[&str], text: &str) -> BTreeSet<Vec<String>> {
    let code = text.lines().take_while(|line| !line.trim_end().ends_with("mod tests {"));
    let code: String = code.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = BTreeSet::new();
    let mut add = |path: &str| {
        let words: Vec<&str> = path.split("::").map(str::trim).collect();
        let up = words.iter().take_while(|word| **word == "super").count();
        let base = match words.first() {
            Some(&"crate") => &[][..],
            Some(&"super") => &module[..module.len().saturating_sub(up)],
            _ => return,
        };
        let rest = &words[up.max(1)..];
        let path: Vec<String> = base.iter().chain(rest).map(|word| (*word).to_owned()).collect();
        // An item of the crate's root is no module.
        if path.first().is_some_and(|first| first.starts_with(|sign: char| sign.is_lowercase())) {
            found.insert(path);
        }
    };
    for part in code.split("use ").skip(1) {
        let tree = part.split(';').next().unwrap_or_default();
        paths(&tree.split_whitespace().collect::<Vec<_>>().join(" ")).iter().for_each(|path| add(path));
    }
    let is_word = |sign: char| sign.is_alphanumeric() || sign == '_' || sign == ':';
    code.split(|sign: char| !is_word(sign)).filter(|path| path.starts_with("crate::")).for_each(&mut add);
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// The modules at the top of a crate, without those of tests, and what they import of each other.
fn imports(krate: &Path) -> (BTreeSet<String>, Vec<Import>) {
    let root = krate.join("src");
    let (mut tops, mut all) = (BTreeSet::new(), Vec::new());
    for file in sources(&root) {
        let place = file.strip_prefix(&root).unwrap().with_extension("");
        let module: Vec<&str> = place.iter().map(|part| part.to_str().unwrap()).collect();
        let is_test = module.contains(&"tests") || module[0] == "test_support";
        if is_test || ["main", "lib"].contains(&module[0]) {
            continue;
        }
        tops.insert(module[0].to_owned());
        let found = named(&module, &fs::read_to_string(&file).unwrap());
        let others = found.iter().filter(|path| path[0] != module[0]);
        let shown = file.strip_prefix(SOURCE).unwrap_or(&file).display().to_string();
        all.extend(others.map(|path| (module[0].to_owned(), path[0].clone(), shown.clone())));
    }
    all.retain(|(_, to, _)| tops.contains(to));
    (tops, all)
}

fn crates() -> Vec<PathBuf> {
    let dirs = fs::read_dir(Path::new(SOURCE).join("crates")).unwrap().map(|entry| entry.unwrap().path());
    dirs.filter(|dir| dir.join("Cargo.toml").is_file()).collect()
}

fn name(krate: &Path) -> String {
    krate.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_import_points_down_the_layers_that_are_drawn() {
    let page = fs::read_to_string(Path::new(SOURCE).join("ARCHITECTURE.md")).unwrap();
    let mut drawn = drawn(&page);
    let mut wrong = Vec::new();
    for krate in crates() {
        let name = name(&krate);
        let (tops, imports) = imports(&krate);
        let layers = drawn.remove(&name).unwrap_or_default();
        let in_picture: BTreeSet<String> = layers.iter().flatten().cloned().collect();
        assert_eq!(in_picture, tops, "the modules of {name}, as drawn and as they are");
        assert_eq!(layers.iter().map(BTreeSet::len).sum::<usize>(), tops.len(), "{name}: a module is drawn twice");
        assert!(tops.len() <= MOST_MODULES, "{name} has {} modules at its top", tops.len());
        wrong.extend(upward(&layers, &imports));
    }
    assert_eq!(wrong, Vec::<String>::new());
    let floors = drawn.remove("crates").expect("a line `crates: …`");
    assert_eq!(upward(&floors, &dependencies()), Vec::<String>::new());
    assert_eq!(drawn.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "drawn, but not there");
}

/// Which crate depends on which, by their manifests.
fn dependencies() -> Vec<Import> {
    let all: BTreeSet<String> = crates().iter().map(|krate| name(krate)).collect();
    let mut found = Vec::new();
    for krate in crates() {
        let manifest = fs::read_to_string(krate.join("Cargo.toml")).unwrap();
        let table = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let lines = table.lines().take_while(|line| !line.starts_with('['));
        let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next()).map(str::to_owned);
        let from = name(&krate);
        let ours = names.filter(|name| all.contains(name));
        found.extend(ours.map(|to| (from.clone(), to, format!("crates/{from}/Cargo.toml"))));
    }
    found
}

#[test]
fn an_import_that_points_up_is_found() {
    let drawn = drawn("# x\n## Layers\n\n```\nx: a > b · c > d\n```\n");
    let layers = &drawn["x"];
    let import = |from: &str, to: &str| (from.to_owned(), to.to_owned(), "src/x.rs".to_owned());
    let imports = [import("a", "d"), import("b", "d"), import("d", "a"), import("b", "c"), import("a", "unknown")];
    let wrong = upward(layers, &imports);
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    assert!(wrong[0].contains("d imports a") && wrong[1].contains("b imports c"), "{wrong:?}");
}

#[test]
fn all_ways_to_import_are_read() {
    let text = "use crate::{one::A, two::{B, c::D}};\nuse super::three;\n// use crate::no::X;\nfn f() { crate::four::go() }\n\
                #[cfg(test)]\nmod tests {\n    use crate::never;\n}\n";
    let found = named(&["top", "inner"], text);
    let shown: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(shown, ["four::go", "one::A", "top::three", "two::B", "two::c::D"]);
}
