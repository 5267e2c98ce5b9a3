//! Prints answers, as tables for people and as JSON or YAML for programs.
//!
//! Turns answers into text, and decides nothing about them. Characters that would change a terminal's state are
//! escaped.

mod cell;
mod layout;
pub(crate) mod yaml;

use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::{Attribute, Color, ColumnConstraint, ContentArrangement, Width, presets};
use program::output;
use program::text::{escape_json, escape_line, escape_lines};
use serde::Serialize;

pub(crate) use cell::{Cell, Tone};
pub(crate) use yaml::to_yaml;

use crate::error::Error;
use crate::shared_options::Format;

/// An answer. serde writes it for programs, and published names stay.
pub(crate) trait Printable: Serialize {
    fn to_blocks(&self) -> Vec<Block>;
}

/// A part of an answer for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    /// One or more lines of text.
    Text(String),
    Table(Table),
}

impl Block {
    /// Makes a block of lines. A line break inside of one is escaped. None if there are no lines.
    pub(crate) fn from_lines(lines: impl Iterator<Item = String>) -> Option<Self> {
        let lines: Vec<String> = lines.map(|line| escape_line(&line).into_owned()).collect();
        (!lines.is_empty()).then(|| Self::Text(lines.join("\n")))
    }
}

/// A table. Each row has as many cells as the head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// The columns' names, in capitals.
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows yet.
    pub(crate) fn new<const N: usize>(head: [&'static str; N]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn add_row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }
}

/// Standard output, and the form in which it gets answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    format: Format,
    is_terminal: bool,
    /// Standard output is a terminal, and `NO_COLOR` isn't set (no-color.org).
    colors: bool,
    /// The value of the variable `COLUMNS`. None if the terminal's own width counts, which a file or a pipe doesn't have.
    width: Option<u16>,
}

impl Screen {
    pub(crate) fn new(format: Format) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let colors = output::takes_colors(&io::stdout());
        // Below 20 columns nothing can be read, and a shell that doesn't know the width says 0.
        let width = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|width| *width >= 20);
        Self { format, is_terminal, colors, width }
    }

    /// A screen for tests, which is no terminal.
    #[cfg(test)]
    pub(crate) fn for_test(format: Format) -> Self {
        Self { format, is_terminal: false, colors: false, width: None }
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Programs read the output: it is JSON or YAML.
    pub(crate) fn is_for_programs(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints an answer. It doesn't wait for the reader, which [`until_written`] does at the end of the command.
    pub(crate) fn show(&self, answer: &impl Printable) -> Result<(), Error> {
        self.render_answer(answer).map(|text| write_text(&text))
    }

    /// Prints lines. Hidden characters are escaped, and a line feed ends the text.
    pub(crate) fn print(&self, text: &str) {
        write_text(&escape_lines(text));
    }

    /// Waits briefly for a slow reader, and drops the rest of the output.
    pub(crate) fn flush_briefly(&self) {
        if !output::stdout().flush(Some(LAST_FLUSH)) {
            output::stdout().abandon();
        }
    }

    pub(crate) fn render_answer(&self, answer: &impl Printable) -> Result<String, Error> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string_pretty(answer).map_err(|error| Error::Failed(error.to_string()))?;
                // serde_json escapes control characters, and leaves bidi and zero-width characters as they are.
                Ok(escape_json(&json).into_owned())
            }
            Format::Yaml => to_yaml(answer),
            Format::Plain => Ok(render_plain(&answer.to_blocks())),
            Format::Table => Ok(self.render_blocks(&answer.to_blocks())),
        }
    }

    fn render_blocks(&self, blocks: &[Block]) -> String {
        let mut texts = Vec::new();
        for block in blocks {
            texts.push(match block {
                Block::Text(text) => escape_lines(text).into_owned(),
                Block::Table(table) if table.rows.is_empty() => continue,
                Block::Table(table) => self.render_table(table),
            });
        }
        texts.retain(|text| !text.is_empty());
        texts.join("\n\n")
    }

    fn render_table(&self, table: &Table) -> String {
        let mut drawn = comfy_table::Table::new();
        drawn.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if self.colors {
            drawn.enforce_styling();
        } else if !self.is_terminal {
            // comfy-table would ask for the terminal's width, which a file or a pipe doesn't have.
            drawn.force_no_tty();
        }
        if let Some(width) = self.width {
            drawn.set_width(width);
        }
        let least_widths = layout::least_widths(table);
        if let Some(width) = drawn.width().map(usize::from).filter(|width| !layout::fits(&least_widths, *width)) {
            return layout::stack_rows(table, width);
        }
        let head = table.head.iter().map(|name| comfy_table::Cell::new(name).add_attribute(Attribute::Bold));
        drawn.set_header(head);
        for row in &table.rows {
            drawn.add_row(row.iter().map(|cell| {
                let drawn = comfy_table::Cell::new(cell.text());
                match cell.tone() {
                    Tone::Plain => drawn,
                    Tone::Good => drawn.fg(Color::Green),
                    Tone::Odd => drawn.fg(Color::Yellow),
                    Tone::Bad => drawn.fg(Color::Red),
                }
            }));
        }
        for (column, least) in drawn.column_iter_mut().zip(least_widths) {
            column.set_padding((0, u16::try_from(layout::GAP).unwrap_or_default()));
            // Without it, comfy-table would cut the words of a narrow column to make room for a wide one.
            let least = u16::try_from(least + layout::GAP).unwrap_or(u16::MAX);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
        }
        drawn.trim_fmt()
    }
}

/// The longest wait for a slow reader at the end of a command that prints until it is stopped.
const LAST_FLUSH: Duration = Duration::from_millis(200);

fn write_text(text: &str) {
    output::stdout().queue_line(format!("{}\n", text.trim_end_matches('\n')).into_bytes());
}

/// Writes a value as one line of JSON.
pub(crate) fn json_line(answer: &impl Serialize) -> Result<String, Error> {
    let json = serde_json::to_string(answer).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(escape_json(&json).into_owned())
}

/// Waits until everything is written. False if the reader has closed the pipe, as `head` does, which is no error.
pub(crate) async fn until_written() -> Result<bool, Error> {
    // The flush blocks, and a reader may take its time. On a thread of its own it leaves signals free to end the
    // command.
    let _ = tokio::task::spawn_blocking(|| output::stdout().flush(None)).await;
    match output::stdout().first_error() {
        None => Ok(true),
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Some(error) => Err(Error::Failed(format!("standard output can't be written: {error}"))),
    }
}

/// Renders tables without heads, with cells separated by tabs. Text is only rendered if there is no table.
fn render_plain(blocks: &[Block]) -> String {
    let tables = blocks.iter().filter_map(|block| match block {
        Block::Table(table) => Some(table),
        Block::Text(_) => None,
    });
    let rows: Vec<String> = tables
        .flat_map(|table| &table.rows)
        .map(|row| row.iter().map(Cell::text).collect::<Vec<_>>().join("\t"))
        .collect();
    let text = blocks.iter().filter_map(|block| match block {
        Block::Text(text) => Some(escape_lines(text)),
        Block::Table(_) => None,
    });
    let has_table = blocks.iter().any(|block| matches!(block, Block::Table(_)));
    if has_table { rows.join("\n") } else { text.collect::<Vec<_>>().join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Answer {
        name: &'static str,
    }

    impl Printable for Answer {
        fn to_blocks(&self) -> Vec<Block> {
            let mut table = Table::new(["NAME", "STATE"]);
            table.add_row([self.name.into(), Cell::good("up")]);
            table.add_row(["b".into(), Cell::or_dash(None::<u8>)]);
            vec![Block::Text("two of them".into()), Block::Table(table)]
        }
    }

    #[test]
    fn one_answer_in_four_forms() {
        let text = |format| {
            let screen = Screen::for_test(format);
            screen.render_answer(&Answer { name: "a\u{1b}[31m\tx" }).unwrap()
        };
        let table = text(Format::Table);
        assert_eq!(
            table.lines().collect::<Vec<_>>(),
            ["two of them", "", "NAME            STATE", r"a\u{1b}[31m\tx  up", "b               –"]
                .map(str::to_owned)
                .to_vec(),
            "{table}"
        );
        assert_eq!(text(Format::Plain), "a\\u{1b}[31m\\tx\tup\nb\t–");
        assert!(text(Format::Json).contains(r#""name": "a\u001b[31m\tx""#));
        assert!(text(Format::Yaml).starts_with("name: "));
    }

    #[test]
    fn a_table_of_80_columns_cuts_no_word() {
        let text = |texts: [&str; 2]| {
            let mut table = Table::new(["KEY", "WHAT"]);
            table.add_row(texts.map(Cell::from));
            let screen = Screen { width: Some(80), ..Screen::for_test(Format::Table) };
            screen.render_blocks(&[Block::Table(table)])
        };
        let key = "http-services/a-service-with-a-long-name/upstreams/node-1";
        let what =
            "a sentence of many words that goes on and on until it is much longer than a line of the terminal is";
        let beside = text([key, what]);
        assert!(beside.starts_with("KEY") && beside.lines().count() > 2, "{beside}");
        let below = text([&format!("{key}{key}"), what]);
        assert!(below.starts_with("KEY   http"), "{below}");
        for (text, longest) in [(&beside, 80), (&below, 2 * key.len() + 6)] {
            assert!(text.lines().all(|line| line.chars().count() <= longest), "{text}");
            let words = text.split_whitespace().collect::<Vec<_>>();
            assert!(what.split(' ').all(|word| words.contains(&word)), "{text}");
        }
    }

    #[test]
    fn hidden_characters_are_escaped_in_every_form() {
        let name = "a\u{202e}b\u{200b}\u{2028}\u{9b}\u{e0041}";
        for format in [Format::Table, Format::Plain, Format::Json, Format::Yaml] {
            let text = Screen::for_test(format).render_answer(&Answer { name }).unwrap();
            assert!(
                !text.chars().any(|c| !matches!(c, '\n' | '\t') && program::text::is_hidden(c)),
                "{format:?}: {text}"
            );
            assert!(text.contains("202e") && text.contains("200b"), "{format:?}: {text}");
        }
        let text = |format| Screen::for_test(format).render_answer(&Answer { name }).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(Format::Json)).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&text(Format::Yaml)).unwrap();
        assert_eq!((json["name"].as_str(), yaml["name"].as_str()), (Some(name), Some(name)));
    }
}
