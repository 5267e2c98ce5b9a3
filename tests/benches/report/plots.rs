//! Plots as SVG: latency distributions, cost against size, a run's timeline.

use std::ops::Range;

use anyhow::Context as _;
use plotters::prelude::*;

use super::{Row, Samples, Timeline};

const SIZE: (u32, u32) = (640, 360);

/// Which share of the rounds took at most how long: a line for each size, ours whole and the floor thin.
pub fn draw_distribution(title: &str, rows: &[&Row]) -> anyhow::Result<String> {
    let all = rows.iter().flat_map(|row| [Some(&row.samples), row.floor.as_ref()]).flatten();
    let across = span_of(all.flat_map(Samples::values).copied());
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(40)
            .build_cartesian_2d(across.log_scale(), 0.0..100.0)?;
        chart.configure_mesh().y_desc("% of rounds").light_line_style(TRANSPARENT).draw()?;
        for (index, row) in rows.iter().enumerate() {
            let color = Palette99::pick(index).to_rgba();
            let name = row.size.map_or_else(|| "ours".to_owned(), |size| format!("at {size}"));
            let drawn = chart.draw_series(LineSeries::new(steps_of(&row.samples), color.stroke_width(2)))?;
            drawn.label(name).legend(move |at| PathElement::new(vec![at, (at.0 + 14, at.1)], color.stroke_width(2)));
            if let Some(floor) = &row.floor {
                chart.draw_series(LineSeries::new(steps_of(floor), color.stroke_width(1)))?;
            }
        }
        chart.configure_series_labels().border_style(TRANSPARENT).position(SeriesLabelPosition::LowerRight).draw()?;
        Ok(())
    })
}

/// The medians against the size: ours with dots, the floor as a line.
pub fn draw_cost(title: &str, rows: &[&Row]) -> anyhow::Result<String> {
    let sized = |row: &&&Row| row.size.map(|size| (size as f64, row.samples.median()));
    let ours: Vec<(f64, f64)> = rows.iter().filter_map(|row| sized(&row)).collect();
    let floor: Vec<(f64, f64)> =
        rows.iter().filter_map(|row| Some((row.size? as f64, row.floor.as_ref()?.median()))).collect();
    let across = span_of(ours.iter().map(|point| point.0));
    let up = span_of(ours.iter().chain(&floor).map(|point| point.1));
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{title}, against size"), ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(across.log_scale(), 0.0..up.end)?;
        chart.configure_mesh().x_desc("upstreams or services").light_line_style(TRANSPARENT).draw()?;
        let color = Palette99::pick(0).to_rgba();
        chart.draw_series(LineSeries::new(ours.iter().copied(), color.stroke_width(2)).point_size(3))?;
        chart.draw_series(LineSeries::new(floor.iter().copied(), BLACK.stroke_width(1)))?;
        Ok(())
    })
}

/// Each answer's time at the moment of its request.
pub fn draw_timeline(timeline: &Timeline) -> anyhow::Result<String> {
    let across = 0.0..timeline.points.iter().map(|point| point.0).fold(1.0, f64::max);
    let up = span_of(timeline.points.iter().map(|point| point.1));
    draw(|area| {
        let mut chart = ChartBuilder::on(area)
            .caption(&timeline.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(across.clone(), up.clone().log_scale())?;
        chart.configure_mesh().x_desc("ms").y_desc("answer, ms").light_line_style(TRANSPARENT).draw()?;
        let color = Palette99::pick(0).to_rgba();
        chart.draw_series(timeline.points.iter().map(|point| Circle::new(*point, 1, color.filled())))?;
        for (at, name) in &timeline.marks {
            let line = vec![(*at, up.start), (*at, up.end)];
            chart.draw_series([PathElement::new(line, RED.stroke_width(1))])?;
            chart.draw_series([Text::new(name.clone(), (*at, up.end), ("sans-serif", 12))])?;
        }
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(onto: impl FnOnce(&Area<'_>) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        onto(&area)?;
        area.present().context("drawing a plot")?;
    }
    Ok(svg)
}

/// The values as a staircase from 0 to 100 %.
fn steps_of(samples: &Samples) -> impl Iterator<Item = (f64, f64)> {
    let count = samples.values().len() as f64;
    let share = move |rank: usize| 100.0 * (rank + 1) as f64 / count;
    samples.values().iter().enumerate().map(move |(rank, value)| (value.max(0.001), share(rank)))
}

/// From the least to the most, with some room, and never empty: a logarithmic axis needs both.
fn span_of(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) =
        values.fold((f64::MAX, 0.001), |(least, most), value| (f64::min(least, value), f64::max(most, value)));
    let least = least.clamp(0.001, most);
    least * 0.8..most * 1.25
}
