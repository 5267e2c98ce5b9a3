//! The documentation's blocks, as a person would paste them.

use std::fs::read_to_string;

use crate::images::SOURCE;

/// A page of the documentation.
pub struct Page {
    name: String,
    /// Each block with the heading that it stands below.
    blocks: Vec<(String, String)>,
}

/// What is typed at once, and what is shown then, where the page says so.
pub struct Step {
    /// Commands for a shell.
    pub command: String,
    /// What they print, as [`is_shown`] compares it.
    pub shown: Option<String>,
}

impl Page {
    /// Reads a page by its path in the project, such as `docs/secure.md`.
    ///
    /// # Panics
    /// When it isn't there.
    pub fn read(name: &str) -> Self {
        let text = read_to_string(format!("{SOURCE}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self::parse(name, &text)
    }

    /// The same for a text that a program printed.
    pub fn parse(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), blocks: blocks(text) }
    }

    /// The headings that have blocks below them, in their order.
    pub fn headings(&self) -> Vec<&str> {
        let mut headings: Vec<&str> = self.blocks.iter().map(|(heading, _)| heading.as_str()).collect();
        headings.dedup();
        headings
    }

    /// The blocks below one heading.
    ///
    /// # Panics
    /// Where there is none.
    #[track_caller]
    pub fn below(&self, heading: &str) -> Vec<String> {
        let blocks = self.blocks.iter().filter(|(above, _)| above == heading);
        let blocks: Vec<_> = blocks.map(|(_, block)| block.clone()).collect();
        assert!(!blocks.is_empty(), "{} has no block below {heading:?}", self.name);
        blocks
    }

    /// The one block that holds this.
    ///
    /// # Panics
    /// Where there is none, or another one too.
    #[track_caller]
    pub fn block(&self, words: &str) -> String {
        let mut found = self.blocks.iter().map(|(_, block)| block).filter(|block| block.contains(words));
        let block = found.next().unwrap_or_else(|| panic!("{} has no block with {words:?}", self.name));
        assert!(found.next().is_none(), "{} has several blocks with {words:?}", self.name);
        block.clone()
    }

    /// Everything that is to be typed below these headings. A block whose first line begins with `$ ` has a command on each
    /// such line, and what it shows below it; any other is commands alone.
    #[track_caller]
    pub fn steps(&self, headings: &[&str]) -> Vec<Step> {
        headings.iter().flat_map(|heading| self.below(heading)).flat_map(|block| steps(&block)).collect()
    }
}

fn blocks(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut heading, mut open) = (String::new(), false);
    for line in text.lines() {
        if let Some(code) = line.strip_prefix("    ") {
            if !open {
                found.push((heading.clone(), String::new()));
            }
            found.last_mut().unwrap().1 += &format!("{code}\n");
            open = true;
        } else if !line.is_empty() {
            // An empty line may be a block's own.
            open = false;
            if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().to_owned();
            }
        }
    }
    found
}

fn steps(block: &str) -> Vec<Step> {
    if !block.starts_with("$ ") {
        return vec![Step { command: block.to_owned(), shown: None }];
    }
    let mut steps: Vec<Step> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { command: format!("{command}\n"), shown: Some(String::new()) }),
            None => *steps.last_mut().unwrap().shown.as_mut().unwrap() += &format!("{line}\n"),
        }
    }
    steps
}

/// Whether this is what the page shows: `…` is anything, alone on a line any lines. How many blanks there are between words
/// doesn't count, nor do empty lines.
pub fn is_shown(shown: &str, said: &str) -> bool {
    fn lines(text: &str) -> Vec<String> {
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.filter(|line| !line.is_empty()).collect()
    }
    all(&lines(shown), &lines(said))
}

fn all(shown: &[String], said: &[String]) -> bool {
    match (shown.split_first(), said.split_first()) {
        (None, None) => true,
        (Some((pattern, rest)), _) if pattern == "…" => (0..=said.len()).any(|skipped| all(rest, &said[skipped..])),
        (Some((pattern, rest)), Some((line, left))) => matches(pattern, line) && all(rest, left),
        _ => false,
    }
}

fn matches(pattern: &str, line: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('…') else { return pattern == line };
    let Some(line) = line.strip_prefix(begin) else { return false };
    let cut = |(index, _): (usize, char)| matches(rest, &line[index..]);
    line.char_indices().any(cut) || matches(rest, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_told_from_what_is_shown() {
        let page = blocks("# A\n\n    one\n\n    two\n\ntext\n\n    $ three\n    3\n    $ four\n## B\n\n    five\n");
        let of = |index: usize| (page[index].0.as_str(), page[index].1.as_str());
        assert_eq!([of(0), of(1), of(2)], [("A", "one\ntwo\n"), ("A", "$ three\n3\n$ four\n"), ("B", "five\n")]);
        let steps = steps(of(1).1);
        let all: Vec<_> = steps.iter().map(|step| (step.command.as_str(), step.shown.as_deref().unwrap())).collect();
        assert_eq!(all, [("three\n", "3\n"), ("four\n", "")]);
    }

    #[test]
    fn what_differs_may_differ_and_nothing_else() {
        for (shown, said, is) in [
            ("a  b\n", "a b", true),
            ("a b", "a c", false),
            ("after … s", "after 0.1 s", true),
            ("after … s", "after 0.1 m", false),
            ("…:80", "10.0.0.1:80", true),
            ("…:80 …", "10.0.0.1:80 up", true),
            ("…\nb\n…", "a\n\na\nb", true),
            ("…\nb", "a\nb\nc", false),
            ("a", "a\nb", false),
            ("a\nb", "a", false),
        ] {
            assert_eq!(is_shown(shown, said), is, "{shown:?} {said:?}");
        }
    }
}
