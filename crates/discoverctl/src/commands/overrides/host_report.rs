//! The answer of `drain --host`, `maint --host` and `ready --host`. Pure.

use std::collections::BTreeMap;

use discovery::{BalancerRecord, HostName, ServiceId, UpstreamId};
use serde::Serialize;

use super::host::HostPlan;
use crate::context::{ChangeReport, Written};
use crate::print::{Block, Cell, Printable, Table};
use crate::store::Store;
use crate::upstreams::StoreView;

/// A host's upstreams after the command.
#[derive(Debug, Serialize)]
pub(super) struct HostReport {
    host: String,
    upstreams: Vec<UpstreamReport>,
    #[serde(flatten)]
    change: ChangeReport,
}

/// One upstream after the command.
#[derive(Debug, Serialize)]
struct UpstreamReport {
    /// The section of its service: `http-shop`.
    service: String,
    id: String,
    /// The record's address; null if the record is gone.
    address: Option<String>,
    /// The override's state after the command: `drain`, `maint`; null without one.
    imposed: Option<&'static str>,
    /// The upstream has an override of its own, which `ready --host` leaves alone.
    own: bool,
    /// By balancer; empty if the command didn't wait.
    balancers: BTreeMap<String, AtBalancer>,
    /// The service's own name, as commands take it.
    #[serde(skip)]
    name: String,
}

/// One upstream at one balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct AtBalancer {
    /// The balancer follows, and nothing is open on an upstream that was taken out.
    done: bool,
    /// The open requests and sessions of a drain that isn't over; null if the balancer names none.
    open: Option<u64>,
}

impl HostReport {
    pub(super) fn new(store: &Store, host: &HostName, plan: &HostPlan, written: &Written) -> Self {
        let after = plan.edit.apply_to(&store.topology);
        let mut upstreams = Vec::new();
        for (service, id) in &plan.upstreams {
            let asked = after.services().get(service).map(|keys| StoreView::from_keys(keys, id)).unwrap_or_default();
            let is_drained = plan.drained.contains(&(service.clone(), id.clone()));
            upstreams.push(UpstreamReport {
                service: service.to_string(),
                id: id.to_string(),
                address: asked.address,
                imposed: asked.imposed,
                own: plan.kept.contains(&(service.clone(), id.clone())),
                balancers: judge_balancers(written, service, id, is_drained),
                name: service.name.to_string(),
            });
        }
        Self { host: host.to_string(), upstreams, change: written.report.clone() }
    }
}

fn judge_balancers(
    written: &Written,
    service: &ServiceId,
    id: &UpstreamId,
    is_drained: bool,
) -> BTreeMap<String, AtBalancer> {
    let (cluster, revision) = (written.balancers.cluster_id(), written.revision);
    let server = BalancerRecord::server_name(service, id);
    let judge = |record: &BalancerRecord| AtBalancer {
        done: match is_drained {
            true => record.acknowledges_upstream(cluster, revision, service, id),
            false => record.has_applied_service(cluster, revision, service),
        },
        open: record.draining.get(&server).copied(),
    };
    let unreadable = AtBalancer { done: false, open: None };
    let records = written.balancers.records_by_node();
    records.map(|(node, record)| (node.to_string(), record.map_or_else(|| unreadable.clone(), judge))).collect()
}

impl UpstreamReport {
    fn balancers_cell(&self, done: &'static str) -> Cell {
        if self.balancers.is_empty() {
            return "–".into();
        }
        let waiting: Vec<String> = self.balancers.iter().filter(|(_, at)| !at.done).map(AtBalancer::describe).collect();
        if waiting.is_empty() { Cell::good(done) } else { Cell::bad(waiting.join(", ")) }
    }

    fn override_cell(&self) -> Cell {
        match (self.imposed, self.own) {
            (None, _) => Cell::good("none"),
            (Some(state), false) => Cell::odd(state),
            (Some(state), true) => Cell::odd(format!("{state} (its own)")),
        }
    }
}

impl AtBalancer {
    fn describe((node, at): (&String, &Self)) -> String {
        match at.open {
            Some(open) => format!("{node} {open} open"),
            None => format!("{node} not yet"),
        }
    }
}

impl Printable for HostReport {
    fn to_blocks(&self) -> Vec<Block> {
        let is_taken_out = self.upstreams.iter().any(|it| it.imposed.is_some() && !it.own);
        let done = if is_taken_out { "drained" } else { "follow" };
        let mut table = Table::new(["UPSTREAM", "ADDRESS", "OVERRIDE", "BALANCERS"]);
        for it in &self.upstreams {
            let name = format!("{}/{}", it.service, it.id);
            let address = Cell::or_dash(it.address.as_ref());
            table.add_row([name.into(), address, it.override_cell(), it.balancers_cell(done)]);
        }
        let own = self.upstreams.iter().filter(|it| it.own && !is_taken_out);
        let own = own.map(|it| format!("{0}/{1} keeps its own override: discoverctl ready {0}/{1}", it.name, it.id));
        let end = format!("{}: {} upstreams; {}", self.host, self.upstreams.len(), self.change.describe_end());
        let mut blocks = vec![Block::Table(table)];
        blocks.extend(Block::from_lines(own.chain([end])));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use discovery::{BalancerRecords, Entry, Snapshot};
    use expect_test::expect;

    use super::*;
    use crate::error::Error;
    use crate::print::Screen;
    use crate::shared_options::Format;
    use crate::store::tests::store;

    fn written(plan: &HostPlan) -> Written {
        let record = |node: &str, draining: &str| Entry {
            key: format!("balancers/{node}"),
            value: format!(r#"{{"cluster":"7","applied":30,"pending":[],"held":[],"draining":{{{draining}}}}}"#).into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 7,
        };
        let entries = vec![record("lb1", ""), record("lb2", r#""http-shop/a":3"#)];
        let balancers = BalancerRecords::from_snapshot(&Snapshot { cluster: 7, revision: 31, raft_term: 1, entries });
        let report = ChangeReport::from_edit(&plan.edit);
        Written { report, revision: 30, balancers, followed: Err(Error::Failed("late".into())) }
    }

    #[test]
    fn each_upstream_has_a_row() {
        let store = store(&[
            ("http-services/shop/overrides/b", r#"{"state":"maint"}"#),
            ("http-services/shop/upstreams/a", "10.0.0.1:80"),
            ("http-services/shop/upstreams/b", "10.0.0.1:81"),
        ]);
        let (service, _) = store.topology.services().iter().next().unwrap();
        let upstream = |id: &str| (service.clone(), id.parse::<UpstreamId>().unwrap());
        let mut plan = HostPlan { kept: [upstream("b")].into(), ..HostPlan::default() };
        plan.upstreams = [upstream("a"), upstream("b")].into();
        plan.drained = plan.upstreams.clone();
        let key = discovery::Key::Override { service: service.clone(), id: "a".parse().unwrap() };
        plan.edit.put(&store, &key, r#"{"state":"drain","host":"web-1"}"#);
        let report = HostReport::new(&store, &"web-1".parse().unwrap(), &plan, &written(&plan));
        expect![[r#"
            UPSTREAM     ADDRESS      OVERRIDE         BALANCERS
            http-shop/a  10.0.0.1:80  drain            lb2 3 open
            http-shop/b  10.0.0.1:81  maint (its own)  drained

            web-1: 2 upstreams; no balancer was waited for"#]]
        .assert_eq(&Screen::for_test(Format::Table).render_answer(&report).unwrap());
        let json = Screen::for_test(Format::Json).render_answer(&report).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((json["host"].as_str(), json["upstreams"][1]["own"].as_bool()), (Some("web-1"), Some(true)));
        assert_eq!(json["upstreams"][0]["balancers"]["lb2"]["open"], 3);
        assert!(json["changed"]["http-services/shop/overrides/a"]["after"].is_string(), "{json}");

        let back = HostPlan { kept: plan.kept.clone(), upstreams: plan.upstreams.clone(), ..HostPlan::default() };
        let report = HostReport::new(&store, &"web-1".parse().unwrap(), &back, &written(&back));
        expect![[r#"
            UPSTREAM     ADDRESS      OVERRIDE         BALANCERS
            http-shop/a  10.0.0.1:80  none             follow
            http-shop/b  10.0.0.1:81  maint (its own)  follow

            shop/b keeps its own override: discoverctl ready shop/b
            web-1: 2 upstreams; no balancer was waited for"#]]
        .assert_eq(&Screen::for_test(Format::Table).render_answer(&report).unwrap());
    }
}
