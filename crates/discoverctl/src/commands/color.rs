//! `color`: the active colors of a service, and other ones at once.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{Active, Color as Name, Service, ServiceId, Setting, SettingName};
use serde::Serialize;

use super::set::plan_settings;
use crate::balancer_api::{Answers, ServiceInFull};
use crate::colors;
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::shared_options::Changing;
use crate::store::lossy_text;
use crate::target::ServiceArg;
use crate::upstreams::{describe_unreachable, list_unreachable};

pub(crate) const EXAMPLES: &str = "Examples:
  Show the colors, and the number of healthy upstreams of each:
      discoverctl color shop
  Make one color active at once:
      discoverctl color shop green
  Make two colors active with their shares:
      discoverctl color shop blue=90 green=10
  Use every upstream again, whatever its color is:
      discoverctl unset shop active

`discoverctl switch` makes a color active in steps, watches it and goes back if it fails.";

#[derive(Debug, Args)]
pub(crate) struct Color {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// Make these colors active: blue, or blue=90 green=10
    #[arg(value_name = "SPEC")]
    spec: Vec<String>,
    /// Accept colors without a healthy upstream, or of unknown health
    #[arg(long, requires = "spec")]
    force: bool,
    #[command(flatten)]
    changing: Changing,
}

/// The answer of `color` without SPEC.
#[derive(Debug, Serialize)]
struct ColorReport {
    /// The name of the service's section: `http-shop`.
    service: String,
    /// The value of the key `active`; null if every upstream serves.
    active: Option<String>,
    /// By name; upstreams without a color come last.
    colors: Vec<Row>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// One color of the service.
#[derive(Debug, Serialize)]
struct Row {
    /// Null stands for the upstreams without a color.
    color: Option<String>,
    active: bool,
    /// Its share among the active ones; null for a color without a share.
    share: Option<u32>,
    /// The number of its upstreams' good records.
    upstreams: usize,
    /// The upstreams that say `ready` and that no override takes out.
    ready: usize,
    /// The number of these with passing checks, by balancer; null if the balancer can't tell.
    healthy: BTreeMap<String, Option<usize>>,
}

impl Color {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let id = self.service.find_service(&store.topology)?;
        let service = store.topology.services().get(&id);
        let service = service.ok_or_else(|| Error::Refused(format!("no service {id} in the store")))?;
        let answers = context.balancer_api(&store)?.ask_all::<ServiceInFull>(&format!("services/{id}")).await;
        if self.spec.is_empty() {
            context.screen.show(&ColorReport::from_answers(&id, service, &answers))?;
            return Ok(Outcome::Yes);
        }
        let spec = self.spec.join(" ");
        let active: Active = spec.parse().map_err(|refusal| Error::Usage(format!("{spec}: {refusal}")))?;
        // Each active color gets requests, so each of them has to work.
        for (color, _) in active.iter() {
            self.check_color(service, color, &answers)?;
        }
        let edit = plan_settings(&store, &id, &[Setting::Active(active)])?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }

    fn check_color(&self, service: &Service, color: &Name, answers: &Answers<ServiceInFull>) -> Result<(), Error> {
        let ready = colors::find_ready(service, Some(color));
        if ready.is_empty() && !self.force {
            let known = colors::list_colors(service).into_iter().flatten().map(|color| color.to_string());
            let hint = crate::target::suggest_names(color.as_str(), known);
            let words = "nothing was changed (--force does it anyway)";
            return Err(Error::Refused(format!("no upstream of color {color} is ready; {words}{hint}")));
        }
        colors::count_healthy(answers, &ready).require_healthy(color, self.force)
    }
}

impl ColorReport {
    fn from_answers(id: &ServiceId, service: &Service, answers: &Answers<ServiceInFull>) -> Self {
        let written = service.setting(SettingName::Active);
        let active = colors::read_active(service).ok().flatten();
        // None sorts first, but names matter more to the reader.
        let (named, bare): (Vec<_>, Vec<_>) = colors::list_colors(service).into_iter().partition(Option::is_some);
        Self {
            service: id.to_string(),
            active: written.map(|field| lossy_text(&field.entry).trim().to_owned()),
            colors: named
                .iter()
                .chain(&bare)
                .map(|color| Row::new(service, color.as_ref(), active.as_ref(), answers))
                .collect(),
            unreachable: list_unreachable(answers),
        }
    }
}

impl Row {
    fn new(service: &Service, color: Option<&Name>, active: Option<&Active>, answers: &Answers<ServiceInFull>) -> Self {
        let ready = colors::find_ready(service, color);
        let share = active.zip(color).and_then(|(active, color)| active.share_of(color));
        Self {
            color: color.map(ToString::to_string),
            active: service.setting(SettingName::Active).is_none() || share.is_some(),
            share,
            upstreams: colors::find_records(service, color).count(),
            healthy: colors::count_healthy(answers, &ready).healthy,
            ready: ready.len(),
        }
    }
}

impl Printable for ColorReport {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["COLOR", "ACTIVE", "READY", "HEALTHY"]);
        for row in &self.colors {
            let active = match (row.active, row.share) {
                (true, Some(share)) => Cell::good(share),
                (true, None) => Cell::good("yes"),
                (false, _) => "no".into(),
            };
            let ready = format!("{}/{}", row.ready, row.upstreams);
            table.add_row([
                Cell::or_dash(row.color.as_ref()),
                active,
                ready.into(),
                Cell::from_counts(&row.healthy, row.upstreams, row.upstreams),
            ]);
        }
        let active = match &self.active {
            Some(active) => format!("{}: active is {active}", self.service),
            None => format!("{}: active is not set: every upstream serves", self.service),
        };
        let mut blocks = vec![Block::Text(active), Block::Table(table)];
        blocks.extend(Block::from_lines(describe_unreachable(&self.unreachable)));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn colors_are_counted_for_each_balancer() {
        let store = store(&[
            ("http-services/shop/active", "blue"),
            ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue"}"#),
            ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","color":"green"}"#),
            ("http-services/shop/upstreams/c", "10.0.0.3:80"),
        ]);
        let (id, service) = store.topology.services().iter().next().unwrap();
        let full = r#"{"upstreams":[{"id":"a","haproxy":{"status":"UP"}},{"id":"b","haproxy":{"status":"DOWN"}}]}"#;
        let answers = Answers::from([
            ("lb1".parse().unwrap(), Ok(serde_json::from_str(full).unwrap())),
            ("lb2".parse().unwrap(), Err("no".into())),
        ]);
        let palette = ColorReport::from_answers(id, service, &answers);
        let blocks = palette.to_blocks();
        assert_eq!(blocks[0], Block::Text("http-shop: active is blue".into()));
        let Block::Table(table) = &blocks[1] else { panic!() };
        let rows: Vec<String> =
            table.rows.iter().map(|row| row.iter().map(Cell::text).collect::<Vec<_>>().join(" | ")).collect();
        assert_eq!(
            rows,
            ["blue | 1 | 1/1 | lb1 1/1, lb2 –", "green | no | 1/1 | lb1 0/1, lb2 –", "– | no | 1/1 | lb1 0/1, lb2 –"]
        );
    }
}
