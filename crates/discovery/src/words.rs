//! Values that are lists: words separated by blanks or commas. Pure: no I/O, no clock.

use std::str::FromStr;

use crate::Refusal;

/// The words between blanks and commas, none of them empty.
pub(crate) fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

/// The items with a blank between them, as [`parse_list`] reads them.
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
