//! A wrong label, and the reason. Pure: no I/O, no clock.

use std::fmt;

use discovery::Excerpt;

/// A label that can't be read, or one that is missing. It prints in one line without control characters, whatever the
/// label has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFault {
    label: Excerpt,
    /// `None` if the label is missing.
    value: Option<Excerpt>,
    reason: String,
}

impl LabelFault {
    /// A label that can't be read. `reason` must hold no control characters.
    pub(crate) fn new(label: &str, value: &str, reason: impl Into<String>) -> Self {
        Self { label: Excerpt::new(label), value: Some(Excerpt::new(value)), reason: reason.into() }
    }

    /// A label without which the others mean nothing.
    pub(crate) fn missing(label: &str, reason: impl Into<String>) -> Self {
        Self { label: Excerpt::new(label), value: None, reason: reason.into() }
    }
}

impl fmt::Display for LabelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { label, value, reason } = self;
        match value {
            Some(value) => write!(f, "label {label} is {value}: {reason}"),
            None => write!(f, "label {label} is missing: {reason}"),
        }
    }
}

impl std::error::Error for LabelFault {}
