//! `show`: one service in full.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{CopyReport, Service, ServiceId};
use futures_util::future::join_all;
use registry::{Client, LeaseId};
use serde::Serialize;

use crate::balancer_api::{Answers, ServiceInFull};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::{Store, lossy_text};
use crate::target::ServiceArg;
use crate::upstreams::{Row, build_rows, describe_unreachable, extract_upstreams, list_unreachable};
use crate::verdict::Keys;

use crate::commands::copies;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl show shop
  discoverctl show shop --output json | jq '.upstreams[] | select(.state == \"ready\").address'

HOST is the host that the record names, for `discoverctl drain --host`. LEASE is the rest of the upstream's lease in seconds. `none` is a record without a lease, which stays until it is deleted.
SESSIONS and RATE (requests in the last second, or connections of a TCP service) are those of one balancer.";

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
}

#[derive(Debug, Serialize)]
struct ServiceReport {
    /// The name of the service's section: `http-shop`.
    id: String,
    /// The service's own name: `shop`.
    name: String,
    revision: i64,
    /// By name: settings in the store, and defaults in effect.
    settings: BTreeMap<String, SettingShown>,
    /// By balancer, the hosts with their paths, or the ports, that the service owns there.
    claims: BTreeMap<String, Vec<String>>,
    upstreams: Vec<UpstreamShown>,
    /// The copies with their slots; null if their number isn't limited.
    copies: Option<CopyReport>,
    /// By key, relative to the prefix, and by balancer: the reason for the quarantine.
    quarantine: BTreeMap<String, BTreeMap<String, String>>,
    /// By balancer, the reason why HAProxy rejects the service.
    refused: BTreeMap<String, String>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// A setting in the store and in effect.
#[derive(Debug, Default, PartialEq, Serialize)]
struct SettingShown {
    /// Its value in the store; null if the key is absent.
    written: Option<String>,
    /// The value in effect, by balancer.
    counts: BTreeMap<String, String>,
}

/// An upstream and its lease.
#[derive(Debug, Serialize)]
struct UpstreamShown {
    #[serde(flatten)]
    row: Row,
    /// `lives`, `none`, `ended`, or `unknown` if etcd didn't say.
    lease: &'static str,
    /// The rest of its lease in seconds; null unless it lives.
    lease_seconds: Option<u64>,
}

/// The rest of each lease in seconds; None if the lease has ended.
type Leases = BTreeMap<i64, Option<u64>>;

impl Show {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let id = self.service.find_service(&store.topology)?;
        // Before its first copy runs, a service may have stand-bys only.
        let empty = Service::new(id.kind);
        let service = store.topology.services().get(&id).map_or(&empty, |service| service);
        let fleet = context.balancer_api(&store)?;
        let path = format!("services/{id}");
        // etcd and the balancers are asked at once, so only the slower one costs time.
        let (answers, leases) = tokio::join!(fleet.ask_all(&path), read_leases(&context.client, service));
        context.screen.show(&ServiceReport::from_answers(&store, &id, service, &answers, &leases))?;
        Ok(Outcome::Yes)
    }
}

/// Reads the leases of all records. A lease that etcd doesn't answer for is left out, and the rest of the answer
/// stands.
async fn read_leases(client: &Client, service: &Service) -> Leases {
    let all: BTreeSet<i64> = service.upstreams().map(|(_, field)| field.entry.lease).filter(|id| *id != 0).collect();
    let requests = all.into_iter().map(|id| async move {
        let left = client.time_to_live(LeaseId::from(id)).await.ok()?;
        Some((id, left.map(|left| left.as_secs())))
    });
    join_all(requests).await.into_iter().flatten().collect()
}

impl ServiceReport {
    fn from_answers(
        store: &Store,
        id: &ServiceId,
        service: &Service,
        answers: &Answers<ServiceInFull>,
        leases: &Leases,
    ) -> Self {
        let mut settings: BTreeMap<String, SettingShown> = BTreeMap::new();
        for (name, field) in service.settings() {
            let written = lossy_text(&field.entry).trim().to_owned();
            settings.entry(name.to_string()).or_default().written = Some(written);
        }
        let (mut quarantine, mut claims, mut refused) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (node, answer) in answers.iter().filter_map(|(node, it)| Some((node.to_string(), it.as_ref().ok()?))) {
            for (name, value) in &answer.service.settings {
                settings.entry(name.clone()).or_default().counts.insert(node.clone(), value.clone());
            }
            for (key, reason) in &answer.quarantine {
                let by: &mut BTreeMap<String, String> = quarantine.entry(key.clone()).or_default();
                by.insert(node.clone(), reason.clone());
            }
            // HAProxy rejects a service as a whole, so there is one reason for each balancer.
            refused.extend(answer.service.refused.clone().map(|words| (node.clone(), words)));
            claims.insert(node, answer.service.list_claims());
        }
        let mut upstreams = Vec::new();
        let copies = store.topology.copies().get(id).map(|copies| CopyReport::new(copies));
        for ((_, id), row) in build_rows(Keys::from(store), &extract_upstreams(answers), Some(id)) {
            let lease = service.upstream(&id).map(|field| field.entry.lease);
            upstreams.push(UpstreamShown::new(row, lease, leases));
        }
        let (id, name, unreachable) = (id.to_string(), id.name.to_string(), list_unreachable(answers));
        Self {
            id,
            name,
            revision: store.revision,
            settings,
            claims,
            upstreams,
            copies,
            quarantine,
            refused,
            unreachable,
        }
    }
}

impl UpstreamShown {
    fn new(row: Row, lease: Option<i64>, leases: &Leases) -> Self {
        let (lease, lease_seconds) = match lease {
            Some(0) => ("none", None),
            // Only a retained upstream has no record.
            None => ("ended", None),
            Some(id) => match leases.get(&id) {
                Some(Some(left)) => ("lives", Some(*left)),
                Some(None) => ("ended", None),
                None => ("unknown", None),
            },
        };
        Self { row, lease, lease_seconds }
    }

    fn add_rows_to(&self, table: &mut Table) {
        if self.row.balancers.is_empty() {
            table.add_row(self.to_cells("–".into(), "–".into(), "–".into(), "–".into()));
        }
        for (node, there) in &self.row.balancers {
            let (sessions, rate) = (Cell::or_dash(there.sessions), Cell::or_dash(there.rate));
            table.add_row(self.to_cells(node.as_str().into(), there.to_cell(), sessions, rate));
        }
    }

    /// The row at one balancer.
    fn to_cells(&self, node: Cell, there: Cell, sessions: Cell, rate: Cell) -> [Cell; 11] {
        let Row { id, asked, .. } = &self.row;
        let state = asked.describe_state();
        let state = if asked.state == Some("ready") { Cell::good(state) } else { Cell::odd(state) };
        let (address, color) = (Cell::or_dash(asked.address.as_ref()), Cell::or_dash(asked.color.as_ref()));
        let lease = self.lease_seconds.map_or_else(|| self.lease.to_owned(), |left| format!("{left} s"));
        let weight = Cell::or_dash(asked.weight);
        let host = Cell::or_dash(asked.host.as_ref());
        [id.as_str().into(), address, host, color, weight, state, lease.into(), node, there, sessions, rate]
    }
}

impl Printable for ServiceReport {
    fn to_blocks(&self) -> Vec<Block> {
        let mut settings = Table::new(["SETTING", "WRITTEN", "COUNTS"]);
        for (name, it) in &self.settings {
            let written = it.written.as_ref().map(|value| value.replace('\n', "\\n"));
            // Balancers' values are only worth a column if they differ from the store's value.
            let counts = if it.counts.values().all(|value| Some(value) == it.written.as_ref()) {
                Cell::from(if it.counts.is_empty() { "–" } else { "as written" })
            } else {
                same_or_each(&it.counts)
            };
            settings.add_row([name.as_str().into(), Cell::or_dash(written), counts]);
        }
        let claims: BTreeMap<String, String> =
            self.claims.iter().map(|(node, it)| (node.clone(), it.join(" "))).collect();
        let mut head = vec![format!("{} at revision {}", self.id, self.revision)];
        head.extend((!claims.is_empty()).then(|| format!("serves: {}", same_or_each(&claims).text())));
        let mut upstreams = Table::new([
            "UPSTREAM", "ADDRESS", "HOST", "COLOR", "WEIGHT", "STATE", "LEASE", "BALANCER", "THERE", "SESSIONS", "RATE",
        ]);
        self.upstreams.iter().for_each(|it| it.add_rows_to(&mut upstreams));
        let mut blocks = vec![Block::Text(head.join("\n")), Block::Table(settings)];
        blocks.push(match self.upstreams.is_empty() {
            true => Block::Text("no upstream: its clients get 503".into()),
            false => Block::Table(upstreams),
        });
        blocks.extend(self.copies.iter().flat_map(copies::blocks));
        let refused = self.refused.iter().map(|(node, words)| format!("{node}: HAProxy refuses the service: {words}"));
        let quarantine = self.quarantine.iter();
        let quarantine = quarantine.map(|(key, by)| format!("{key} is not followed: {}", same_or_each(by).text()));
        let retained = self.upstreams.iter().flat_map(|it| {
            let by = it.row.balancers.iter().filter_map(|(node, there)| Some((node, there.describe_retained()?)));
            by.map(|(node, words)| format!("{} at {node}: {words}", it.row.id))
        });
        blocks.extend(Block::from_lines(
            retained.chain(refused).chain(quarantine).chain(describe_unreachable(&self.unreachable)),
        ));
        blocks
    }
}

/// Writes `value` if all balancers have the same, else `lb1 value, lb2 other`.
pub(crate) fn same_or_each(by: &BTreeMap<String, String>) -> Cell {
    let mut values = by.values();
    match values.next() {
        None => "–".into(),
        Some(first) if values.all(|value| value == first) => Cell::or_dash((!first.is_empty()).then_some(first)),
        Some(_) => {
            let each = by.iter().map(|(node, value)| format!("{node} {}", if value.is_empty() { "–" } else { value }));
            Cell::odd(each.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::print::Screen;
    use crate::store::tests::store;

    #[test]
    fn what_is_written_and_what_counts() {
        let mut store = store(&[
            ("http-services/shop/balance", "by mood"),
            ("http-services/shop/domain", "shop.test"),
            ("http-services/shop/slots/1", r#"{"id":"a","host":"web-1","replicas":2,"since":"2026-11-30T10:00:00Z"}"#),
            ("http-services/shop/standby/c", r#"{"host":"web-3","reason":"crash-loop"}"#),
            ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue","host":"web-1"}"#),
            ("http-services/shop/upstreams/b", "10.0.0.2:80"),
        ]);
        store.entries[4].lease = 5;
        let store = Store::from_snapshot(discovery::Snapshot {
            cluster: 7,
            revision: 20,
            raft_term: 1,
            entries: store.entries,
        });
        let (id, service) = store.topology.services().iter().next().unwrap();
        let lb1 = r#"{"service":{"id":"http-shop","routes":[{"host":"shop.test","path":"/"}],
                      "settings":{"balance":"roundrobin","domain":"shop.test"}},
            "quarantine":{"http-services/shop/balance":"`by mood`: expected roundrobin"},
            "upstreams":[{"service":"http-shop","id":"a","balanced":true,
                          "haproxy":{"status":"UP","up":true,"sessions":3,"rate":12}},
                         {"service":"http-shop","id":"b","balanced":false,"haproxy":{"status":"DOWN"}}]}"#;
        let answers: Answers<ServiceInFull> = [
            ("lb1".parse().unwrap(), serde_json::from_str(lb1).map_err(|e| e.to_string())),
            ("lb2".parse().unwrap(), Err("no route to host".into())),
        ]
        .into();
        let shop = ServiceReport::from_answers(&store, id, service, &answers, &[(5, Some(9))].into());
        expect![[r#"
            http-shop at revision 20
            serves: shop.test/

            SETTING  WRITTEN    COUNTS
            balance  by mood    roundrobin
            domain   shop.test  as written

            UPSTREAM  ADDRESS      HOST   COLOR  WEIGHT  STATE  LEASE  BALANCER  THERE  SESSIONS  RATE
            a         10.0.0.1:80  web-1  blue   100     ready  9 s    lb1       up     3         12
            a         10.0.0.1:80  web-1  blue   100     ready  9 s    lb2       –      –         –
            b         10.0.0.2:80  –      –      100     ready  none   lb1       down   0         0
            b         10.0.0.2:80  –      –      100     ready  none   lb2       –      –         –

            COPY  HOST   SLOT  SINCE                 WHY
            a     web-1  1     2026-11-30T10:00:00Z  it holds the slot
            c     web-3  –     –                     its app ended too often in a row; 1 of 2 copies run, at web-1

            copies: 1 of 2 copies run, at web-1, and no copy that stands by takes a slot: see why with discoverctl explain

            http-services/shop/balance is not followed: `by mood`: expected roundrobin
            lb2 can't be asked: no route to host"#]]
        .assert_eq(&Screen::for_test(crate::shared_options::Format::Table).render_answer(&shop).unwrap());
        let json = Screen::for_test(crate::shared_options::Format::Json).render_answer(&shop).unwrap();
        assert!(json.contains("\"lease_seconds\": 9") && json.contains("\"lease\": \"none\""), "{json}");
    }
}
