//! Answers, for people and for programs: each is a value that serde writes, and tables made from it.

mod cell;
pub(crate) mod yaml;

use std::io::{self, IsTerminal};
use std::time::Duration;

use comfy_table::{Attribute, Color, ContentArrangement, presets};
use program::output;
use program::text::{escape_json, escape_line, escape_lines};
use serde::Serialize;

pub(crate) use cell::{Cell, Tone};
pub(crate) use yaml::to_yaml;

use crate::error::Error;
use crate::shared_options::Format;

/// An answer. What serde writes of it is for programs: names that are there stay.
pub(crate) trait Printable: Serialize {
    /// The same for people.
    fn to_blocks(&self) -> Vec<Block>;
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
    /// Lines, each of them in one line whatever it holds. None without any line.
    pub(crate) fn from_lines(lines: impl Iterator<Item = String>) -> Option<Self> {
        let lines: Vec<String> = lines.map(|line| escape_line(&line).into_owned()).collect();
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
    pub(crate) fn add_row<const N: usize>(&mut self, cells: [Cell; N]) {
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
        let colors = output::takes_colors(&io::stdout());
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

    /// Prints an answer. Nothing waits for the reader before the end of the command: see [`until_written`].
    pub(crate) fn show(&self, answer: &impl Printable) -> Result<(), Error> {
        self.render_answer(answer).map(|text| write_text(&text))
    }

    /// Prints lines, with their hidden characters escaped and a line feed at the end.
    pub(crate) fn print(&self, text: &str) {
        write_text(&escape_lines(text));
    }

    /// Ends the wait for a reader that does not read: what it has not taken by now is dropped.
    pub(crate) fn flush_briefly(&self) {
        if !output::stdout().flush(Some(LAST_FLUSH)) {
            output::stdout().abandon();
        }
    }

    pub(crate) fn render_answer(&self, answer: &impl Printable) -> Result<String, Error> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string_pretty(answer).map_err(|error| Error::Failed(error.to_string()))?;
                Ok(escape_json(&json).into_owned())
            }
            Format::Yaml => to_yaml(answer),
            Format::Plain => Ok(render_plain(&answer.to_blocks())),
            Format::Table => Ok(self.render_blocks(&answer.to_blocks())),
        }
    }

    fn render_blocks(&self, blocks: &[Block]) -> String {
        let block = |block: &Block| match block {
            Block::Text(text) => escape_lines(text).into_owned(),
            Block::Table(table) if table.rows.is_empty() => String::new(),
            Block::Table(table) => self.render_table(table),
        };
        let blocks: Vec<String> = blocks.iter().map(block).filter(|text| !text.is_empty()).collect();
        blocks.join("\n\n")
    }

    fn render_table(&self, table: &Table) -> String {
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

/// How long the end of a command that prints without end waits for a slow reader.
const LAST_FLUSH: Duration = Duration::from_millis(200);

fn write_text(text: &str) {
    output::stdout().queue_line(format!("{}\n", text.trim_end_matches('\n')).into_bytes());
}

/// One value in one line of JSON.
pub(crate) fn json_line(answer: &impl Serialize) -> Result<String, Error> {
    let json = serde_json::to_string(answer).map_err(|error| Error::Failed(error.to_string()))?;
    Ok(escape_json(&json).into_owned())
}

/// Waits until all that was printed is written. False if the reader has gone, as `head` goes: no error.
pub(crate) async fn until_written() -> Result<bool, Error> {
    // On a thread of its own: a reader may take its time, and a signal still ends the command.
    let _ = tokio::task::spawn_blocking(|| output::stdout().flush(None)).await;
    match output::stdout().first_error() {
        None => Ok(true),
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Some(error) => Err(Error::Failed(format!("standard output can't be written: {error}"))),
    }
}

/// The rows of all tables, cells separated by tabs; text where there is no table.
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
            let screen = Screen { format, is_terminal: false, colors: false };
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
    fn hidden_characters_are_escaped_in_every_form() {
        let name = "a\u{202e}b\u{200b}\u{2028}\u{9b}\u{e0041}";
        for format in [Format::Table, Format::Plain, Format::Json, Format::Yaml] {
            let text = Screen { format, is_terminal: false, colors: false }.render_answer(&Answer { name }).unwrap();
            assert!(
                !text.chars().any(|c| !matches!(c, '\n' | '\t') && program::text::is_hidden(c)),
                "{format:?}: {text}"
            );
            assert!(text.contains("202e") && text.contains("200b"), "{format:?}: {text}");
        }
        let text =
            |format| Screen { format, is_terminal: false, colors: false }.render_answer(&Answer { name }).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text(Format::Json)).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(&text(Format::Yaml)).unwrap();
        assert_eq!((json["name"].as_str(), yaml["name"].as_str()), (Some(name), Some(name)));
    }
}
