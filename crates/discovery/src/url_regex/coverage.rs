//! The URLs that an expression surely matches, as far as the beginning of a URL decides it. Nothing is matched. Pure: no I/O, no
//! clock.

use std::collections::BTreeSet;

use regex_syntax::ast::{self, Ast, visit};

/// The beginnings of URLs that decide if one expression leaves another one nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Coverage {
    /// Each URL that the expression matches begins with this.
    pub(super) prefix: Box<str>,
    /// The expression matches each URL that begins with this. `None` if no beginning decides it.
    pub(super) covered: Option<Box<str>>,
}

/// The beginning of each path. HAProxy compares path and query, of `OPTIONS *` the `*`.
pub(super) const ROOT: &str = "/";

impl Coverage {
    pub(super) fn new(tree: &Ast) -> Self {
        let ignores_case = visit(tree, FlagSearch).is_err();
        let prefix = literal_prefix(tree).filter(|prefix| !ignores_case && !prefix.is_empty());
        let prefix = prefix.unwrap_or_else(|| ROOT.to_owned());
        let covered = [ROOT, &prefix]
            .into_iter()
            .find(|begin| Beginning { begin: begin.as_bytes(), ignores_case }.is_matched_by(tree));
        let covered = covered.map(Box::from);
        Self { prefix: prefix.into(), covered }
    }
}

/// Ends with an error at an inline flag. The only one that is accepted is `i`.
struct FlagSearch;

impl ast::Visitor for FlagSearch {
    type Output = ();
    type Err = ();

    fn finish(self) -> Result<(), ()> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), ()> {
        let has_flag = match node {
            Ast::Flags(_) => true,
            Ast::Group(group) => group.flags().is_some_and(|flags| !flags.items.is_empty()),
            _ => false,
        };
        if has_flag { Err(()) } else { Ok(()) }
    }
}

/// The literals behind a `^` at the beginning. `None` without such a `^`.
fn literal_prefix(tree: &Ast) -> Option<String> {
    let Ast::Concat(concat) = tree else { return None };
    let (Ast::Assertion(first), rest) = concat.asts.split_first()? else { return None };
    let literals = rest.iter().map_while(|item| match item {
        Ast::Literal(literal) => Some(literal.c),
        _ => None,
    });
    (first.kind == ast::AssertionKind::StartLine).then(|| literals.collect())
}

/// Places in a URL that begins with known bytes: the offsets of these, the offset behind them, and one more for the URL's end.
type Places = BTreeSet<usize>;

/// All URLs that begin with these bytes.
struct Beginning<'a> {
    begin: &'a [u8],
    ignores_case: bool,
}

impl Beginning<'_> {
    /// True if the expression matches each of these URLs. False also if that isn't known.
    fn is_matched_by(&self, tree: &Ast) -> bool {
        // A match may begin anywhere.
        !self.follow(tree, &(0..=self.end()).collect()).is_empty()
    }

    /// The place of the URL's end.
    fn end(&self) -> usize {
        self.begin.len() + 1
    }

    /// The places to which this part of the expression leads from these places in each of the URLs.
    fn follow(&self, part: &Ast, from: &Places) -> Places {
        match part {
            Ast::Empty(_) | Ast::Flags(_) => from.clone(),
            Ast::Assertion(assertion) => {
                let holds = |place: &usize| match assertion.kind {
                    ast::AssertionKind::StartLine => *place == 0,
                    ast::AssertionKind::EndLine => *place == self.end(),
                    _ => false,
                };
                from.iter().copied().filter(holds).collect()
            }
            Ast::Group(group) => self.follow(&group.ast, from),
            Ast::Alternation(alternation) => {
                alternation.asts.iter().flat_map(|branch| self.follow(branch, from)).collect()
            }
            Ast::Concat(concat) => concat.asts.iter().fold(from.clone(), |places, item| self.follow(item, &places)),
            Ast::Repetition(repetition) => self.follow_repetition(repetition, from),
            _ => from
                .iter()
                .filter(|place| self.begin.get(**place).is_some_and(|byte| self.takes(part, *byte)))
                .map(|place| place + 1)
                .collect(),
        }
    }

    fn follow_repetition(&self, repetition: &ast::Repetition, from: &Places) -> Places {
        let (least, most) = super::cost::repeat_bounds(&repetition.op.kind);
        let mut reached = Places::new();
        let mut places = from.clone();
        // No round goes back, and each takes a byte, so that no place is left after as many rounds.
        for round in 0..=u64::try_from(self.end()).unwrap_or(u64::MAX).min(most) {
            if round >= least {
                reached.extend(&places);
            }
            places = self.follow(&repetition.ast, &places);
        }
        // The bytes behind the known ones may be any.
        let known =
            |place: &usize| u64::try_from(self.begin.len().saturating_sub(*place)).is_ok_and(|known| known >= least);
        if most == u64::MAX
            && self.takes_all(&repetition.ast)
            && from.iter().any(|place| *place < self.end() && known(place))
        {
            reached.insert(self.end());
        }
        reached
    }

    /// True if the part is one sign for every byte that a URL may have.
    fn takes_all(&self, part: &Ast) -> bool {
        (0x21..=0x7e).chain(0x80..=0xff).all(|byte| self.takes(part, byte))
    }

    /// True if the part is a sign for this byte. False also if that isn't known.
    fn takes(&self, part: &Ast, byte: u8) -> bool {
        match part {
            Ast::Dot(_) => byte != b'\n',
            Ast::Literal(literal) => char::from(byte) == literal.c,
            Ast::ClassPerl(class) => perl_takes(class, byte),
            // With `i` the class may have the other case too, so its complement may lack it.
            Ast::ClassBracketed(class) if class.negated => {
                !(self.ignores_case && byte.is_ascii_alphabetic()) && set_takes(&class.kind, byte) == Some(false)
            }
            Ast::ClassBracketed(class) => set_takes(&class.kind, byte) == Some(true),
            _ => false,
        }
    }
}

fn perl_takes(class: &ast::ClassPerl, byte: u8) -> bool {
    let is_in = match class.kind {
        ast::ClassPerlKind::Digit => byte.is_ascii_digit(),
        ast::ClassPerlKind::Space => byte.is_ascii_whitespace() || byte == 0x0b,
        ast::ClassPerlKind::Word => byte.is_ascii_alphanumeric() || byte == b'_',
    };
    is_in != class.negated
}

/// `None` if it isn't known.
fn set_takes(set: &ast::ClassSet, byte: u8) -> Option<bool> {
    let ast::ClassSet::Item(item) = set else { return None };
    item_takes(item, byte)
}

fn item_takes(item: &ast::ClassSetItem, byte: u8) -> Option<bool> {
    let sign = char::from(byte);
    match item {
        ast::ClassSetItem::Empty(_) => Some(false),
        ast::ClassSetItem::Literal(literal) => Some(literal.c == sign),
        ast::ClassSetItem::Range(range) => Some((range.start.c..=range.end.c).contains(&sign)),
        ast::ClassSetItem::Perl(class) => Some(perl_takes(class, byte)),
        ast::ClassSetItem::Union(union) => {
            let items: Option<Vec<bool>> = union.items.iter().map(|item| item_takes(item, byte)).collect();
            items.map(|items| items.contains(&true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::UrlRegex;

    fn regex(text: &str) -> UrlRegex {
        text.parse().unwrap()
    }

    #[test]
    fn an_expression_that_matches_every_path_is_known() {
        for every in [
            ".*",
            "^.*$",
            "^",
            "$",
            "/",
            "^/",
            ".",
            ".+",
            "^.+$",
            "^/.*",
            "^/.*$",
            "^/?",
            "()",
            "x|",
            "^(/|x)",
            "^[/a]",
            "^[^a]",
            "^\\W",
            "[^x]*",
            "^/[^?]*",
            "^\\S*$",
            "^(/.*)?$",
            "^(/(.*))$",
            "(?i)^/",
            "^.{1}",
            "^/.{0,5}",
            "^(?:/|/x).*$",
            "\\x2f",
        ] {
            assert!(regex(every).matches_every_path(), "{every}");
        }
        for some in [
            "^/a",
            "a",
            ".{2}",
            "^/.+",
            "^/$",
            "//",
            "^/[^?]*$",
            "^[^/]",
            "[^/]+",
            "\\.php$",
            "^/(a|b)",
            "\\b",
            "^.$",
            "(?i)^[^a]*$",
            "^x",
            "^\\w",
            "^[[:punct:]]",
            "..",
        ] {
            assert!(!regex(some).matches_every_path(), "{some}");
        }
    }

    #[test]
    fn an_expression_that_leaves_another_one_nothing_is_known() {
        for (wide, narrow) in [
            (".*", "^/x/[0-9]+$"),
            ("^/", "\\.php$"),
            ("^/x", "^/x/y$"),
            ("^/x", "^/x"),
            ("^/x.*", "^/xyz"),
            ("^/x/?", "^/x$"),
            ("^/x(/.*)?", "^/x/y"),
            ("^/", "(?i)^/x"),
        ] {
            assert!(regex(wide).covers(&regex(narrow)), "{wide} {narrow}");
        }
        for (one, other) in [
            ("^/x/", "^/x"),
            ("^/x", "/x/y"),
            ("^/x", "(?i)^/x"),
            ("(?i)^/x", "^/y"),
            ("^/x$", "^/x/y"),
            ("^/x", "^/(x|y)"),
            ("^/x/?$", "^/x/y"),
        ] {
            assert!(!regex(one).covers(&regex(other)), "{one} {other}");
        }
    }

    #[test]
    fn an_expression_for_what_begins_no_path_matches_none() {
        for none in ["^api", "^\\?x", "^x/.*"] {
            assert!(regex(none).matches_no_path(), "{none}");
        }
        for some in ["^/api", "api", "^\\*$", "^[a]", "(?i)^api", "^", "^.api"] {
            assert!(!regex(some).matches_no_path(), "{some}");
        }
    }
}
