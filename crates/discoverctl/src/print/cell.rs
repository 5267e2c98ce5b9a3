//! Table cells. Their text may come from any client of etcd, and is made harmless for a terminal.

use std::collections::BTreeMap;
use std::fmt::Display;

use program::text::escape_line;

/// The judgement that a cell's color shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// All is well: green.
    Good,
    /// Worth a look: shown in yellow.
    Odd,
    /// Something doesn't work: shown in red.
    Bad,
}

/// A cell without hidden characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell that shows a judgement by its color.
    pub(crate) fn with_tone(text: impl Display, tone: Tone) -> Self {
        Self { text: escape_line(&text.to_string()).into_owned(), tone }
    }

    pub(crate) fn good(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Good)
    }

    pub(crate) fn odd(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Odd)
    }

    pub(crate) fn bad(text: impl Display) -> Self {
        Self::with_tone(text, Tone::Bad)
    }

    /// The value, or a dash for None.
    pub(crate) fn or_dash(value: Option<impl Display>) -> Self {
        value.map_or_else(|| "–".into(), |value| Self::with_tone(value, Tone::Plain))
    }

    /// The counts of all balancers, out of `of`: `lb1 2/3, lb2 –`. The smallest count decides the color: bad at 0, odd
    /// below `enough`.
    pub(crate) fn from_counts(by_balancer: &BTreeMap<String, Option<usize>>, of: usize, enough: usize) -> Self {
        let mut words = Vec::new();
        for (node, count) in by_balancer {
            words.push(match count {
                Some(count) => format!("{node} {count}/{of}"),
                None => format!("{node} –"),
            });
        }
        let text = words.join(", ");
        match by_balancer.values().flatten().min() {
            // No balancer can tell, or none lives.
            None => Self::or_dash((!text.is_empty()).then_some(text)),
            Some(0) => Self::bad(text),
            Some(least) if *least < enough => Self::odd(text),
            Some(_) => Self::good(text),
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

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
