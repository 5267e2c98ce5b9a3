//! `drain`, `maint` and `ready` of a whole host: the overrides of all its upstreams.
//!
//! An override of the whole host names the host. So `ready --host` takes back exactly what was done to the host, also for an
//! upstream that has not come back yet, and leaves overrides of single upstreams alone.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Cause, HostName, Node, Override, OverrideState, ServiceId, Topology, UpstreamId};
use program::output;

use super::host_report::HostReport;
use super::{change_override, find_override};
use crate::balancer_api::{Answers, Upstreams};
use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::target::host::{HostArg, HostUpstreams};
use crate::upstreams::{StoreView, list_unreachable};
use crate::wait::FollowGoal;

/// The most names in a warning.
const MAX_NAMED: usize = 5;

/// The changes of a host's overrides.
#[derive(Debug, Default)]
pub(super) struct HostPlan {
    pub(super) edit: Edit,
    /// The upstreams that the command is about.
    pub(super) upstreams: BTreeSet<(ServiceId, UpstreamId)>,
    /// Those with an override of their own, which stays.
    pub(super) kept: BTreeSet<(ServiceId, UpstreamId)>,
    /// The upstreams on which no request may be open at the end. Empty for `ready`.
    pub(super) drained: BTreeSet<(ServiceId, UpstreamId)>,
}

/// `drain --host` and `maint --host`.
pub(super) async fn take_out(
    context: &Context,
    host: &HostArg,
    state: OverrideState,
    force: bool,
    changing: &Changing,
) -> Result<Outcome, Error> {
    let store = context.read_store().await?;
    let found = host.find_upstreams(&store.topology)?;
    let plan = HostPlan::take_out(&store, &found, state)?;
    list_warnings(&store, &found).iter().for_each(|warning| output::print_message(&format!("warning: {warning}")));
    if !force {
        refuse_last_upstreams(context, &store, &found.name, &plan).await?;
    }
    let goal = FollowGoal { drained: plan.drained.clone(), needs_vanished: true, ..FollowGoal::default() };
    write_plan(context, &store, &found, &plan, goal, changing).await
}

/// `ready --host`.
pub(super) async fn put_back(context: &Context, host: &HostArg, changing: &Changing) -> Result<Outcome, Error> {
    let store = context.read_store().await?;
    let found = host.find_upstreams(&store.topology)?;
    let plan = HostPlan::put_back(&store, &found)?;
    write_plan(context, &store, &found, &plan, FollowGoal::default(), changing).await
}

async fn write_plan(
    context: &Context,
    store: &Store,
    found: &HostUpstreams,
    plan: &HostPlan,
    goal: FollowGoal,
    changing: &Changing,
) -> Result<Outcome, Error> {
    let written = context.write_edit(store, &plan.edit, changing, goal).await?;
    // The overrides are written, so the operator has to see them before an error of the wait.
    context.screen.show(&HostReport::new(store, &found.name, plan, &written))?;
    written.followed.map(|()| Outcome::Yes)
}

impl HostPlan {
    /// Plans to take out all upstreams of a host. An upstream's own override that is as strict stays its own.
    fn take_out(store: &Store, found: &HostUpstreams, state: OverrideState) -> Result<Self, Error> {
        let mut plan = Self { drained: found.present.clone(), upstreams: found.present.clone(), ..Self::default() };
        for (service, id) in &found.present {
            let standing = find_override(store, service, id)?;
            let is_own = standing.is_some_and(|imposed| is_own(imposed, &found.name));
            if is_own {
                plan.kept.insert((service.clone(), id.clone()));
            }
            let is_strict =
                standing.is_some_and(|it| it.state == Some(state) || it.state == Some(OverrideState::Maint));
            if is_own && is_strict {
                continue;
            }
            // A stricter state doesn't make an upstream's own override the host's: `ready --host` must not put an upstream back
            // that was taken out for a reason of its own.
            let host = (!is_own).then(|| found.name.clone());
            change_override(&mut plan.edit, store, service, id, |imposed| {
                (imposed.state, imposed.host) = (Some(state), host.clone());
            })?;
        }
        Ok(plan)
    }

    /// Plans to take back the overrides of the whole host.
    fn put_back(store: &Store, found: &HostUpstreams) -> Result<Self, Error> {
        let mut plan = Self { upstreams: &found.present | &found.taken_out, ..Self::default() };
        for (service, id) in &found.taken_out {
            change_override(&mut plan.edit, store, service, id, |imposed| {
                (imposed.state, imposed.host) = (None, None);
            })?;
        }
        for (service, id) in found.present.difference(&found.taken_out) {
            if find_override(store, service, id)?.is_some_and(|imposed| is_own(imposed, &found.name)) {
                plan.kept.insert((service.clone(), id.clone()));
            }
        }
        Ok(plan)
    }
}

/// The override takes the upstream out, and not because of this host.
fn is_own(imposed: &Override, host: &HostName) -> bool {
    imposed.state.is_some() && imposed.host.as_ref() != Some(host)
}

/// Lists what may keep requests going to the host after the command.
fn list_warnings(store: &Store, found: &HostUpstreams) -> Vec<String> {
    let host = &found.name;
    let mut warnings = Vec::new();
    if let Some(names) = join_some(found.unreadable.iter().map(String::as_str)) {
        warnings.push(format!("records that can't be read may be of {host}, and are left alone: {names}"));
    }
    let present: BTreeSet<String> = found.present.iter().map(|(service, id)| format!("{service}/{id}")).collect();
    for (node, record) in store.balancers.records_by_node() {
        let held = record.into_iter().flat_map(|record| &record.held);
        let unknown = held.filter(|name| !present.contains(*name) && !has_record(&store.topology, name));
        if let Some(names) = join_some(unknown.map(String::as_str)) {
            warnings
                .push(format!("{node} retains upstreams whose records are gone, and one may be of {host}: {names}"));
        }
    }
    for is_v4 in [true, false] {
        let addresses: Vec<String> =
            found.addresses.iter().filter(|it| it.is_ipv4() == is_v4).map(ToString::to_string).collect();
        if addresses.len() > 1 {
            let names = join_some(addresses.iter().map(String::as_str)).unwrap_or_default();
            let todo = "if these are several hosts, give each announcer a --host-name";
            warnings.push(format!("{host} has upstreams at several addresses, {names}: {todo}"));
        }
    }
    warnings
}

/// True if the store has the record of an upstream that a balancer names: `http-shop/node-1`.
fn has_record(topology: &Topology, name: &str) -> bool {
    let Some((service, id)) = name.split_once('/') else { return false };
    let Ok(id) = id.parse::<UpstreamId>() else { return false };
    topology.services().iter().any(|(known, keys)| known.to_string() == service && keys.upstream(&id).is_some())
}

/// The first names, and the number of the others; None without names.
fn join_some<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let all: Vec<&str> = names.collect();
    let some = all.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMED) {
        _ if all.is_empty() => None,
        0 => Some(some),
        more => Some(format!("{some} and {more} more")),
    }
}

/// Refuses to take the last upstream out of a service, by the keys and by what balancers say of HAProxy's checks.
async fn refuse_last_upstreams(
    context: &Context,
    store: &Store,
    host: &HostName,
    plan: &HostPlan,
) -> Result<(), Error> {
    let way_out = "nothing was changed; start another upstream elsewhere first, or --force";
    let emptied = find_emptied_services(store, plan);
    if let Some(names) = join_some(emptied.iter().map(String::as_str)) {
        return Err(Error::Refused(format!("{host} has the last ready upstreams of {names}: {way_out}")));
    }
    let answers: Answers<Upstreams> = context.balancer_api(store)?.ask_all("upstreams").await;
    for (node, reason) in list_unreachable(&answers) {
        output::print_message(&format!(
            "warning: {node} can't be asked if other upstreams of the services are up: {reason}"
        ));
    }
    let unserved = find_unserved_services(&answers, plan);
    let unserved: Vec<String> = unserved.iter().map(|(service, node)| format!("{service} at {node}")).collect();
    match join_some(unserved.iter().map(String::as_str)) {
        Some(names) => {
            Err(Error::Refused(format!("{host} has the last upstreams that get requests, of {names}: {way_out}")))
        }
        None => Ok(()),
    }
}

/// The services that have a ready upstream now, and none after the edit.
fn find_emptied_services(store: &Store, plan: &HostPlan) -> Vec<String> {
    let after = plan.edit.apply_to(&store.topology);
    let services: BTreeSet<&ServiceId> = plan.upstreams.iter().map(|(service, _)| service).collect();
    let emptied = services.into_iter().filter(|id| has_ready(&store.topology, id) && !has_ready(&after, id));
    emptied.map(ToString::to_string).collect()
}

fn has_ready(topology: &Topology, service: &ServiceId) -> bool {
    let Some(keys) = topology.services().get(service) else { return false };
    keys.upstreams().any(|(id, _)| {
        let asked = StoreView::from_keys(keys, id);
        asked.state == Some("ready") && asked.weight != Some(0)
    })
}

/// The services of which the host has the last upstreams that get requests, each with the first balancer that says so.
fn find_unserved_services<'a>(answers: &'a Answers<Upstreams>, plan: &HostPlan) -> BTreeMap<&'a str, &'a Node> {
    let taken: BTreeSet<(String, &str)> =
        plan.upstreams.iter().map(|(service, id)| (service.to_string(), id.as_str())).collect();
    let mut unserved = BTreeMap::new();
    for (node, answer) in answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?))) {
        let (mut served, mut left) = (BTreeSet::new(), BTreeSet::new());
        for upstream in &answer.upstreams {
            // HAProxy uses a backup once the others are gone.
            let is_spare = upstream.verdict.as_ref().and_then(|verdict| verdict.cause()) == Some(&Cause::Backup);
            if taken.contains(&(upstream.service.clone(), upstream.id.as_str())) {
                served.extend((upstream.balanced == Some(true)).then_some(upstream.service.as_str()));
            } else if upstream.balanced == Some(true) || is_spare {
                left.insert(upstream.service.as_str());
            }
        }
        for service in served.difference(&left) {
            unserved.entry(*service).or_insert(node);
        }
    }
    unserved
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::store::tests::store;

    const KEYS: [(&str, &str); 9] = [
        ("http-services/shop/overrides/b", r#"{"state":"drain"}"#),
        ("http-services/shop/overrides/c", r#"{"state":"drain","weight":7,"host":"web-1"}"#),
        ("http-services/shop/overrides/d", r#"{"weight":5}"#),
        ("http-services/shop/overrides/gone", r#"{"state":"maint","host":"web-1"}"#),
        ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","host":"web-1"}"#),
        ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.1:81","host":"web-1"}"#),
        ("http-services/shop/upstreams/c", r#"{"address":"10.0.0.1:82","host":"web-1"}"#),
        ("http-services/shop/upstreams/d", r#"{"address":"10.0.0.1:83","host":"web-1"}"#),
        ("http-services/shop/upstreams/e", r#"{"address":"10.0.0.2:80","host":"web-2"}"#),
    ];

    /// The changes of a plan, a line for each key, and the upstreams that keep their own override.
    fn plan(plan: impl Fn(&Store, &HostUpstreams) -> Result<HostPlan, Error>, keys: &[(&str, &str)]) -> String {
        let store = store(keys);
        let found = "web-1".parse::<HostArg>().unwrap().find_upstreams(&store.topology).unwrap();
        let plan = match plan(&store, &found) {
            Ok(plan) => plan,
            Err(error) => return format!("{error}\n"),
        };
        let line = |(key, change): (&String, &crate::edit::Change)| {
            let id = key.rsplit('/').next().unwrap_or_default();
            format!("{id}: {}\n", change.after.as_deref().unwrap_or("deleted"))
        };
        let kept = plan.kept.iter().map(|(_, id)| format!("{id} keeps its own\n"));
        plan.edit.changes().map(line).chain(kept).collect()
    }

    fn drain(store: &Store, found: &HostUpstreams) -> Result<HostPlan, Error> {
        HostPlan::take_out(store, found, OverrideState::Drain)
    }

    fn maint(store: &Store, found: &HostUpstreams) -> Result<HostPlan, Error> {
        HostPlan::take_out(store, found, OverrideState::Maint)
    }

    #[test]
    fn ready_takes_back_what_was_done_to_the_host_and_nothing_else() {
        expect![[r#"
            a: {"state":"drain","host":"web-1"}
            d: {"state":"drain","weight":5,"host":"web-1"}
            b keeps its own
        "#]]
        .assert_eq(&plan(drain, &KEYS));
        expect![[r#"
            a: {"state":"maint","host":"web-1"}
            b: {"state":"maint"}
            c: {"state":"maint","weight":7,"host":"web-1"}
            d: {"state":"maint","weight":5,"host":"web-1"}
            b keeps its own
        "#]]
        .assert_eq(&plan(maint, &KEYS));
        expect![[r#"
            c: {"weight":7}
            gone: deleted
            b keeps its own
        "#]]
        .assert_eq(&plan(HostPlan::put_back, &KEYS));
        let garbage = [KEYS[4], ("http-services/shop/overrides/a", "?")];
        for refused in [plan(drain, &garbage), plan(HostPlan::put_back, &garbage)] {
            assert!(refused.contains("overrides/a makes no sense, mend or delete it"), "{refused}");
        }
    }

    #[test]
    fn the_last_ready_upstream_of_a_service_is_found() {
        let emptied = |more: &[(&str, &str)]| {
            let store = store(&[&[KEYS[4]], more].concat());
            let found = "web-1".parse::<HostArg>().unwrap().find_upstreams(&store.topology).unwrap();
            find_emptied_services(&store, &drain(&store, &found).unwrap())
        };
        assert_eq!(emptied(&[]), ["http-shop"]);
        assert!(emptied(&[KEYS[8]]).is_empty());
        assert_eq!(emptied(&[KEYS[8], ("http-services/shop/overrides/e", r#"{"state":"maint"}"#)]), ["http-shop"]);
        assert_eq!(emptied(&[KEYS[8], ("http-services/shop/overrides/e", r#"{"weight":0}"#)]), ["http-shop"]);
        assert!(
            emptied(&[("http-services/shop/overrides/a", r#"{"state":"drain"}"#)]).is_empty(),
            "it serves nobody now"
        );
    }

    #[test]
    fn the_last_upstream_that_is_up_is_found_at_each_balancer() {
        let store = store(&KEYS);
        let found = "web-1".parse::<HostArg>().unwrap().find_upstreams(&store.topology).unwrap();
        let plan = drain(&store, &found).unwrap();
        let unserved = |e: &str| {
            let text = format!(
                r#"{{"upstreams":[{{"service":"http-shop","id":"a","balanced":true}},
                    {{"service":"http-shop","id":"e","balanced":false,"verdict":
                        {{"gets_requests":false,"because":{{"cause":"{e}","words":""}},"also":[]}}}},
                    {{"service":"http-blog","id":"x","balanced":true}}]}}"#
            );
            let lb1 = serde_json::from_str(&text).unwrap();
            let answers: Answers<Upstreams> =
                [("lb1".parse().unwrap(), Ok(lb1)), ("lb2".parse().unwrap(), Err("no".to_owned()))].into();
            find_unserved_services(&answers, &plan)
                .into_iter()
                .map(|(id, node)| format!("{id} {node}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(unserved("check"), ["http-shop lb1"]);
        assert!(unserved("backup").is_empty(), "a backup takes over");
    }

    #[test]
    fn what_may_still_get_requests_is_said() {
        let retains =
            r#"{"cluster":"7","applied":9,"pending":[],"held":["http-shop/a","http-shop/lost"],"draining":{}}"#;
        let keys = [
            &KEYS[..],
            &[
                ("balancers/lb1", retains),
                ("http-services/zoo/upstreams/odd", "?"),
                ("http-services/zoo/upstreams/z", r#"{"address":"10.0.0.9:80","host":"web-1"}"#),
                ("http-services/zoo/upstreams/y", r#"{"address":"[fd00::1]:80","host":"web-1"}"#),
            ],
        ]
        .concat();
        let store = store(&keys);
        let found = "web-1".parse::<HostArg>().unwrap().find_upstreams(&store.topology).unwrap();
        expect![[r#"
            records that can't be read may be of web-1, and are left alone: http-services/zoo/upstreams/odd
            lb1 retains upstreams whose records are gone, and one may be of web-1: http-shop/lost
            web-1 has upstreams at several addresses, 10.0.0.1, 10.0.0.9: if these are several hosts, give each announcer a --host-name"#]]
        .assert_eq(&list_warnings(&store, &found).join("\n"));
    }
}
