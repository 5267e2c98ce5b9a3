//! Makes one entry of many like problems. Pure.
//!
//! A host that is down, or a restart that is due, may concern each of 1,000 services. A reader needs the cause once.

use std::collections::BTreeMap;

use discovery::Cause;

use super::{Harm, NAMED, Problem, ProblemKind, list_names};

/// Like problems have the same harm, kind and cause.
type Likeness = (Harm, ProblemKind, Option<Cause>);

/// Makes one entry of all problems that are alike, if they are more than [`NAMED`]. It stands in the place of the first of them.
pub fn group_like_problems(found: Vec<Problem>) -> Vec<Problem> {
    // Sizes first: up to `NAMED` like problems stay as they are, each in its place.
    let mut sizes: BTreeMap<Likeness, usize> = BTreeMap::new();
    found.iter().filter_map(find_likeness).for_each(|likeness| *sizes.entry(likeness).or_default() += 1);
    let mut places: BTreeMap<Likeness, usize> = BTreeMap::new();
    let mut entries: Vec<Vec<Problem>> = Vec::new();
    for problem in found {
        let likeness = find_likeness(&problem).filter(|likeness| sizes.get(likeness).is_some_and(|size| *size > NAMED));
        let place = likeness.map(|likeness| *places.entry(likeness).or_insert(entries.len()));
        match place.and_then(|place| entries.get_mut(place)) {
            Some(like) => like.push(problem),
            None => entries.push(vec![problem]),
        }
    }
    entries.into_iter().flat_map(merge_like_problems).collect()
}

/// `None` if there are no like problems.
fn find_likeness(problem: &Problem) -> Option<Likeness> {
    let Problem { harm, kind, cause, .. } = problem;
    problem.subject.as_ref().map(|_| (*harm, *kind, cause.clone()))
}

/// One entry of like problems, or those that can't be one.
fn merge_like_problems(like: Vec<Problem>) -> Vec<Problem> {
    let count = like.len();
    let names = list_names(like.iter().map(|problem| problem.subject.clone().unwrap_or_default()));
    let Some(first) = like.first().filter(|_| count > 1) else { return like };
    let Some(what) = first.kind.describe_many(count, &names) else { return like };
    // The reasons differ by addresses, times and keys. The first one is an example.
    let reason = if like.iter().all(|problem| problem.reason == first.reason) {
        first.reason.clone()
    } else {
        format!("such as {}: {}", first.subject.as_deref().unwrap_or_default(), first.reason)
    };
    let first = first.clone();
    let services = like.into_iter().flat_map(|problem| problem.services).collect();
    vec![Problem { what, reason, services, count, ..first }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str, kind: ProblemKind, cause: &Cause, reason: &str) -> Problem {
        let id = crate::desired::names::parse_section(name).unwrap();
        Problem::new(Harm::Outage, kind, format!("{name} is ill"), reason).of_service(&id).with_cause(cause)
    }

    #[test]
    fn like_problems_are_one_entry_from_the_fifth_on() {
        let like = |count: usize| -> Vec<Problem> {
            let mut all: Vec<Problem> = (0..count)
                .map(|n| problem(&format!("http-s{n}"), ProblemKind::NoRequests, &Cause::Pending, "it waits"))
                .collect();
            all.insert(1, problem("http-other", ProblemKind::NoRequests, &Cause::Check, "L4CON"));
            all.push(problem("http-last", ProblemKind::UpstreamsFail, &Cause::Pending, "it waits"));
            all
        };
        assert_eq!(group_like_problems(like(4)), like(4));
        let grouped = group_like_problems(like(7));
        let lines: Vec<_> = grouped.iter().map(|it| format!("{} {} {}", it.count, it.what, it.reason)).collect();
        assert_eq!(
            lines,
            [
                "7 7 services have no upstream that gets requests: http-s0, http-s1, http-s2, http-s3, 3 more it waits",
                "1 http-other is ill L4CON",
                "1 http-last is ill it waits",
            ]
        );
        assert_eq!((grouped[0].services.len(), grouped[0].filter()), (7, "no_requests.pending".to_owned()));
    }

    #[test]
    fn reasons_that_differ_have_an_example() {
        let ill =
            |n: u8| problem(&format!("http-s{n}"), ProblemKind::UpstreamsFail, &Cause::Check, &format!("for {n} s"));
        let grouped = group_like_problems((3..9).map(ill).collect());
        assert_eq!((grouped.len(), &*grouped[0].reason), (1, "such as http-s3: for 3 s"));
    }

    #[test]
    fn problems_without_a_subject_stay_apart() {
        let alone = Problem::new(Harm::Degraded, ProblemKind::LimitChanged, "maxconn was changed", "20, not 500");
        let all = vec![alone; 9];
        assert_eq!(group_like_problems(all.clone()), all);
    }
}
