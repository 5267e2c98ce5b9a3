//! The regular expression of the setting `url_reg`.
//!
//! An expression is accepted only if PCRE, which HAProxy uses, reads it in the same way and never takes long to match it.
//! Nothing is matched here. Pure: no I/O, no clock.

mod cost;
mod coverage;

use std::fmt;
use std::str::FromStr;

use regex_syntax::ast::{self, Ast, visit};

use crate::Refusal;
use coverage::{Coverage, ROOT};

/// In bytes.
const LONGEST: usize = 256;
/// PCRE refuses an expression if its compiled form is longer than 65,535 bytes, and HAProxy its whole file with it.
const MAX_COMPILED_BYTES: u64 = 60_000;
/// The most bytes of one literal, class or group in the compiled form. A class is a table of 32 bytes.
const NODE_BYTES: u64 = 40;

/// A regular expression in the part of the language that both PCRE (HAProxy) and `regex-syntax` read in the same way: no
/// look-around, no back references, no names, no Unicode classes, no set operations, no inline flags but `i`. Its worst
/// case is bounded (docs/limits.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlRegex {
    text: Box<str>,
    coverage: Coverage,
}

impl UrlRegex {
    /// The bytes of path and query that HAProxy compares, from the first.
    pub const COMPARED_BYTES: u64 = cost::SUBJECT_BYTES;

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if the expression matches every path. False also if that isn't known.
    pub fn matches_every_path(&self) -> bool {
        self.coverage.covered.as_deref() == Some(ROOT)
    }

    /// True if the expression matches no path, because it begins with `^` and a letter that no path begins with.
    pub fn matches_no_path(&self) -> bool {
        !self.coverage.prefix.starts_with(['/', '*'])
    }

    /// True if this expression matches each path that the other one matches. False also if that isn't known.
    pub fn covers(&self, other: &Self) -> bool {
        let is_covered = |begin: &str| other.coverage.prefix.starts_with(begin);
        self.text == other.text || self.coverage.covered.as_deref().is_some_and(is_covered)
    }
}

impl FromStr for UrlRegex {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        check_text(text).map_err(|rule| Refusal::new_malformed(text, rule))?;
        let tree = ast::parse::Parser::new().parse(text);
        let tree = tree.map_err(|_| Refusal::new_malformed(text, "not a regular expression"))?;
        // Before the cost: its walk relies on a tree without names, Unicode classes and set operations.
        let portable = visit(&tree, PortabilityCheck { copies: vec![1], size: 0 });
        portable.map_err(|rule| Refusal::new_malformed(text, rule))?;
        cost::check_cost(&tree).map_err(|slow| {
            let part = text.get(slow.span.start.offset..slow.span.end.offset);
            Refusal::new_malformed(part.unwrap_or(text), slow.rule)
        })?;
        Ok(Self { text: text.into(), coverage: Coverage::new(&tree) })
    }
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > LONGEST {
        return Err("a regular expression has 1 to 256 bytes");
    }
    // The expression is one word in a line of haproxy.cfg.
    if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains(['"', '\'', '#', ';']) {
        return Err("no blank, quote, `#`, `;` or byte outside ASCII (write \\x20, \\x23, …)");
    }
    Ok(())
}

impl fmt::Display for UrlRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Walks the tree and stops at the first part that PCRE reads otherwise or can't compile.
struct PortabilityCheck {
    /// The number of copies that PCRE compiles of the current part, one level for each repetition around it.
    copies: Vec<u64>,
    /// The bytes of the compiled form so far, at most.
    size: u64,
}

impl ast::Visitor for PortabilityCheck {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), Self::Err> {
        let copies = self.copies.last().copied().unwrap_or(1);
        self.size = self.size.saturating_add(copies.saturating_mul(NODE_BYTES));
        if self.size > MAX_COMPILED_BYTES {
            return Err("too large: fewer repetitions");
        }
        match node {
            Ast::Flags(flags) => check_flags(&flags.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => check_flags(flags),
                // PCRE has another rule for names.
                ast::GroupKind::CaptureName { .. } => Err("no named group"),
                ast::GroupKind::CaptureIndex(_) => Ok(()),
            },
            Ast::ClassUnicode(_) => Err("no \\p classes"),
            Ast::Literal(literal) => check_literal(literal),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("only the assertions ^ $ \\b \\B"),
            },
            // PCRE repeats none of these, or reads a second sign after a repetition in a way of its own (`a*+`).
            Ast::Repetition(repetition)
                if matches!(
                    *repetition.ast,
                    Ast::Repetition(_) | Ast::Assertion(_) | Ast::Flags(_) | Ast::Empty(_)
                ) =>
            {
                Err("a repetition repeats a character, a class or a group")
            }
            Ast::Repetition(repetition) => {
                // PCRE compiles `a{20}` as twenty copies of `a`. `a*` and `a+` are one.
                let times = match &repetition.op.kind {
                    ast::RepetitionKind::Range(range) => u64::from(max_repeats(range)).max(1),
                    _ => 1,
                };
                self.copies.push(copies.saturating_mul(times));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn visit_post(&mut self, node: &Ast) -> Result<(), Self::Err> {
        if matches!(node, Ast::Repetition(_)) {
            self.copies.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ast::ClassSetItem::Unicode(_) => Err("no \\p classes"),
            ast::ClassSetItem::Bracketed(_) => Err("no class within a class"),
            ast::ClassSetItem::Literal(literal) => check_literal(literal),
            ast::ClassSetItem::Range(range) => check_literal(&range.start).and(check_literal(&range.end)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err("no set operations (&&, --, ~~)")
    }
}

fn max_repeats(range: &ast::RepetitionRange) -> u32 {
    match *range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => n,
        ast::RepetitionRange::Bounded(low, high) => low.max(high),
    }
}

fn check_literal(literal: &ast::Literal) -> Result<(), &'static str> {
    use ast::{HexLiteralKind, LiteralKind};
    match &literal.kind {
        // PCRE refuses `\u0041`, and HAProxy its whole file with it.
        LiteralKind::HexFixed(kind) | LiteralKind::HexBrace(kind) if *kind != HexLiteralKind::X => {
            Err("no \\u or \\U (write \\x20)")
        }
        _ if literal.c.is_ascii() => Ok(()),
        _ => Err("no character outside ASCII"),
    }
}

fn check_flags(flags: &ast::Flags) -> Result<(), &'static str> {
    let is_case_only = flags.items.iter().all(|item| match item.kind {
        ast::FlagsItemKind::Negation => true,
        ast::FlagsItemKind::Flag(flag) => flag == ast::Flag::CaseInsensitive,
    });
    if is_case_only { Ok(()) } else { Err("no inline flag but i") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_that_both_dialects_read_alike_is_accepted() {
        for good in [
            "^/api/",
            "^/(a|b)/[0-9]{1,3}$",
            "(?i)/x",
            "(?:/a)+?",
            "\\.php$",
            "[^/]+",
            "[[:alpha:]]",
            "\\x20",
            "a{1000}",
        ] {
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

    #[test]
    fn what_pcre_refuses_is_refused() {
        let wide = format!("(?:{}){{1000}}", "ab".repeat(100));
        for bad in [
            "\\u0041",
            "\\U00000041",
            "\\u{41}",
            "[\\u0041]",
            "[a-\\d]",
            "(?P<a.b>x)",
            "(?<n>x)",
            "/$*",
            "\\b+",
            "a*+",
            "a{2}{3}",
        ] {
            assert!(bad.parse::<UrlRegex>().is_err(), "{bad:?}");
        }
        for large in ["(?:(?:a{900}){900}){900}", "(?:ab){1000}{1000}", "(?:[ab]{100}){100}", wide.as_str()] {
            assert!(large.parse::<UrlRegex>().is_err(), "{large:?}");
        }
    }

    #[test]
    fn what_people_write_is_taken() {
        for good in [
            ".*",
            ".+",
            "[^/]+",
            "^/old/[0-9]+$",
            "^/files/[0-9]+$",
            "^/blog/[0-9]{4}/",
            "^/legacy[0-9]+",
            "^/(legacy1|new)",
            "^/a:\\d+",
            "^/app(/.*)?$",
            "^/(en|de|fr)(/|$)",
            "^/[a-z]{2}(-[A-Z]{2})?/.*$",
            "^(/index\\.php)?/api/.*",
            "^/.*\\.html$",
            "^/.*/.*\\.(jpg|png)$",
            "^/shop/.*/item/.*$",
            "^/static/.*\\.(css|js)(\\?v=[0-9]+)?$",
            "\\.(jpg|jpeg|png|gif|css|js|svg|woff|woff2|ttf|ico|map)(\\?.*)?$",
            "/foo/.*/bar/.*",
            "/user/[0-9]+/posts/[0-9]+",
            "/[^/]+/[^/]+/[^/]+/[^/]+/[^/]+/edit$",
            "^/(?:[^/]+/)*x",
            "^(/[a-z]+)*/[0-9]+$",
            "(?:/[a-z]+)+\\.php$",
        ] {
            assert_eq!(good.parse::<UrlRegex>().map(|it| it.to_string()), Ok(good.to_owned()));
        }
    }

    /// PCRE2 10.42 with JIT took 10 ms to 2.9 s for one URL with such expressions.
    #[test]
    fn what_takes_haproxy_too_long_is_refused_by_its_part() {
        for (slow, part) in [
            ("^/(a|a)*[bc]$", "(a|a)*"),
            ("^/(a+)+$", "(a+)+"),
            ("^/(\\w+/?)+$", "(\\w+/?)+"),
            ("(?:\\w+\\s?)*$", "(?:\\w+\\s?)*"),
            ("^/(?:foo|foobar)*$", "(?:foo|foobar)*"),
            ("^/x(.*a){12}[bc]", "(.*a){12}"),
            ("(a{1,10}){1,10}[bc]$", "(a{1,10}){1,10}"),
            ("(?:(?:a?){20}){20}[bc]$", "(?:a?){20}"),
            ("^/.*.*.*[x-z]$", ".*"),
            ("a.*a.*[bc]$", ".*"),
            ("[a-z]+[a-z0-9]+$", "[a-z0-9]+"),
            ("(?i)a+A+b", "A+"),
            ("[^a]+[^b]+c", "[^b]+"),
        ] {
            let refusal = slow.parse::<UrlRegex>().unwrap_err().to_string();
            // An excerpt escapes the backslash.
            let named = refusal.starts_with(&format!("`{}`: HAProxy would take too long", part.escape_debug()));
            assert!(named, "{slow}: {refusal}");
        }
        // Each round that the group gives back tries every branch: 46 to 250 ms of one URL.
        let branches: Vec<String> = ('a'..='z').cycle().take(109).map(String::from).collect();
        for begin in ["(\\d)*", "^.*.{0,4}(\\d)*"] {
            let slow = format!("{begin}({})", branches.join("|"));
            assert!(slow.len() <= 256 && slow.parse::<UrlRegex>().is_err(), "{slow}");
        }
    }
}
