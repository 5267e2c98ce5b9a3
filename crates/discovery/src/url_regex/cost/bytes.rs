//! Sets of bytes that a part of an expression can match. Pure: no I/O, no clock.

use regex_syntax::ast;

/// A set of bytes. A set with a letter has both its cases, since `(?i)` may hold. A set that is too large only makes
/// the bound stricter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes([bool; 256]);

impl Bytes {
    pub(super) const NONE: Self = Self([false; 256]);
    pub(super) const ALL: Self = Self([true; 256]);

    pub(super) fn from_predicate(is_in: impl Fn(u8) -> bool) -> Self {
        let mut all = (0..=u8::MAX)
            .map(|byte| is_in(byte) || is_in(byte.to_ascii_lowercase()) || is_in(byte.to_ascii_uppercase()));
        Self(std::array::from_fn(|_| all.next().unwrap_or_default()))
    }

    pub(super) fn contains(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte)).is_some_and(|is_in| *is_in)
    }

    pub(super) fn union_with(&self, other: &Self) -> Self {
        Self::from_predicate(|byte| self.contains(byte) || other.contains(byte))
    }

    pub(super) fn shares_byte_with(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(one, other)| *one && other)
    }
}

pub(super) fn perl_class_bytes(class: &ast::ClassPerl) -> Bytes {
    let bytes = Bytes::from_predicate(|byte| match class.kind {
        ast::ClassPerlKind::Digit => byte.is_ascii_digit(),
        // PCRE's `\s` has the vertical tab, `is_ascii_whitespace` doesn't.
        ast::ClassPerlKind::Space => byte.is_ascii_whitespace() || byte == 0x0b,
        ast::ClassPerlKind::Word => byte.is_ascii_alphanumeric() || byte == b'_',
    });
    negate_if(class.negated, bytes)
}

pub(super) fn class_set_bytes(set: &ast::ClassSet) -> Bytes {
    match set {
        ast::ClassSet::Item(item) => class_item_bytes(item),
        ast::ClassSet::BinaryOp(_) => Bytes::ALL,
    }
}

fn class_item_bytes(item: &ast::ClassSetItem) -> Bytes {
    match item {
        ast::ClassSetItem::Empty(_) => Bytes::NONE,
        ast::ClassSetItem::Literal(literal) => Bytes::from_predicate(|byte| char::from(byte) == literal.c),
        ast::ClassSetItem::Range(range) => {
            Bytes::from_predicate(|byte| (range.start.c..=range.end.c).contains(&char::from(byte)))
        }
        ast::ClassSetItem::Perl(class) => perl_class_bytes(class),
        ast::ClassSetItem::Ascii(class) => negate_if(class.negated, ascii_class_bytes(&class.kind)),
        ast::ClassSetItem::Bracketed(class) => negate_if(class.negated, class_set_bytes(&class.kind)),
        ast::ClassSetItem::Union(union) => {
            union.items.iter().map(class_item_bytes).fold(Bytes::NONE, |all, item| all.union_with(&item))
        }
        ast::ClassSetItem::Unicode(_) => Bytes::ALL,
    }
}

fn ascii_class_bytes(kind: &ast::ClassAsciiKind) -> Bytes {
    use ast::ClassAsciiKind as Kind;
    Bytes::from_predicate(|byte| match kind {
        Kind::Alnum => byte.is_ascii_alphanumeric(),
        Kind::Alpha => byte.is_ascii_alphabetic(),
        Kind::Digit => byte.is_ascii_digit(),
        Kind::Lower | Kind::Upper => byte.is_ascii_alphabetic(),
        Kind::Xdigit => byte.is_ascii_hexdigit(),
        Kind::Word => byte.is_ascii_alphanumeric() || byte == b'_',
        _ => true,
    })
}

/// The complement of the bytes, if negated. A set that is too large has a complement that is too small, so all letters
/// stay in it.
pub(super) fn negate_if(is_negated: bool, bytes: Bytes) -> Bytes {
    if is_negated { Bytes::from_predicate(|byte| byte.is_ascii_alphabetic() || !bytes.contains(byte)) } else { bytes }
}
