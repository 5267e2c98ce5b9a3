//! Values that are lists: words separated by blanks or commas.

use std::str::FromStr;

use crate::Refusal;

/// Splits at blanks and commas.
pub(crate) fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

/// Prints the items as a list.
pub(crate) fn join_words<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

/// Parses every word. A list has at least one. An item that is named twice counts once, in its first place.
pub(crate) fn parse_list<T: FromStr<Err = Refusal> + PartialEq>(text: &str) -> Result<Vec<T>, Refusal> {
    let mut items = Vec::new();
    for word in split_words(text) {
        let item = word.parse()?;
        if !items.contains(&item) {
            items.push(item);
        }
    }
    if items.is_empty() { Err(Refusal::Empty) } else { Ok(items) }
}
