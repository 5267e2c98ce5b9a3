//! YAML with escaped hidden characters.

use std::fmt::Write as _;

use program::text::is_hidden;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;

/// Writes an answer as YAML. serde-saphyr escapes control characters, and leaves bidi and zero-width characters as they
/// are. A value with one of these is written between double quotes, with `\u202e` in it.
pub(crate) fn to_yaml(answer: &impl Serialize) -> Result<String, Error> {
    let text = serde_saphyr::to_string(answer).map_err(|error| Error::Failed(error.to_string()))?;
    if !text.chars().any(must_be_escaped) {
        return Ok(text);
    }
    let mut value = serde_json::to_value(answer).map_err(|error| Error::Failed(error.to_string()))?;
    let mut marks = Marks { start: unused_word(&text), texts: Vec::new() };
    marks.mark_value(&mut value);
    let text = serde_saphyr::to_string(&value).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(marks.put_back(text))
}

/// Tabs and line breaks belong to YAML's own layout.
fn must_be_escaped(c: char) -> bool {
    !matches!(c, '\n' | '\t') && is_hidden(c)
}

/// A word that the text doesn't contain.
fn unused_word(text: &str) -> String {
    let mut word = "hidden".to_owned();
    while text.contains(&word) {
        word.push('x');
    }
    word
}

/// Words that replace texts with hidden characters until the YAML is written.
struct Marks {
    start: String,
    texts: Vec<String>,
}

impl Marks {
    fn mark_name(&self, number: usize) -> String {
        format!("{}{number}end", self.start)
    }

    fn mark_text(&mut self, text: &str) -> String {
        if !text.chars().any(must_be_escaped) {
            return text.to_owned();
        }
        self.texts.push(text.to_owned());
        self.mark_name(self.texts.len() - 1)
    }

    fn mark_value(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.mark_text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.mark_value(value)),
            Value::Object(fields) => {
                for (name, mut value) in std::mem::take(fields) {
                    self.mark_value(&mut value);
                    fields.insert(self.mark_text(&name), value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn put_back(&self, mut yaml: String) -> String {
        for (number, text) in self.texts.iter().enumerate() {
            yaml = yaml.replace(&self.mark_name(number), &double_quoted(text));
        }
        yaml
    }
}

/// Quotes a scalar (YAML 1.2, section 5.7).
fn double_quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        let code = u32::from(c);
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            c if !is_hidden(c) => write!(quoted, "{c}"),
            _ if code > 0xffff => write!(quoted, "\\U{code:08x}"),
            _ => write!(quoted, "\\u{code:04x}"),
        };
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_document_stays_the_same() {
        let value = json!({
            "http-services": {"a\u{202e}b": {"domain": "x\u{200b}.test \"y\" \\ hidden1end", "n": 1}},
            "list": ["\u{e0001}", "two\nlines\tof \u{feff}text", "plain", "hidden0end", null, true],
        });
        let text = to_yaml(&value).unwrap();
        assert!(!text.chars().any(must_be_escaped), "{text}");
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }
}
