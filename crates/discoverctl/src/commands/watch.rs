//! `watch`: prints upstreams as they come, go and change.

mod key_changes;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use discovery::{BalancerRecords, ServiceId, Topology, UpstreamId};
use program::output;
use registry::{Event, FollowOptions};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use self::key_changes::{KeyChange, list_key_changes};
use crate::balancer_api::{Answers, BalancerApi, Upstreams};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Cell, Screen, json_line, to_yaml, until_written};
use crate::shared_options::Format;
use crate::target::ServiceArg;
use crate::upstreams::{BalancerView, Row, build_rows};
use crate::verdict::Keys;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl watch
  discoverctl watch shop --for 1m
  discoverctl watch shop --changes
  discoverctl watch --output json | jq -r 'select(.change == \"gone\") | .service + \"/\" + .id'

It prints a row for each upstream, then a row for each change, until Ctrl-C. With --output json each row is an object in one line.
--changes adds a row for each change of a setting or an override: `set` or `unset`, with the writer and the reason.
It follows the store, and asks the balancers every second. While etcd is away it tries again.";

/// The interval between two questions to the balancers. Their counters are at most half a second old.
const PACE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Watch this service instead of all
    #[arg(value_name = "SVC")]
    service: Option<ServiceArg>,
    /// Print changes of settings and overrides too, with their writers
    #[arg(long)]
    changes: bool,
    /// End after this time instead of at Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    limit: Option<Duration>,
}

type Rows = BTreeMap<(ServiceId, UpstreamId), Row>;

/// A change, as it is printed.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    /// The time at which the change was seen, RFC 3339 in UTC.
    time: String,
    /// `present` in the first listing, then `new`, `changed` and `gone`.
    change: &'static str,
    #[serde(flatten)]
    row: Row,
}

/// The store's keys, and the balancers' last answers.
struct WatchState {
    topology: Topology,
    balancers: BalancerRecords,
    answers: Answers<Upstreams>,
    only: Option<ServiceId>,
    is_away: bool,
    /// The changes of keys that aren't printed yet. None without --changes.
    key_changes: Option<Vec<KeyChange>>,
}

impl Watch {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let only = self.service.as_ref().map(|named| named.find_service(&store.topology)).transpose()?;
        let api = Arc::new(context.balancer_api(&store)?);
        let answers = api.ask_all("upstreams").await;
        let key_changes = self.changes.then(Vec::new);
        let (topology, balancers) = (store.topology, store.balancers);
        let known = WatchState { topology, balancers, answers, only, is_away: false, key_changes };
        // A limit that the clock can't represent is as good as none.
        let deadline = self.limit.and_then(|limit| Instant::now().checked_add(limit));
        tokio::select! {
            printed = follow_changes(context, known, api) => printed?,
            () = async { match deadline { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
            // Ctrl-C is the usual end of this command, so it is no error.
            _ = tokio::signal::ctrl_c() => {}
        }
        // A slow reader must not keep a command that was stopped.
        context.screen.flush_briefly();
        Ok(Outcome::Yes)
    }
}

/// Prints changes until the reader closes the output.
async fn follow_changes(context: &Context, mut known: WatchState, mut api: Arc<BalancerApi>) -> Result<(), Error> {
    let mut printer = ChangePrinter::new(context.screen);
    let mut shown = Rows::new();
    let end = CancellationToken::new();
    let _ends_with_us = end.clone().drop_guard();
    let mut events = context.client.follow_folder(FollowOptions::default(), end);
    let mut ticks = interval(PACE);
    // After a slow answer the balancers get a whole interval of rest.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pending: Option<JoinHandle<Answers<Upstreams>>> = None;
    loop {
        let now = build_rows(known.keys(), &known.answers, known.only.as_ref());
        printer.print_changes(&shown, &now)?;
        printer.print_key_changes(&known.take_key_changes())?;
        // The next listing is compared with the one that was printed, so a slow reader causes no queue.
        if !until_written().await? {
            return Ok(());
        }
        shown = now;
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => known.apply_event(event),
                None => return Ok(()),
            },
            answers = await_answers(&mut pending) => {
                pending = None;
                known.answers = answers;
            }
            _ = ticks.tick(), if pending.is_none() => {
                if !context.is_api_of(&api, &known.balancers) {
                    api = Arc::new(context.balancer_api_of(&known.balancers)?);
                }
                pending = Some(ask_in_background(&api));
            }
        }
    }
}

/// Asks all balancers in a task, so that a slow balancer delays no change of the store.
fn ask_in_background(api: &Arc<BalancerApi>) -> JoinHandle<Answers<Upstreams>> {
    let api = Arc::clone(api);
    tokio::spawn(async move { api.ask_all("upstreams").await })
}

/// Waits for the answers that are under way, for ever if there are none.
async fn await_answers(pending: &mut Option<JoinHandle<Answers<Upstreams>>>) -> Answers<Upstreams> {
    match pending {
        Some(pending) => pending.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

impl WatchState {
    fn keys(&self) -> Keys<'_> {
        Keys { topology: &self.topology, balancers: &self.balancers }
    }

    fn take_key_changes(&mut self) -> Vec<KeyChange> {
        self.key_changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn apply_event(&mut self, event: Event) {
        match event {
            Event::Disconnected { error, .. } => {
                // The first error is printed, and not each retry.
                if !std::mem::replace(&mut self.is_away, true) {
                    output::print_message(&format!("discoverctl: {error}; trying on"));
                }
                return;
            }
            // A listing has no order of changes and no writers. So `--changes` shows only changes that a watch delivered.
            Event::Snapshot(snapshot) => {
                self.topology = Topology::from_entries(&snapshot.entries);
                self.balancers = BalancerRecords::from_snapshot(&snapshot);
            }
            Event::Changes { changes, .. } => {
                if let Some(waiting) = &mut self.key_changes {
                    let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
                    waiting.extend(list_key_changes(&self.topology, &changes, self.only.as_ref(), &time));
                }
                for change in &changes {
                    self.topology.apply_change(change);
                    self.balancers.apply_change(change);
                }
            }
        }
        if std::mem::replace(&mut self.is_away, false) {
            output::print_message("discoverctl: etcd is back");
        }
    }
}

/// Compares two listings. Sessions and rates are left out, because they change every second.
fn compare_rows<'a>(before: &'a Rows, now: &'a Rows) -> Vec<(&'static str, &'a Row)> {
    let mut changes: Vec<(&'static str, &Row)> = Vec::new();
    for (name, row) in now {
        match before.get(name) {
            None => changes.push(("new", row)),
            Some(old) if !is_unchanged(old, row) => changes.push(("changed", row)),
            Some(_) => {}
        }
    }
    changes.extend(before.iter().filter(|(name, _)| !now.contains_key(*name)).map(|(_, row)| ("gone", row)));
    changes
}

fn is_unchanged(one: &Row, other: &Row) -> bool {
    one.asked == other.asked
        && one.balancers.keys().eq(other.balancers.keys())
        && one.balancers.values().zip(other.balancers.values()).all(|(one, other)| is_view_unchanged(one, other))
}

fn is_view_unchanged(one: &BalancerView, other: &BalancerView) -> bool {
    (one.state, one.balanced, &one.cause, one.held) == (other.state, other.balanced, &other.cause, other.held)
}

/// Prints changes in columns. A column is as wide as the widest cell so far.
struct ChangePrinter {
    screen: Screen,
    has_printed: bool,
    widths: Vec<usize>,
}

const HEAD: [&str; 8] = ["TIME", "CHANGE", "UPSTREAM", "ADDRESS", "COLOR", "WEIGHT", "STATE", "BALANCERS"];

impl ChangePrinter {
    fn new(screen: Screen) -> Self {
        Self { screen, has_printed: false, widths: HEAD.iter().map(|name| name.len()).collect() }
    }

    /// Prints the changes between two listings.
    fn print_changes(&mut self, before: &Rows, now: &Rows) -> Result<(), Error> {
        let has_begun = std::mem::replace(&mut self.has_printed, true);
        let mut lines = Vec::new();
        for (change, row) in compare_rows(before, now) {
            let change = if has_begun { change } else { "present" };
            let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            lines.push(Line { time, change, row: row.clone() });
        }
        let mut texts = Vec::new();
        match self.screen.format() {
            Format::Json => {
                texts.extend(lines.iter().map(json_line).collect::<Result<Vec<_>, _>>()?);
            }
            Format::Yaml => {
                // `---` begins the next document of a stream.
                let documents = lines.iter().map(to_yaml).collect::<Result<Vec<_>, _>>()?;
                texts.extend(documents.into_iter().map(|text| format!("---\n{text}")));
            }
            Format::Plain => texts.extend(lines.iter().map(|line| line.to_cells().join("\t"))),
            Format::Table => {
                let cells: Vec<_> = lines.iter().map(Line::to_cells).collect();
                cells.iter().for_each(|cells| self.widen_columns(cells));
                let head = (!has_begun).then(|| HEAD.map(str::to_owned));
                texts.extend(head.iter().chain(&cells).map(|cells| self.pad_cells(cells)));
            }
        }
        texts.iter().for_each(|text| self.screen.print(text));
        Ok(())
    }

    /// Prints changes of keys. A key has no column of the upstreams' table, so these lines have blanks between their cells.
    fn print_key_changes(&self, changes: &[KeyChange]) -> Result<(), Error> {
        for change in changes {
            let text = match self.screen.format() {
                Format::Json => json_line(change)?,
                Format::Yaml => format!("---\n{}", to_yaml(change)?),
                Format::Plain => change.to_cells().join("\t"),
                Format::Table => change.to_cells().join("  "),
            };
            self.screen.print(&text);
        }
        Ok(())
    }

    fn widen_columns(&mut self, cells: &[String]) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }

    fn pad_cells(&self, cells: &[String]) -> String {
        let padded = cells.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

impl Line {
    fn to_cells(&self) -> [String; 8] {
        let Row { service, id, asked, balancers } = &self.row;
        let there = balancers.iter().map(|(node, there)| match there.state {
            Some("draining") => format!("{node} draining {}", there.sessions.unwrap_or_default()),
            _ => format!("{node} {}", there.to_cell().text()),
        });
        let there = there.collect::<Vec<_>>().join(", ");
        [
            // The time of day, in UTC like the rest.
            self.time.get(11..19).unwrap_or(&self.time).to_owned(),
            self.change.to_owned(),
            format!("{service}/{id}"),
            cell_text(asked.address.as_ref()),
            cell_text(asked.color.as_ref()),
            cell_text(asked.weight),
            Cell::from(asked.describe_state()).text().to_owned(),
            cell_text((!there.is_empty()).then_some(there)),
        ]
    }
}

/// The text of a cell, in which hidden characters are escaped.
fn cell_text(value: Option<impl Display>) -> String {
    Cell::or_dash(value).text().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn a_change_is_told_once_and_figures_are_none() {
        let answers = |status: &str, sessions: u64| -> Answers<Upstreams> {
            let up = status == "UP";
            let text = format!(
                r#"{{"upstreams":[{{"service":"http-shop","id":"a","balanced":{up},
                    "haproxy":{{"status":"{status}","up":{up},"sessions":{sessions}}}}}]}}"#
            );
            [("lb1".parse().unwrap(), Ok(serde_json::from_str(&text).unwrap()))].into()
        };
        let all =
            |keys: &[(&str, &str)], answers: &Answers<Upstreams>| build_rows(Keys::from(&store(keys)), answers, None);
        let a = ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue"}"#);
        let one = all(&[a], &answers("UP", 1));
        assert_eq!(compare_rows(&Rows::new(), &one).len(), 1);
        assert!(compare_rows(&one, &all(&[a], &answers("UP", 2))).is_empty());
        let down = all(&[a], &answers("DOWN", 1));
        let printed = compare_rows(&one, &down);
        let line = Line { time: "2026-11-21T12:00:07.000Z".into(), change: printed[0].0, row: printed[0].1.clone() };
        assert_eq!(line.to_cells().join(" "), "12:00:07 changed http-shop/a 10.0.0.1:80 blue 100 ready lb1 down");
        let drained = ("http-services/shop/overrides/a", r#"{"state":"drain"}"#);
        let drained = all(&[a, drained], &answers("UP", 1));
        assert_eq!(compare_rows(&one, &drained)[0].1.asked.state, Some("drain"));
        assert_eq!(compare_rows(&one, &Rows::new())[0].0, "gone");
        let mut printer = ChangePrinter::new(Screen::for_test(Format::Table));
        printer.widen_columns(&line.to_cells());
        assert_eq!(
            printer.pad_cells(&HEAD.map(str::to_owned)).find("BALANCERS"),
            printer.pad_cells(&line.to_cells()).find("lb1 down")
        );
    }
}
