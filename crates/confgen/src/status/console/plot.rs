//! Small plots: the path of an SVG from a service's samples. Pure.

use std::fmt::Write as _;

use super::format::{format_figure, format_latency};
use crate::status::series::Trend;

/// The plots' width and height in their own units. A minute has six units.
pub const WIDTH: f32 = 90.0;
const HEIGHT: f32 = 20.0;
/// A line at the very edge would be cut in half.
const MARGIN: f32 = 1.5;
/// The time that a plot shows, in seconds.
const SPAN: f32 = 900.0;

/// One plot with its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    /// The attribute `d` of the path: digits, points and the letters M, L and H. Empty without samples.
    pub path: String,
    /// The last sample.
    pub now: String,
    /// The highest sample.
    pub most: String,
}

/// The four plots of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plots {
    pub sessions: Plot,
    pub requests: Plot,
    pub errors: Plot,
    pub latency: Plot,
}

impl Plots {
    pub fn new(trend: &Trend) -> Self {
        let plot = |values: &[Option<f32>], format: fn(Option<f32>) -> String| Plot::new(&trend.ages, values, format);
        Self {
            sessions: plot(&trend.sessions, format_figure),
            requests: plot(&trend.requests, format_figure),
            errors: plot(&trend.errors, format_figure),
            latency: plot(&trend.latency, format_latency),
        }
    }
}

impl Plot {
    fn new(ages: &[f32], values: &[Option<f32>], format: fn(Option<f32>) -> String) -> Self {
        let most = values.iter().flatten().copied().reduce(f32::max);
        Self {
            path: draw_path(ages, values, most.unwrap_or_default()),
            now: format(values.last().copied().flatten()),
            most: format(most),
        }
    }
}

/// Draws the samples from left to right. A gap lifts the pen, and a level line is one stroke.
fn draw_path(ages: &[f32], values: &[Option<f32>], most: f32) -> String {
    let mut path = String::new();
    let mut last: Option<(i32, i32)> = None;
    let mut level_until = None;
    // Zeros stand at the bottom. A scale of their own would draw them in the middle.
    let scale = if most > 0.0 { (HEIGHT - 2.0 * MARGIN) / most } else { 0.0 };
    for (age, value) in ages.iter().zip(values) {
        let x = ((1.0 - age / SPAN).clamp(0.0, 1.0) * WIDTH).round() as i32;
        // In tenths, so that the path has few digits.
        let y = value.map(|value| ((HEIGHT - MARGIN - value * scale) * 10.0).round() as i32);
        let is_level = y.is_some() && last.map(|(_, y)| y) == y;
        if !is_level && let Some(x) = level_until.take() {
            _ = write!(path, "H{x}");
        }
        match (y, last) {
            (None, _) => last = None,
            (Some(y), Some(_)) if is_level => (level_until, last) = (Some(x), Some((x, y))),
            (Some(y), Some(_)) => {
                _ = write!(path, "L{x} {}", tenths(y));
                last = Some((x, y));
            }
            (Some(y), None) => {
                _ = write!(path, "M{x} {}", tenths(y));
                last = Some((x, y));
            }
        }
    }
    if let Some(x) = level_until {
        _ = write!(path, "H{x}");
    }
    path
}

fn tenths(value: i32) -> String {
    let (whole, rest) = (value / 10, value % 10);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_gaps_and_level_lines() {
        let ages: Vec<f32> = (0..6_u8).rev().map(|age| f32::from(age) * 150.0).collect();
        let draw =
            |values: [Option<f32>; 6]| draw_path(&ages, &values, values.iter().flatten().copied().fold(0.0, f32::max));
        assert_eq!(draw([None; 6]), "");
        assert_eq!(draw([Some(0.0); 6]), "M15 18.5H90");
        assert_eq!(draw([Some(0.0), Some(0.0), Some(4.0), Some(4.0), None, Some(2.0)]), "M15 18.5H30L45 1.5H60M90 10");
        assert_eq!(draw([None, Some(1.0), None, Some(2.0), Some(1.0), Some(1.0)]), "M30 10M60 1.5L75 10H90");
        assert_eq!(draw_path(&[1e9, 0.0], &[Some(1.0), Some(f32::INFINITY)], 1.0).matches(['M', 'L', 'H']).count(), 2);
    }

    #[test]
    fn a_plot_names_the_last_and_the_highest_figure() {
        let trend = Trend {
            ages: vec![15.0, 0.0],
            sessions: vec![Some(3.0), Some(2.0)],
            requests: vec![None, Some(12.5)],
            errors: vec![None, None],
            latency: vec![None, Some(24.0)],
        };
        let Plots { sessions, requests, errors, latency } = Plots::new(&trend);
        assert_eq!((sessions.now.as_str(), sessions.most.as_str()), ("2", "3"));
        assert_eq!((requests.now.as_str(), errors.now.as_str(), latency.now.as_str()), ("12.5", "–", "24 ms"));
        assert_eq!(Plots::new(&Trend::default()).sessions.path, "");
    }
}
