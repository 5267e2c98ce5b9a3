//! `list`: all services at a glance, or all upstreams of a host.

mod host;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{CopyReport, Service, ServiceId, SettingName, UpstreamState};
use serde::Serialize;

use crate::balancer_api::{Answers, Services};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::{Store, lossy_text};
use crate::target::host::HostArg;
use crate::upstreams::{describe_unreachable, list_unreachable};

use crate::commands::copies;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl list
  discoverctl list --host web-1
  discoverctl list --output json | jq '.services[] | select(.upstreams == 0).name'

COPIES is there if a service has a limited number of copies. It has the numbers of running, wanted and standing-by copies.";

#[derive(Debug, Args)]
pub(crate) struct List {
    /// List the upstreams of this host, as `drain --host` finds them, instead of all services
    #[arg(long, value_name = "NAME")]
    host: Option<HostArg>,
}

#[derive(Debug, Serialize)]
struct Listing {
    revision: i64,
    /// By kind, then by name.
    services: Vec<Row>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// One service at a glance.
#[derive(Debug, Serialize)]
struct Row {
    /// The name of the service's section: `http-shop`.
    id: String,
    /// The service's own name: `shop`.
    name: String,
    /// The value of `domain` or `ports`; null without both.
    serves: Option<String>,
    /// The value of `active`; null if every upstream serves.
    active: Option<String>,
    /// The number of its upstreams' records.
    upstreams: usize,
    /// The number of good records that say `ready`.
    ready: usize,
    /// The number of upstreams that get new requests, by balancer; null if the balancer can't tell.
    balanced: BTreeMap<String, Option<usize>>,
    /// The wanted, running and standing-by copies; null if their number isn't limited.
    copies: Option<CopyCounts>,
}

/// The copies of one service.
#[derive(Debug, Serialize)]
struct CopyCounts {
    /// Null if no key says it.
    wanted: Option<u16>,
    running: usize,
    standing_by: usize,
    /// The counts in words, for people.
    #[serde(skip)]
    cell: Cell,
}

impl List {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        if let Some(host) = &self.host {
            return host::list_upstreams(context, &store, host).await;
        }
        let answers = context.balancer_api(&store)?.ask_all("services").await;
        context.screen.show(&Listing::from_store(&store, &answers))?;
        Ok(Outcome::Yes)
    }
}

impl Listing {
    fn from_store(store: &Store, answers: &Answers<Services>) -> Self {
        let topology = &store.topology;
        // Before its first copy runs, a service may have stand-bys only.
        let ids: BTreeSet<&ServiceId> = topology.services().keys().chain(topology.copies().keys()).collect();
        let row = |id: &ServiceId| {
            let copies = topology.copies().get(id).map(|copies| CopyCounts::from_report(&CopyReport::new(copies)));
            let empty = Service::new(id.kind);
            let service = topology.services().get(id).map_or(&empty, |service| service);
            Row { copies, ..Row::from_service(id, service, answers) }
        };
        let services = ids.into_iter().map(row).collect();
        Self { revision: store.revision, services, unreachable: list_unreachable(answers) }
    }
}

impl Row {
    fn from_service(id: &ServiceId, service: &Service, answers: &Answers<Services>) -> Self {
        let records = service.upstreams().filter_map(|(_, field)| field.value.as_ref().ok());
        let mut balanced = BTreeMap::new();
        for (node, answer) in answers {
            balanced.insert(node.to_string(), answer.as_ref().ok().and_then(|services| count_balanced(services, id)));
        }
        Self {
            id: id.to_string(),
            name: id.name.to_string(),
            // HTTP services have domains, and TCP services have ports.
            serves: setting_text(service, SettingName::Domain).or_else(|| setting_text(service, SettingName::Ports)),
            active: setting_text(service, SettingName::Active),
            upstreams: service.upstreams().count(),
            ready: records.filter(|record| record.state == UpstreamState::Ready).count(),
            balanced,
            copies: None,
        }
    }
}

impl CopyCounts {
    fn from_report(report: &CopyReport) -> Self {
        let CopyReport { wanted, running, standing_by, .. } = *report;
        Self { wanted, running, standing_by, cell: copies::summary_cell(report) }
    }
}

fn setting_text(service: &Service, name: SettingName) -> Option<String> {
    Some(lossy_text(&service.setting(name)?.entry).trim().to_owned())
}

/// The number of the service's upstreams that get requests; None if HAProxy doesn't answer. A balancer that doesn't know
/// the service sends it none.
fn count_balanced(services: &Services, id: &ServiceId) -> Option<usize> {
    let name = id.to_string();
    let found = services.services.iter().find(|it| it.id == name);
    services.haproxy_error.is_none().then(|| found.map_or(0, |it| it.upstreams.balanced))
}

impl Printable for Listing {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["SERVICE", "SERVES", "ACTIVE", "READY", "BALANCED"]);
        for row in &self.services {
            let ready = format!("{}/{}", row.ready, row.upstreams);
            let ready = if row.ready == 0 { Cell::bad(ready) } else { ready.into() };
            let (serves, active) = (Cell::or_dash(row.serves.as_ref()), Cell::or_dash(row.active.as_ref()));
            table.add_row([
                row.id.as_str().into(),
                serves,
                active,
                ready,
                Cell::from_counts(&row.balanced, row.upstreams, row.ready),
            ]);
        }
        if self.services.iter().any(|row| row.copies.is_some()) {
            table.head.push("COPIES");
            for (cells, row) in table.rows.iter_mut().zip(&self.services) {
                cells.push(row.copies.as_ref().map_or_else(|| "–".into(), |copies| copies.cell.clone()));
            }
        }
        let mut blocks = vec![Block::Table(table)];
        if self.services.is_empty() {
            blocks.push(Block::Text(format!("no service in the store at revision {}", self.revision)));
        }
        blocks.extend(Block::from_lines(describe_unreachable(&self.unreachable)));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    #[test]
    fn a_balancer_that_cannot_say_is_a_dash() {
        let store = store(&[
            ("http-services/shop/domain", "shop.com"),
            ("http-services/shop/upstreams/a", "10.0.0.1:80"),
            ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","state":"drain"}"#),
        ]);
        let services = serde_json::from_str(r#"{"services":[{"id":"http-shop","upstreams":{"balanced":1}}]}"#).unwrap();
        let answers =
            Answers::from([("lb1".parse().unwrap(), Ok(services)), ("lb2".parse().unwrap(), Err("no".into()))]);
        let listing = Listing::from_store(&store, &answers);
        let Some(Block::Table(table)) = listing.to_blocks().into_iter().next() else { panic!() };
        let row: Vec<_> = table.rows[0].iter().map(Cell::text).collect();
        assert_eq!(row, ["http-shop", "shop.com", "–", "1/2", "lb1 1/2, lb2 –"]);
        assert_eq!(listing.unreachable["lb2"], "no");
    }

    #[test]
    fn the_copies_of_a_service_are_counted_before_the_first_one_runs_too() {
        let store = store(&[
            ("http-services/new/standby/a", r#"{"replicas":1}"#),
            ("http-services/shop/domain", "shop.com"),
            ("http-services/shop/slots/1", r#"{"id":"a","replicas":2}"#),
            ("http-services/shop/upstreams/a", "10.0.0.1:80"),
        ]);
        let listing = Listing::from_store(&store, &Answers::new());
        let Some(Block::Table(table)) = listing.to_blocks().into_iter().next() else { panic!() };
        let copies: Vec<(&str, &str)> = table.rows.iter().map(|row| (row[0].text(), row[5].text())).collect();
        assert_eq!(copies, [("http-new", "0 of 1, 1 standing by"), ("http-shop", "1 of 2")]);
        let json = serde_json::to_value(&listing).unwrap();
        let counts = serde_json::json!({"wanted": 2, "running": 1, "standing_by": 0});
        assert_eq!(json["services"][1]["copies"], counts);
    }
}
