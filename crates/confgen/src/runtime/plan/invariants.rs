//! The invariants of the plan and of the state that it leads to. Debug builds and tests check them after each plan. Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;
use haproxy::runtime::{Change, ServerName, Token};

use super::maps::host_of;
use super::{Plan, RuntimeState, has_server, stops_requests};
use crate::desired::DesiredService;

impl Plan {
    /// Returns the first violated invariant. `checks` is the map of the hosts that checks ask for. Takes time in proportion to the
    /// plan.
    pub(super) fn check_invariants(&self, checks: Option<&Token>) -> Result<(), String> {
        let mut removed = BTreeSet::new();
        if let Some(name) = self.removals.iter().find(|name| !removed.insert(*name)) {
            return Err(format!("{name} is removed twice"));
        }
        let touched = self.changes.iter().chain(&self.requeues).filter_map(server_of);
        if let Some(name) = touched.into_iter().find(|name| removed.contains(name)) {
            return Err(format!("{name} is both changed and removed"));
        }
        if let Some(change) = self.requeues.iter().find(|change| !matches!(change, Change::Requeue(..))) {
            return Err(format!("`{change}` gives no server its turn again"));
        }
        let (mut added, mut entries, mut last) = (BTreeSet::new(), BTreeSet::new(), Step::HostsOfChecks);
        for change in &self.changes {
            match change {
                Change::AddServer(name, ..) if !added.insert(name) => return Err(format!("{name} is added twice")),
                Change::AddToMap(map, key, _) | Change::SetInMap(map, key, _) | Change::RemoveFromMap(map, key)
                    if !entries.insert((map, key)) =>
                {
                    return Err(format!("{key} of {map} is changed twice"));
                }
                _ => {}
            }
            let step = Step::of(change, &added, checks);
            if step < last {
                return Err(format!("`{change}` comes too late, and a request in between finds no server"));
            }
            last = step;
        }
        Ok(())
    }
}

/// The parts of a plan, in their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    HostsOfChecks,
    Additions,
    /// HAProxy passes over a route that leads to an unpublished backend.
    Publishing,
    NewRoutes,
    Ready,
    Out,
    GoneRoutes,
    GoneHostsOfChecks,
}

impl Step {
    fn of(change: &Change, added: &BTreeSet<&ServerName>, checks: Option<&Token>) -> Self {
        match change {
            Change::AddToMap(map, ..) | Change::SetInMap(map, ..) if checks == Some(map) => Self::HostsOfChecks,
            Change::RemoveFromMap(map, _) if checks == Some(map) => Self::GoneHostsOfChecks,
            Change::AddBackend(..) | Change::AddServer(..) | Change::RefreshCookies(..) => Self::Additions,
            Change::PublishBackend(..) => Self::Publishing,
            change if server_of(change).is_some_and(|name| added.contains(name)) => Self::Additions,
            Change::AddToMap(..) | Change::SetInMap(..) => Self::NewRoutes,
            Change::RemoveFromMap(..) => Self::GoneRoutes,
            change if stops_requests(change) => Self::Out,
            _ => Self::Ready,
        }
    }
}

fn server_of(change: &Change) -> Option<&ServerName> {
    match change {
        Change::AddServer(name, ..)
        | Change::SetState(name, _)
        | Change::ReadyOnceChecked(name)
        | Change::SetWeight(name, _)
        | Change::Requeue(name, _)
        | Change::SetAddress(name, _)
        | Change::SetServerLimit(name, _)
        | Change::EnableChecks(name)
        | Change::EnableAgent(name)
        | Change::MarkUp(name)
        | Change::SetCheckPort(name, _)
        | Change::SetCheckAddress(name, _)
        | Change::EnableTls(name) => Some(name),
        Change::AddBackend(..)
        | Change::PublishBackend(_)
        | Change::RefreshCookies(_)
        | Change::EnableFrontend(_)
        | Change::SetFrontendLimit(..)
        | Change::AddToMap(..)
        | Change::SetInMap(..)
        | Change::RemoveFromMap(..) => None,
    }
}

impl RuntimeState {
    /// Returns the first violated invariant, after a plan for these services was applied. Takes time in proportion to their servers
    /// and to all routes.
    pub(super) fn check_invariants(&self, services: &[(&ServiceId, Option<&DesiredService>)]) -> Result<(), String> {
        self.check_uses(services)?;
        services.iter().try_for_each(|(id, wanted)| self.check_servers(id, *wanted))
    }

    /// A host has as many uses as routes. Compares those of the changed services' hosts, and the sum of all.
    fn check_uses(&self, services: &[(&ServiceId, Option<&DesiredService>)]) -> Result<(), String> {
        if let Some((host, uses)) = self.host_uses.iter().find(|(_, uses)| **uses <= 0) {
            return Err(format!("{host} is listed with {uses} routes"));
        }
        let changed = services.iter().filter_map(|(id, _)| self.routes.get(*id)).flatten();
        let mut counts: BTreeMap<&str, i64> = changed.map(|path| (host_of(path), 0)).collect();
        let mut sum = 0;
        for path in self.routes.values().flatten() {
            counts.entry(host_of(path)).and_modify(|count| *count += 1);
            sum += 1;
        }
        if let Some((host, count)) = counts.iter().find(|(host, count)| self.host_uses.get(**host) != Some(count)) {
            return Err(format!("{host} has {count} routes, and is listed with {:?}", self.host_uses.get(*host)));
        }
        match self.host_uses.values().sum::<i64>() {
            uses if uses == sum => Ok(()),
            uses => Err(format!("there are {sum} routes, and {uses} are listed by host")),
        }
    }

    /// A server that runs is wanted, and a wanted server runs or waits for a restart. A section that a restart takes keeps its
    /// servers until then.
    fn check_servers(&self, id: &ServiceId, wanted: Option<&DesiredService>) -> Result<(), String> {
        let sections = self.desired_sections(id, wanted).into_iter();
        for (section, wanted) in sections.filter(|(section, _)| !self.kept_sections.contains(section)) {
            let none = BTreeMap::new();
            let servers = self.servers.get(&section).unwrap_or(&none);
            for (name, server) in servers {
                if server.leaving == has_server(wanted, name) {
                    return Err(format!("{section}/{name} leaves although it is wanted, or stays although it isn't"));
                }
                if server.leaving && !server.maint {
                    return Err(format!("{section}/{name} leaves, and may get requests"));
                }
            }
            let missing = wanted.iter().find(|server| !servers.contains_key(server.id.as_str()));
            if let Some(server) = missing.filter(|_| !self.not_addable.contains(id)) {
                return Err(format!("{section}/{} neither runs nor waits for a restart", server.id));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::plan::Scope;
    use crate::runtime::plan::server::LiveServer;
    use crate::runtime::plan::tests::{id, maps, settled};

    const STORE: &str = "http-services/a/domain a.com b.com
        http-services/a/path / /x
        http-services/a/upstreams/1 10.0.0.1:80
        http-services/a/upstreams/2 10.0.0.2:80";

    /// The plan that adds the service and removes two servers that are unknown to it.
    fn plan() -> Plan {
        let (id, store) = (id("a"), settled(STORE));
        let wanted = store.service(&id).map(|wanted| &**wanted);
        let mut plan = RuntimeState::default().plan_changes(Scope::These, &[(&id, wanted)], &maps());
        plan.removals = ["8", "9"].map(name).into();
        assert_eq!(plan.check_invariants(maps().checks.as_ref()), Ok(()));
        plan
    }

    fn name(server: &str) -> ServerName {
        ServerName { backend: "http-a".parse().unwrap(), server: server.parse().unwrap() }
    }

    fn violation_of_plan(break_plan: impl FnOnce(&mut Plan)) -> String {
        let mut plan = plan();
        break_plan(&mut plan);
        plan.check_invariants(maps().checks.as_ref()).unwrap_err()
    }

    /// The violation after a change of the state in which the service is applied.
    fn violation_of_state(break_state: impl FnOnce(&mut RuntimeState)) -> String {
        let (id, store) = (id("a"), settled(STORE));
        let services = [(&id, store.service(&id).map(|wanted| &**wanted))];
        let mut state = RuntimeState::default();
        state.mark_applied(Scope::All, &services);
        assert_eq!(state.check_invariants(&services), Ok(()));
        break_state(&mut state);
        state.check_invariants(&services).unwrap_err()
    }

    #[test]
    fn a_server_that_is_planned_twice_is_a_violation() {
        assert_eq!(violation_of_plan(|plan| plan.removals.push(name("8"))), "http-a/8 is removed twice");
        assert_eq!(violation_of_plan(|plan| plan.removals.push(name("1"))), "http-a/1 is both changed and removed");
        let added = violation_of_plan(|plan| plan.changes.insert(0, plan.changes[0].clone()));
        assert_eq!(added, "http-a/1 is added twice");
        let entry = violation_of_plan(|plan| plan.changes.push(plan.changes.last().unwrap().clone()));
        assert_eq!(entry, "b.com/x/ of /m/paths.map is changed twice");
        let requeued =
            violation_of_plan(|plan| plan.requeues.push(Change::SetAddress(name("1"), "10.0.0.3:80".parse().unwrap())));
        assert_eq!(requeued, "`set server http-a/1 addr 10.0.0.3 port 80` gives no server its turn again");
    }

    #[test]
    fn an_addition_after_what_needs_it_is_a_violation() {
        let late = violation_of_plan(|plan| plan.changes.rotate_left(1));
        assert!(late.starts_with("`add server http-a/1 ") && late.contains("comes too late"), "{late}");
        let unpublished =
            violation_of_plan(|plan| plan.changes.push(Change::PublishBackend("http-a".parse().unwrap())));
        assert!(unpublished.starts_with("`publish backend http-a` comes too late"), "{unpublished}");
        let backend = Change::AddBackend("http-a".parse().unwrap(), "discover-http".parse().unwrap());
        let missing = violation_of_plan(|plan| plan.changes.push(backend));
        assert!(missing.starts_with("`add backend http-a from discover-http` comes too late"), "{missing}");
        let (out, ready) = (Change::SetWeight(name("3"), 0), Change::SetWeight(name("4"), 1));
        let starved = violation_of_plan(|plan| plan.changes.extend([out, ready]));
        assert!(starved.starts_with("`set server http-a/4 weight 1` comes too late"), "{starved}");
    }

    #[test]
    fn a_host_with_another_number_of_routes_is_a_violation() {
        let none = violation_of_state(|state| _ = state.host_uses.insert("a.com".into(), 0));
        assert_eq!(none, "a.com is listed with 0 routes");
        let fewer = violation_of_state(|state| _ = state.host_uses.insert("a.com".into(), 1));
        assert_eq!(fewer, "a.com has 2 routes, and is listed with Some(1)");
        let stale = violation_of_state(|state| _ = state.host_uses.insert("gone.com".into(), 1));
        assert_eq!(stale, "there are 4 routes, and 5 are listed by host");
    }

    #[test]
    fn a_server_that_is_neither_wanted_nor_leaves_is_a_violation() {
        let server = |state: &mut RuntimeState, break_server: fn(&mut LiveServer)| {
            break_server(state.servers.get_mut("http-a").unwrap().get_mut("1").unwrap());
        };
        let leaves = violation_of_state(|state| server(state, |it| (it.leaving, it.maint) = (true, true)));
        assert_eq!(leaves, "http-a/1 leaves although it is wanted, or stays although it isn't");
        let gone = |change: fn(&mut LiveServer)| {
            violation_of_state(|state| {
                server(state, change);
                let servers = state.servers.get_mut("http-a").unwrap();
                let moved = servers.remove("1").unwrap();
                servers.insert("0".into(), moved);
            })
        };
        assert_eq!(gone(|_| {}), "http-a/0 leaves although it is wanted, or stays although it isn't");
        assert_eq!(gone(|it| it.leaving = true), "http-a/0 leaves, and may get requests");
        let missing = gone(|it| (it.leaving, it.maint) = (true, true));
        assert_eq!(missing, "http-a/1 neither runs nor waits for a restart");
    }
}
