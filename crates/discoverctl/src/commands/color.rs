//! `color`: which colors are active, and another one at once.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{Active, Color as Name, Service, ServiceId, Setting};
use serde::Serialize;

use super::set::settings;
use crate::balancer_api::{Answers, ServiceInFull};
use crate::colors;
use crate::context::Context;
use crate::error::Error;
use crate::error::Outcome;
use crate::print::{Block, Cell, Shown, Table};
use crate::shared_options::Changing;
use crate::target::Named;
use crate::upstreams::{silent, unreachable};

pub(crate) const EXAMPLES: &str = "Examples:
  Which colors are there, and how many of each would work?
      discoverctl color shop
  One color, at once:
      discoverctl color shop green
  Two with their shares, for as long as you like:
      discoverctl color shop blue=90 green=10
  Every upstream again, whatever its color:
      discoverctl unset shop active

In steps, watched, and back by itself: discoverctl switch.";

/// Options of `color`.
#[derive(Debug, Args)]
pub(crate) struct Color {
    /// The service
    #[arg(value_name = "SVC")]
    service: Named,
    /// The active colors: blue, or blue=90 green=10
    #[arg(value_name = "SPEC")]
    spec: Vec<String>,
    /// Also colors that have no healthy upstream, or nobody knows
    #[arg(long, requires = "spec")]
    force: bool,
    #[command(flatten)]
    changing: Changing,
}

/// What `color` answers.
#[derive(Debug, Serialize)]
struct Palette {
    /// As HAProxy's section is called: `http-shop`.
    service: String,
    /// The active colors, as they were written; null: every upstream serves.
    active: Option<String>,
    /// By name; those without a color last.
    colors: Vec<Row>,
    /// The balancers that couldn't be asked, and why.
    unreachable: BTreeMap<String, String>,
}

/// One color.
#[derive(Debug, Serialize)]
struct Row {
    /// Its name; null are the upstreams without one.
    color: Option<String>,
    /// Whether its upstreams serve.
    active: bool,
    /// Its share among the active ones; null where it has none of its own.
    share: Option<u32>,
    /// Its upstreams' records.
    upstreams: usize,
    /// Those that say ready, and that nobody has taken out.
    ready: usize,
    /// By balancer, how many of these HAProxy's checks find up; null where the balancer can't say.
    healthy: BTreeMap<String, Option<usize>>,
}

impl Color {
    /// Does it.
    pub(crate) async fn run(self, ctl: &Context) -> Result<Outcome, Error> {
        let store = ctl.store().await?;
        let id = self.service.find(&store.topology)?;
        let service = store.topology.services().get(&id);
        let service = service.ok_or_else(|| Error::Refused(format!("no service {id} in the store")))?;
        let answers = ctl.fleet(&store)?.ask::<ServiceInFull>(&format!("services/{id}")).await;
        if self.spec.is_empty() {
            ctl.screen.show(&Palette::of(&id, service, &answers))?;
            return Ok(Outcome::Yes);
        }
        let spec = self.spec.join(" ");
        let active: Active = spec.parse().map_err(|refusal| Error::Usage(format!("{spec}: {refusal}")))?;
        for (color, _) in active.iter() {
            self.check(service, color, &answers)?;
        }
        let edit = settings(&store, &id, &[Setting::Active(active)])?;
        ctl.carry_out(&store, &edit, &self.changing, BTreeSet::new()).await
    }

    fn check(&self, service: &Service, color: &Name, answers: &Answers<ServiceInFull>) -> Result<(), Error> {
        let ready = colors::ready(service, Some(color));
        if ready.is_empty() && !self.force {
            let known = colors::colors(service).into_iter().flatten().map(|color| color.to_string());
            let hint = crate::target::hint(color.as_str(), known);
            let words = "no upstream of it is ready; nothing was changed (--force does it anyway)";
            return Err(Error::Refused(format!("{color}{hint}: {words}")));
        }
        colors::health(answers, &ready).check(color, self.force)
    }
}

impl Palette {
    fn of(id: &ServiceId, service: &Service, answers: &Answers<ServiceInFull>) -> Self {
        let written = service.setting(discovery::SettingName::Active);
        let active = colors::active(service).ok().flatten();
        let row = |color: &Option<Name>| {
            let ready = colors::ready(service, color.as_ref());
            let share = active.as_ref().zip(color.as_ref()).and_then(|(active, color)| active.share(color));
            Row {
                color: color.as_ref().map(ToString::to_string),
                active: written.is_none() || share.is_some(),
                share,
                upstreams: colors::records(service, color.as_ref()).count(),
                healthy: colors::health(answers, &ready).healthy,
                ready: ready.len(),
            }
        };
        // None sorts first; people look for names first.
        let (named, bare): (Vec<_>, Vec<_>) = colors::colors(service).into_iter().partition(Option::is_some);
        Self {
            service: id.to_string(),
            active: written.map(|field| String::from_utf8_lossy(&field.entry.value).trim().to_owned()),
            colors: named.iter().chain(&bare).map(row).collect(),
            unreachable: unreachable(answers),
        }
    }
}

impl Shown for Palette {
    fn blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["COLOR", "ACTIVE", "READY", "HEALTHY"]);
        for row in &self.colors {
            let active = match (row.active, row.share) {
                (true, Some(share)) => Cell::good(share),
                (true, None) => Cell::good("yes"),
                (false, _) => "no".into(),
            };
            let ready = format!("{}/{}", row.ready, row.upstreams);
            table.row([
                Cell::of(row.color.as_ref()),
                active,
                ready.into(),
                Cell::counts(&row.healthy, row.upstreams, row.upstreams),
            ]);
        }
        let active = match &self.active {
            Some(active) => format!("{}: active is {active}", self.service),
            None => format!("{}: active is not set: every upstream serves", self.service),
        };
        let mut blocks = vec![Block::Text(active), Block::Table(table)];
        blocks.extend(Block::lines(silent(&self.unreachable)));
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
        let palette = Palette::of(id, service, &answers);
        let blocks = palette.blocks();
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
