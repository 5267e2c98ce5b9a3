//! Cells: text that anybody may have written, made harmless for a terminal.

use std::collections::BTreeMap;
use std::fmt::Display;

use program::text::escape_line;

/// What a cell says of what it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Odd,
    /// Something doesn't work.
    Bad,
}

/// A cell. It holds no hidden character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell that says something by its color.
    pub(crate) fn with_tone(text: impl Display, tone: Tone) -> Self {
        Self { text: escape_line(&text.to_string()).into_owned(), tone }
    }

    /// All is well.
    pub(crate) fn good(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Good)
    }

    /// Worth a look.
    pub(crate) fn odd(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Odd)
    }

    /// Something doesn't work.
    pub(crate) fn bad(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Bad)
    }

    /// What is there, or a dash.
    pub(crate) fn or_dash(value: Option<impl Display>) -> Self {
        value.map_or_else(|| "–".into(), |value| Self::with_tone(value, Tone::Plain))
    }

    /// What every balancer counts of so many, and whether all of them count enough: `lb1 2/3, lb2 –`.
    pub(crate) fn from_counts(by_balancer: &BTreeMap<String, Option<usize>>, of: usize, enough: usize) -> Self {
        let one = |(node, count): (&String, &Option<usize>)| match count {
            Some(count) => format!("{node} {count}/{of}"),
            None => format!("{node} –"),
        };
        let text = by_balancer.iter().map(one).collect::<Vec<_>>().join(", ");
        match by_balancer.values().flatten().min() {
            None => Self::or_dash((!text.is_empty()).then_some(text)),
            Some(0) => Self::bad(text),
            Some(least) if *least < enough => Self::odd(text),
            Some(_) => Self::good(text),
        }
    }

    /// Its text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// What it says of that.
    pub(crate) fn tone(&self) -> Tone {
        self.tone
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::with_tone(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::with_tone(text, Tone::Plain)
    }
}
