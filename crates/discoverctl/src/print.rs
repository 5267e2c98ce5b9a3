//! Answers, for people and for programs: each is a value that serde writes, and tables made from it.

mod cell;

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Color, ContentArrangement, presets};
use serde::Serialize;

pub(crate) use cell::{Cell, Tone};

use crate::args::Format;
use crate::error::Error;

/// An answer. What serde writes of it is for programs: names that are there stay.
pub(crate) trait Shown: Serialize {
    /// The same for people.
    fn blocks(&self) -> Vec<Block>;
}

/// A part of an answer for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    /// Lines.
    Text(String),
    /// A table.
    Table(Table),
}

impl Block {
    /// Lines; None where there is none.
    pub(crate) fn lines(lines: impl Iterator<Item = String>) -> Option<Self> {
        let lines: Vec<String> = lines.collect();
        (!lines.is_empty()).then(|| Self::Text(lines.join("\n")))
    }
}

/// A table; its rows are as long as its head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// The columns' names, in capitals.
    pub(crate) head: Vec<&'static str>,
    /// The rows.
    pub(crate) rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new<const N: usize>(head: [&'static str; N]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// One more row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }
}

/// Where answers go: standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    format: Format,
    is_terminal: bool,
    /// On a terminal, unless `NO_COLOR` is set (no-color.org).
    colors: bool,
}

impl Screen {
    /// The process's standard output.
    pub(crate) fn new(format: Format) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let colors = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, is_terminal, colors }
    }

    /// One that nobody reads.
    #[cfg(test)]
    pub(crate) fn for_test(format: Format) -> Self {
        Self { format, is_terminal: false, colors: false }
    }

    /// How answers are printed.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Whether programs read it.
    pub(crate) fn is_for_programs(&self) -> bool {
        matches!(self.format, Format::Json | Format::Yaml)
    }

    /// Whether they read JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints an answer. A reader that has gone, as `head` goes, is no error.
    pub(crate) fn show(&self, answer: &impl Shown) -> Result<(), Error> {
        self.print(&self.text(answer)?)
    }

    /// Prints text as it is, a line feed at its end.
    pub(crate) fn print(&self, text: &str) -> Result<(), Error> {
        self.line(text).map(|_| ())
    }

    /// The same; false where the reader has gone.
    pub(crate) fn line(&self, text: &str) -> Result<bool, Error> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::Failed(format!("standard output can't be written: {error}"))),
        }
    }

    pub(crate) fn text(&self, answer: &impl Shown) -> Result<String, Error> {
        match self.format {
            Format::Json => serde_json::to_string_pretty(answer).map_err(|error| Error::Failed(error.to_string())),
            Format::Yaml => serde_saphyr::to_string(answer).map_err(|error| Error::Failed(error.to_string())),
            Format::Plain => Ok(plain(&answer.blocks())),
            Format::Table => Ok(self.people(&answer.blocks())),
        }
    }

    fn people(&self, blocks: &[Block]) -> String {
        let block = |block: &Block| match block {
            Block::Text(text) => cell::printable(text, true),
            Block::Table(table) if table.rows.is_empty() => String::new(),
            Block::Table(table) => self.table(table),
        };
        let blocks: Vec<String> = blocks.iter().map(block).filter(|text| !text.is_empty()).collect();
        blocks.join("\n\n")
    }

    fn table(&self, table: &Table) -> String {
        let mut drawn = comfy_table::Table::new();
        drawn.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if self.colors {
            drawn.enforce_styling();
        } else if !self.is_terminal {
            drawn.force_no_tty();
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
        for column in drawn.column_iter_mut() {
            column.set_padding((0, 2));
        }
        drawn.trim_fmt()
    }
}

/// The rows of all tables, cells separated by tabs; text where there is no table.
fn plain(blocks: &[Block]) -> String {
    let tables = blocks.iter().filter_map(|block| match block {
        Block::Table(table) => Some(table),
        Block::Text(_) => None,
    });
    let rows: Vec<String> = tables
        .flat_map(|table| &table.rows)
        .map(|row| row.iter().map(Cell::text).collect::<Vec<_>>().join("\t"))
        .collect();
    let text = blocks.iter().filter_map(|block| match block {
        Block::Text(text) => Some(cell::printable(text, true)),
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

    impl Shown for Answer {
        fn blocks(&self) -> Vec<Block> {
            let mut table = Table::new(["NAME", "STATE"]);
            table.row([self.name.into(), Cell::good("up")]);
            table.row(["b".into(), Cell::of(None::<u8>)]);
            vec![Block::Text("two of them".into()), Block::Table(table)]
        }
    }

    #[test]
    fn one_answer_in_four_forms() {
        let text = |format| {
            let screen = Screen { format, is_terminal: false, colors: false };
            screen.text(&Answer { name: "a\u{1b}[31m\tx" }).unwrap()
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
}
