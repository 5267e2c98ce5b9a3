//! `list --host`: all upstreams of a host.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::balancer_api::{Answers, Upstreams};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::Store;
use crate::target::host::HostArg;
use crate::upstreams::{Row, build_rows, describe_unreachable, list_unreachable};
use crate::verdict::Keys;

#[derive(Debug, Serialize)]
struct HostListing {
    host: String,
    revision: i64,
    upstreams: Vec<Row>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

pub(super) async fn list_upstreams(context: &Context, store: &Store, host: &HostArg) -> Result<Outcome, Error> {
    // A host that no key names is refused before any balancer is asked.
    let found = host.find_upstreams(&store.topology)?;
    let answers: Answers<Upstreams> = context.balancer_api(store)?.ask_all("upstreams").await;
    let rows = build_rows(Keys::from(store), &answers, None);
    let upstreams = rows.into_iter().filter(|(name, _)| found.present.contains(name)).map(|(_, row)| row).collect();
    let (host, unreachable) = (found.name.to_string(), list_unreachable(&answers));
    context.screen.show(&HostListing { host, revision: store.revision, upstreams, unreachable })?;
    Ok(Outcome::Yes)
}

impl Printable for HostListing {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["UPSTREAM", "ADDRESS", "HOST", "STATE", "BALANCERS"]);
        for Row { service, id, asked, balancers } in &self.upstreams {
            let state = asked.describe_state();
            let state = if asked.state == Some("ready") { Cell::good(state) } else { Cell::odd(state) };
            let there = balancers.iter().map(|(node, there)| format!("{node} {}", there.to_cell().text()));
            let there = there.collect::<Vec<_>>().join(", ");
            table.add_row([
                format!("{service}/{id}").into(),
                Cell::or_dash(asked.address.as_ref()),
                Cell::or_dash(asked.host.as_ref()),
                state,
                Cell::or_dash((!there.is_empty()).then_some(there)),
            ]);
        }
        let mut blocks = vec![Block::Table(table)];
        if self.upstreams.is_empty() {
            // Only overrides of the whole host are left.
            let words = format!("{}: no upstream at revision {}, but overrides of it", self.host, self.revision);
            blocks.push(Block::Text(format!("{words}: discoverctl ready --host {}", self.host)));
        }
        blocks.extend(Block::from_lines(describe_unreachable(&self.unreachable)));
        blocks
    }
}
