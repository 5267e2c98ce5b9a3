//! The regular expression of the old layout's `url_reg`.

use std::fmt;
use std::str::FromStr;

use regex_syntax::ast::{self, Ast, visit};

use crate::Refusal;

/// PRODUCT's limit; also keeps the time that one match may take within reason.
const LONGEST: usize = 256;
/// More repetitions than this make PCRE's compiled form large; its own limit is 65,535.
const MOST_REPETITIONS: u32 = 1_000;

/// A regular expression in the part of the language that both PCRE (HAProxy) and this type read in the same way: no
/// look-around, no back references, no Unicode classes, no set operations, no inline flags but `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlRegex(Box<str>);

impl UrlRegex {
    /// The expression as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UrlRegex {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refused = |rule| Refusal::malformed(text, rule);
        if text.is_empty() || text.len() > LONGEST {
            return Err(refused("a regular expression has 1 to 256 bytes"));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains(['"', '\'', '#', ';']) {
            return Err(refused("no blank, quote, `#`, `;` or byte outside ASCII (write \\x20, \\x23, …)"));
        }
        let tree = ast::parse::Parser::new().parse(text).map_err(|_| refused("not a regular expression"))?;
        visit(&tree, Portable).map_err(refused)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for UrlRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Walks the tree and stops at the first thing that PCRE reads otherwise.
struct Portable;

impl ast::Visitor for Portable {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), Self::Err> {
        match node {
            Ast::Flags(flags) => only_case(&flags.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => only_case(flags),
                _ => Ok(()),
            },
            Ast::ClassUnicode(_) => Err("no \\p classes"),
            Ast::Literal(literal) => ascii(literal.c),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("only the assertions ^ $ \\b \\B"),
            },
            Ast::Repetition(repetition) => match &repetition.op.kind {
                ast::RepetitionKind::Range(range) if most(range) > MOST_REPETITIONS => Err("at most 1000 repetitions"),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ast::ClassSetItem::Unicode(_) => Err("no \\p classes"),
            ast::ClassSetItem::Bracketed(_) => Err("no class within a class"),
            ast::ClassSetItem::Literal(literal) => ascii(literal.c),
            ast::ClassSetItem::Range(range) => ascii(range.start.c).and(ascii(range.end.c)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err("no set operations (&&, --, ~~)")
    }
}

fn most(range: &ast::RepetitionRange) -> u32 {
    match *range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => n,
        ast::RepetitionRange::Bounded(low, high) => low.max(high),
    }
}

fn ascii(c: char) -> Result<(), &'static str> {
    if c.is_ascii() { Ok(()) } else { Err("no character outside ASCII") }
}

fn only_case(flags: &ast::Flags) -> Result<(), &'static str> {
    let fine = flags.items.iter().all(|item| match item.kind {
        ast::FlagsItemKind::Negation => true,
        ast::FlagsItemKind::Flag(flag) => flag == ast::Flag::CaseInsensitive,
    });
    if fine { Ok(()) } else { Err("no inline flag but i") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_dialects_read_alike_is_taken() {
        for good in ["^/api/", "^/(a|b)/[0-9]{1,3}$", "(?i)/x", "(?:/a)+?", "\\.php$", "[^/]+", "[[:alpha:]]", "\\x20"]
        {
            assert!(good.parse::<UrlRegex>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        let long = "a".repeat(257);
        let bad =
            ["", "(", "a b", "a#b", "a;b", "a\"", "a'", "a\n", "(?=x)", "(a)\\1", "\\p{L}", "(?R)", "(?x)a", "[a&&b]"];
        for bad in bad.into_iter().chain(["a{9999}", "\\x{1F600}", "\\z", "ä", "[a[b]]", "**", &long]) {
            assert!(bad.parse::<UrlRegex>().is_err(), "{bad:?}");
        }
    }
}
