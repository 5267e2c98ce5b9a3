//! The layout of a table: columns if each word fits into the width, otherwise the rows one below the other. Pure.

use super::{Cell, Table};

/// The blanks between two columns.
pub(super) const GAP: usize = 2;

/// The least width of each column, so that no word is cut.
pub(super) fn least_widths(table: &Table) -> Vec<usize> {
    let of_column = |(at, head): (usize, &&'static str)| {
        let cells = table.rows.iter().filter_map(|row| row.get(at)).map(Cell::text);
        cells.chain([*head]).map(longest_word).max().unwrap_or_default()
    };
    table.head.iter().enumerate().map(of_column).collect()
}

/// True if columns of these widths fit.
pub(super) fn fits(least_widths: &[usize], width: usize) -> bool {
    least_widths.iter().map(|least| least + GAP).sum::<usize>() <= width
}

/// The rows one below the other: a line for each cell, with its column's name before it. A cell wraps at blanks.
pub(super) fn stack_rows(table: &Table, width: usize) -> String {
    let names = table.head.iter().map(|name| length(name)).max().unwrap_or_default();
    let rows = table.rows.iter().map(|row| {
        let cells = table.head.iter().zip(row).map(|(name, cell)| stack_cell(name, cell.text(), names, width));
        cells.collect::<Vec<_>>().join("\n")
    });
    rows.collect::<Vec<_>>().join("\n\n")
}

fn stack_cell(name: &str, text: &str, names: usize, width: usize) -> String {
    let indent = names + GAP;
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && indent + length(&line) + 1 + length(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    let first = format!("{name:<indent$}");
    let rest = format!("\n{:indent$}", "");
    first + &lines.join(&rest)
}

fn longest_word(text: &str) -> usize {
    text.split(' ').map(length).max().unwrap_or_default()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["KEY", "TO DO"]);
        table.add_row(["http-services/shop/domain".into(), "take the host out".into()]);
        table.add_row(["b".into(), "–".into()]);
        table
    }

    #[test]
    fn a_table_fits_if_the_longest_words_do() {
        assert_eq!(least_widths(&table()), [25, 4]);
        assert!(fits(&[25, 4], 33) && !fits(&[25, 4], 32));
    }

    #[test]
    fn stacked_rows_wrap_at_blanks_and_cut_no_word() {
        assert_eq!(
            stack_rows(&table(), 20).lines().collect::<Vec<_>>(),
            ["KEY    http-services/shop/domain", "TO DO  take the host", "       out", "", "KEY    b", "TO DO  –",]
        );
    }
}
