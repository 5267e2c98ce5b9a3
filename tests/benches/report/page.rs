//! One HTML page with the table and the plots, which needs no other file.

use std::collections::BTreeSet;

use askama::Template;

use super::{Report, Row, plots, show_value};

#[derive(Template)]
#[template(path = "bench.html")]
struct Page<'a> {
    report: &'a Report,
    cells: Vec<[String; 9]>,
    plots: Vec<String>,
}

/// The whole page.
///
/// # Errors
/// If a plot can't be drawn.
pub fn render_page(report: &Report) -> anyhow::Result<String> {
    let cells = report.rows.iter().map(cells_of).collect();
    Ok(Page { report, cells, plots: draw_plots(report)? }.render()?)
}

/// A row of the table, as its head names the columns.
fn cells_of(row: &Row) -> [String; 9] {
    let samples = &row.samples;
    let [median, least, p99, most] =
        [samples.median(), samples.least(), samples.percentile(0.99), samples.most()].map(show_value);
    let size = row.size.map(|size| size.to_string()).unwrap_or_default();
    let floor = row.floor.as_ref().map(|floor| show_value(floor.median())).unwrap_or_default();
    let ratio = row.ratio().map(show_value).unwrap_or_default();
    [row.what.clone(), size, median, least, p99, most, floor, ratio, samples.values().len().to_string()]
}

fn draw_plots(report: &Report) -> anyhow::Result<Vec<String>> {
    let mut drawn = Vec::new();
    for timeline in &report.timelines {
        drawn.push(plots::draw_timeline(timeline)?);
    }
    let titles: BTreeSet<&str> = report.rows.iter().map(|row| row.what.as_str()).collect();
    for title in titles {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.what == title).collect();
        if rows.iter().any(|row| row.samples.values().len() > 1) {
            drawn.push(plots::draw_distribution(title, &rows)?);
        }
        if rows.iter().filter(|row| row.size.is_some()).count() > 1 {
            drawn.push(plots::draw_cost(title, &rows)?);
        }
    }
    Ok(drawn)
}
