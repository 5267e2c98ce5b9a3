//! What a run of the benchmarks came to: a table while it runs, then one JSON file and one HTML page with plots.

mod page;
mod plots;
mod samples;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

pub use samples::Samples;

/// One line of the table: a figure at one size, beside its floor if it has one.
#[derive(Clone, Debug)]
pub struct Row {
    /// The benchmark's name, as it is asked for on the command line.
    pub bench: &'static str,
    /// What was measured, with its unit: "announce → traffic, ms".
    pub what: String,
    /// How many upstreams or services were there. `None` if that says nothing.
    pub size: Option<usize>,
    pub samples: Samples,
    /// The same, by the least that could do it, in turns with ours.
    pub floor: Option<Samples>,
}

/// What happened over the time of one run: points of milliseconds, and the moments that a reader looks for.
#[derive(Clone, Debug)]
pub struct Timeline {
    pub title: String,
    /// When a request was sent, and how long its answer took.
    pub points: Vec<(f64, f64)>,
    /// Moments with their names.
    pub marks: Vec<(f64, String)>,
}

/// Everything that was measured in one run.
#[derive(Debug)]
pub struct Report {
    /// Versions and the machine, by name.
    pub about: Vec<(&'static str, String)>,
    pub rows: Vec<Row>,
    pub timelines: Vec<Timeline>,
}

impl Report {
    /// Prints the table's head.
    pub fn begin(about: Vec<(&'static str, String)>) -> Self {
        for (name, value) in &about {
            println!("{name}: {value}");
        }
        println!("{:<40} {:>6} {:>8} {:>8} {:>8} {:>5}", "", "size", "median", "p99", "floor", "ratio");
        Self { about, rows: Vec::new(), timelines: Vec::new() }
    }

    /// Prints a row, and keeps it for the files.
    pub fn add(&mut self, row: Row) {
        println!("{row}");
        self.rows.push(row);
    }

    /// Adds a figure that was measured once.
    pub fn add_figure(&mut self, bench: &'static str, what: &str, size: Option<usize>, value: f64) {
        self.add(Row { bench, what: what.to_owned(), size, samples: Samples::new([value]), floor: None });
    }

    /// Writes both files, and says where they are.
    ///
    /// # Errors
    /// If a file can't be written or a plot can't be drawn.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        let (figures, page) = (folder.join("bench.json"), folder.join("bench.html"));
        lab::write(&figures, serde_json::to_string_pretty(&self.as_json())?);
        lab::write(&page, page::render_page(self)?);
        println!("{}\n{}", figures.display(), page.display());
        Ok(())
    }

    fn as_json(&self) -> Value {
        let about: serde_json::Map<_, _> =
            self.about.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let rows: Vec<Value> = self.rows.iter().map(Row::as_json).collect();
        json!({ "about": about, "rows": rows })
    }
}

impl Row {
    /// Ours to the floor's, by the medians.
    pub fn ratio(&self) -> Option<f64> {
        self.floor.as_ref().map(|floor| self.samples.median() / floor.median())
    }

    fn as_json(&self) -> Value {
        let show = |samples: &Samples| {
            json!({
                "count": samples.values().len(),
                "least": samples.least(),
                "median": samples.median(),
                "p99": samples.percentile(0.99),
                "most": samples.most(),
                "values": samples.values(),
            })
        };
        json!({
            "bench": self.bench,
            "what": self.what,
            "size": self.size,
            "ours": show(&self.samples),
            "floor": self.floor.as_ref().map(show),
            "ratio": self.ratio(),
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = self.size.map(|size| size.to_string()).unwrap_or_default();
        let median = show_value(self.samples.median());
        write!(f, "{:<40} {size:>6} {median:>8}", self.what)?;
        if self.samples.values().len() > 1 {
            write!(f, " {:>8}", show_value(self.samples.percentile(0.99)))?;
        }
        if let (Some(floor), Some(ratio)) = (&self.floor, self.ratio()) {
            write!(f, " {:>8} {ratio:>5.2}", show_value(floor.median()))?;
        }
        Ok(())
    }
}

/// A value in as many digits as say something.
fn show_value(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 1_000.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
