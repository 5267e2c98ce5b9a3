//! What the balancers themselves find not right, as findings. Pure.
//!
//! confgen is the judge of its HAProxy: this module weighs its problems, and decides none of them again.

use std::collections::{BTreeMap, BTreeSet};

use discovery::Cause;

use super::super::facts::Facts;
use super::{Area, Finding, Findings};
use crate::balancer_api::Problem;

/// The kinds that `lint` finds key by key and file by file, for all balancers together.
const OF_LINT: [&str; 5] = ["certificate_expired", "certificate_expires", "certificate_refused", "held", "quarantined"];

/// The same problem of several balancers. Their reasons may differ by times.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sameness<'a> {
    kind: &'a str,
    cause: Option<&'a Cause>,
    services: &'a [String],
    what: &'a str,
}

/// The problems of all balancers, each once.
pub(super) fn judge_problems(facts: &Facts) -> Vec<Finding> {
    let mut same: BTreeMap<Sameness, (&Problem, BTreeSet<&str>)> = BTreeMap::new();
    for (node, problem) in list_problems(facts).filter(|(_, problem)| !OF_LINT.contains(&&*problem.kind)) {
        let Problem { kind, cause, services, what, .. } = problem;
        let sameness = Sameness { kind, cause: cause.as_ref(), services, what };
        same.entry(sameness).or_insert_with(|| (problem, BTreeSet::new())).1.insert(node);
    }
    same.into_values().flat_map(|(problem, nodes)| weigh(problem, &nodes).list).collect()
}

/// True if a balancer's problem says the same as this fault of `lint`.
pub(super) fn is_told(facts: &Facts, key: &str, kind: &str, cause: Option<&Cause>) -> bool {
    list_problems(facts).filter(|(_, problem)| !OF_LINT.contains(&&*problem.kind)).any(|(node, problem)| {
        let is_balancers = key.strip_prefix("balancers/") == Some(node) && problem.services.is_empty();
        let is_services = problem.services.iter().any(|section| is_below(key, section));
        // `lint` names a cause that the balancer judged, so the kind may have another word there.
        let is_same = problem.kind == kind || (cause.is_some() && problem.cause.as_ref() == cause);
        is_same && (is_balancers || is_services)
    })
}

fn list_problems(facts: &Facts) -> impl Iterator<Item = (&str, &Problem)> {
    let answers = facts.problems.iter().filter_map(|(node, it)| Some((node.as_str(), it.as_ref().ok()?)));
    answers.flat_map(|(node, answer)| answer.problems.iter().map(move |problem| (node, problem)))
}

/// True if the key belongs to the service of this section: `http-services/shop/domain` to `http-shop`.
fn is_below(key: &str, section: &str) -> bool {
    let folder = find_folder(section);
    folder.is_some_and(|folder| key.starts_with(&folder))
}

fn find_folder(section: &str) -> Option<String> {
    let (kind, name) = section.split_once('-')?;
    Some(format!("{kind}-services/{name}/"))
}

fn weigh(problem: &Problem, nodes: &BTreeSet<&str>) -> Findings {
    let nodes = nodes.iter().copied().collect::<Vec<_>>().join(", ");
    let is_of_balancer = problem.services.is_empty();
    let mut found = Findings::of(if is_of_balancer { Area::Balancers } else { Area::Services });
    let what = if is_of_balancer {
        format!("{}: {}", problem.what, problem.reason)
    } else {
        format!("{}, at {nodes}: {}", problem.what, problem.reason)
    };
    // Many services have no folder in common.
    let folder = problem.service.as_deref().and_then(find_folder);
    let subject = folder.as_ref().unwrap_or(&nodes);
    let todo = advise(problem, &nodes);
    match problem.harm.as_str() {
        "outage" => found.error(subject, what, "requests fail", todo),
        "blocked" => found.error(subject, what, "changes don't reach HAProxy, which serves on as before", todo),
        "degraded" => found.warn(subject, what, "a part doesn't work as it should, and the rest does", todo),
        _ => found.warn(subject, what, "nothing fails yet", todo),
    }
    found
}

/// The remedy. A balancer's own commands run on its host.
fn advise(problem: &Problem, nodes: &str) -> String {
    match (&problem.command, problem.kind.as_str()) {
        (Some(command), _) if command.starts_with("discoverctl ") || command.starts_with("etcdctl ") => command.clone(),
        (Some(command), _) => format!("{command}, on {nodes}"),
        (None, "out_of_sync" | "remark") => format!("mend the file on {nodes}; confgen reads it again"),
        (None, "connections_cut") => {
            "restart HAProxy less often, or raise handover's --old-processes or --old-memory".to_owned()
        }
        (None, _) => format!("see the console of {nodes}: its confgen's --admin"),
    }
}
