//! The limited number of copies of a service, as tables. `discovery` judges them. Pure.

use discovery::CopyReport;

use crate::print::{Block, Cell, Table};

/// The counts in one cell.
pub(super) fn summary_cell(report: &CopyReport) -> Cell {
    if report.lacks_copies() { Cell::bad(report.summary()) } else { report.summary().into() }
}

/// The copies as a table, and a line with the counts.
pub(super) fn blocks(report: &CopyReport) -> Vec<Block> {
    let mut table = Table::new(["COPY", "HOST", "SLOT", "SINCE", "WHY"]);
    for slot in &report.slots {
        let (id, host) = (Cell::or_dash(slot.id.as_ref()), Cell::or_dash(slot.host.as_ref()));
        let why = match (&slot.refused, &slot.successor) {
            (Some(refused), _) => Cell::bad(refused),
            (None, Some(successor)) => Cell::odd(format!("it hands the slot over to {successor}")),
            (None, None) if slot.leaving => Cell::odd("it is about to stop, and hands the slot over"),
            (None, None) => Cell::good("it holds the slot"),
        };
        table.add_row([id, host, slot.number.to_string().into(), Cell::or_dash(slot.since.as_ref()), why]);
    }
    for standby in &report.standby {
        let (host, since) = (Cell::or_dash(standby.host.as_ref()), Cell::or_dash(standby.since.as_ref()));
        table.add_row([standby.id.as_str().into(), host, "–".into(), since, Cell::odd(&standby.why)]);
    }
    let counts = format!("copies: {}", report.remark.as_deref().unwrap_or(&report.summary()));
    let line = Block::from_lines([counts].into_iter());
    [Block::Table(table)].into_iter().chain(line).collect()
}
