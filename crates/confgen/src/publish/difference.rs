//! The difference of two generations of haproxy.cfg, for the history. Pure, except that a deadline bounds its time.

use std::time::Duration;

use similar::{ChangeTag, TextDiff};

use crate::render::ConfigText;
use crate::state_dir::GENERATED;

/// The most lines of a difference. A larger one ends with the number of the others.
const LINES: usize = 60;

/// The longest line.
const LONGEST: usize = 200;

/// Two files that differ in thousands of places take longer than this. Then all of what differs counts as replaced.
const WITHIN: Duration = Duration::from_millis(50);

/// The lines that went and came, below the heads of their sections. `None` if the files differ in the generation's id only.
pub fn compare_configs(before: &ConfigText, after: &ConfigText) -> Option<String> {
    // A section is a piece of its own, so a change of one service compares the lines of one section.
    let (before, after) = before.differing_pieces(after);
    let (before, after) = (list_lines(&before), list_lines(&after));
    let (before, after) = cut_common(&before, &after);
    let diff = TextDiff::configure().timeout(WITHIN).diff_slices(before, after);
    let (mut lines, mut head, mut count) = (Vec::new(), None, 0_usize);
    for change in diff.iter_all_changes() {
        let line = change.value();
        let is_head = !line.starts_with([' ', '\t', '#']) && !line.is_empty();
        let sign = match change.tag() {
            ChangeTag::Equal => {
                head = if is_head { Some(line) } else { head };
                continue;
            }
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
        };
        // A blank line separates sections and says nothing.
        if line.trim().is_empty() {
            continue;
        }
        // The head of a section that stands in both files is told once, before the first line below it.
        lines.extend(head.take().filter(|_| !is_head).map(|head| format!("  {head}")));
        count += 1;
        if count <= LINES {
            lines.push(format!("{sign} {}", cut_line(line)));
        }
    }
    // Each line that changed may have brought the head of its section.
    lines.truncate(LINES * 2);
    lines.extend((count > LINES).then(|| format!("  {} more lines", count - LINES)));
    (count > 0).then(|| lines.join("\n"))
}

/// The lines without the generation's id. It differs in each generation.
fn list_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.trim_start().starts_with(GENERATED)).collect()
}

/// Leaves out the lines that both begin and end with, but for the head of the first section that differs.
fn cut_common<'a, 'b>(before: &'b [&'a str], after: &'b [&'a str]) -> (&'b [&'a str], &'b [&'a str]) {
    let same = before.iter().zip(after).take_while(|(one, other)| one == other).count();
    let shared = before.get(..same).unwrap_or_default();
    let head = shared.iter().rposition(|line| !line.starts_with([' ', '\t', '#']) && !line.is_empty()).unwrap_or(same);
    let rest = |lines: &'b [&'a str]| lines.get(same..).unwrap_or_default();
    let tail = rest(before).iter().rev().zip(rest(after).iter().rev()).take_while(|(one, other)| one == other).count();
    let cut = |lines: &'b [&'a str]| lines.get(head..lines.len() - tail).unwrap_or_default();
    (cut(before), cut(after))
}

fn cut_line(line: &str) -> &str {
    line.char_indices().nth(LONGEST).and_then(|(end, _)| line.get(..end)).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(before: &str, after: &str) -> Option<String> {
        compare_configs(&before.into(), &after.into())
    }

    #[test]
    fn a_difference_names_the_section_of_its_lines() {
        let before = "global\n    setenv CONFGEN_GEN 1\n\nbackend a\n    server x\n\nbackend b\n    server y\n";
        let after = before.replace("GEN 1", "GEN 2");
        assert_eq!(compare(before, &after), None);
        let after = after.replace("    server x\n", "    server x\n    server z\n");
        assert_eq!(compare(before, &after).as_deref(), Some("  backend a\n+     server z"));
        let gone = before.replace("backend b\n    server y\n", "");
        assert_eq!(compare(before, &gone).as_deref(), Some("- backend b\n-     server y"));
        assert_eq!(compare("", "backend a\n    server x").as_deref(), Some("+ backend a\n+     server x"));
    }

    #[test]
    fn a_large_difference_is_cut() {
        let after: String = (0..100_000).map(|n| format!("    server s{n} {}\n", "x".repeat(500))).collect();
        let found = compare("backend a\n", &format!("backend a\n{after}")).unwrap();
        assert_eq!(found.lines().count(), LINES + 2);
        assert!(found.ends_with("  99940 more lines") && found.len() < 20_000);
    }
}
