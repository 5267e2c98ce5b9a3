//! `check` and `verify`: every balancer sends requests to an upstream, or something answers there. The words and their
//! meaning are those of haproxy-docker-config.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use discovery::{Cause, Node, ServiceId, Topology, UpstreamId};
use serde::Serialize;

use crate::balancer_api::{Answers, Traffic, Upstreams};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::target::{ServiceArg, TargetArg};
use crate::upstreams::{BalancerView, Row, build_rows, list_unreachable};
use crate::verdict::Keys;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl check
  discoverctl check shop db/node-1
  until discoverctl check shop/node-1; do sleep 1; done

balanced: every live balancer sends new requests there. not_balanced: a balancer doesn't, and `discoverctl explain SVC/ID` says
why. –: a balancer can't be asked, and no other one says no. Exit code 0 only if all upstreams are balanced. Exit code 6 if a
balancer can't be asked, because the answer of the others alone would be a guess.";

pub(crate) const VERIFY_EXAMPLES: &str = "Examples:
  discoverctl verify
  discoverctl verify shop

found: HAProxy's checks get an answer. not_found: at one balancer they don't. –: no balancer can tell, because the check is off,
hasn't run yet or is paused by maintenance, or because a balancer can't be asked. Exit code 1 if any upstream is not_found. Exit
code 6 if a balancer can't be asked.";

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Check these services or upstreams instead of all
    #[arg(value_name = "SVC[/ID]")]
    targets: Vec<TargetArg>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Check this service instead of all
    #[arg(value_name = "SVC")]
    service: Option<ServiceArg>,
}

/// The answer of `check` and `verify`.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    /// By service, then by id.
    upstreams: Vec<CheckedUpstream>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// The status of one upstream.
#[derive(Debug, PartialEq, Serialize)]
struct CheckedUpstream {
    /// The section of its service: `http-shop`.
    service: String,
    id: String,
    /// `balanced` or `not_balanced`, `found` or `not_found`; null if a balancer can't tell and no other one says no.
    status: Option<&'static str>,
    /// The status at each balancer.
    balancers: BTreeMap<String, BalancerStatus>,
}

/// The status of an upstream at one balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct BalancerStatus {
    /// Null if the balancer can't tell.
    status: Option<&'static str>,
    /// The cause why the upstream gets no requests there, as `explain` names it; null if it gets requests.
    cause: Option<Cause>,
    /// The reason for the status, or the reason why the balancer can't tell.
    why: Option<String>,
}

/// The words for yes and no.
type YesNo = [&'static str; 2];
const BALANCED: YesNo = ["balanced", "not_balanced"];
const FOUND: YesNo = ["found", "not_found"];

/// The services and upstreams to check. None stands for all. A service without an id stands for all its upstreams.
struct Scope(Option<BTreeSet<(ServiceId, Option<UpstreamId>)>>);

impl Check {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let scope = Scope::from_targets(&self.targets, &store.topology)?;
        let answers = context.balancer_api(&store)?.ask_all("upstreams").await;
        let report = Report::from_answers(Keys::from(&store), &answers, &scope, BALANCED, judge_balanced);
        context.screen.show(&report)?;
        // Printed first, because the rows show the answers of the other balancers.
        require_all_answers(&answers)?;
        let all = report.upstreams.iter().all(|it| it.status == Some(BALANCED[0]));
        // A service that the operator named and that has no upstream gets no requests.
        let is_empty = report.upstreams.is_empty() && !self.targets.is_empty();
        Ok(if all && !is_empty { Outcome::Yes } else { Outcome::No })
    }
}

impl Verify {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let targets: Vec<TargetArg> = self.service.into_iter().map(TargetArg::Service).collect();
        let scope = Scope::from_targets(&targets, &store.topology)?;
        let answers = context.balancer_api(&store)?.ask_all("upstreams").await;
        let report = Report::from_answers(Keys::from(&store), &answers, &scope, FOUND, judge_found);
        context.screen.show(&report)?;
        require_all_answers(&answers)?;
        let any = report.upstreams.iter().any(|it| it.status == Some(FOUND[1]));
        Ok(if any { Outcome::No } else { Outcome::Yes })
    }
}

/// Refuses to decide while a balancer or its HAProxy doesn't answer. The other answers say nothing about that balancer.
fn require_all_answers(answers: &Answers<Upstreams>) -> Result<(), Error> {
    if answers.is_empty() {
        return Err(Error::NoBalancer("no balancer lives: nothing stands below balancers/".into()));
    }
    let silent: Vec<String> = answers.iter().filter_map(|(node, answer)| unasked_reason(node, answer)).collect();
    if silent.is_empty() { Ok(()) } else { Err(Error::NoBalancer(silent.join("; "))) }
}

/// The reason why a balancer's answer decides nothing; None if it does.
fn unasked_reason(node: &Node, answer: &Result<Upstreams, String>) -> Option<String> {
    match answer {
        Err(reason) => Some(format!("{node} can't be asked: {reason}")),
        Ok(upstreams) => upstreams.haproxy_error.as_ref().map(|error| format!("{node} can't ask its HAProxy: {error}")),
    }
}

impl Scope {
    fn from_targets(targets: &[TargetArg], topology: &Topology) -> Result<Self, Error> {
        let mut found = BTreeSet::new();
        for target in targets {
            found.insert(match target {
                TargetArg::Service(named) => (named.find_service(topology)?, None),
                TargetArg::Upstream(named) => {
                    let (service, id) = named.find_upstream(topology)?;
                    (service, Some(id))
                }
            });
        }
        Ok(Self((!targets.is_empty()).then_some(found)))
    }

    fn has_upstream(&self, service: &ServiceId, id: &UpstreamId) -> bool {
        let Some(named) = &self.0 else { return true };
        named.contains(&(service.clone(), None)) || named.contains(&(service.clone(), Some(id.clone())))
    }
}

impl Report {
    fn from_answers(
        keys: Keys,
        answers: &Answers<Upstreams>,
        scope: &Scope,
        words: YesNo,
        judge: impl Fn(&BalancerView) -> BalancerStatus,
    ) -> Self {
        let rows = build_rows(keys, answers, None);
        let asked = rows.iter().filter(|((service, id), _)| scope.has_upstream(service, id));
        let upstreams = asked.map(|(_, row)| CheckedUpstream::new(row, words, &judge)).collect();
        Self { upstreams, unreachable: list_unreachable(answers) }
    }
}

impl CheckedUpstream {
    /// One balancer's no decides. A yes needs the yes of all.
    fn new(row: &Row, [yes, no]: YesNo, judge: impl Fn(&BalancerView) -> BalancerStatus) -> Self {
        let by = row.balancers.iter().map(|(node, there)| (node.clone(), judge(there)));
        let balancers: BTreeMap<String, BalancerStatus> = by.collect();
        let statuses: BTreeSet<Option<&str>> = balancers.values().map(|it| it.status).collect();
        let is_silent = statuses.is_empty() || statuses.contains(&None);
        let status = if statuses.contains(&Some(no)) { Some(no) } else { (!is_silent).then_some(yes) };
        Self { service: row.service.clone(), id: row.id.clone(), status, balancers }
    }
}

/// Judges if the upstream gets new requests.
fn judge_balanced(there: &BalancerView) -> BalancerStatus {
    let [yes, no] = BALANCED;
    let status = there.balanced.map(|is| if is { yes } else { no });
    BalancerStatus { status, cause: there.cause.clone(), why: there.why.clone().or_else(|| there.describe_retained()) }
}

/// Judges if something answers at the upstream's address. HAProxy's last check says so, with or without requests there.
fn judge_found(there: &BalancerView) -> BalancerStatus {
    let (status, why) = match &there.traffic {
        None => (None, there.why.clone()),
        Some(traffic) if there.verdict.has_cause(&Cause::Check) => (Some(FOUND[1]), Some(check_text(traffic))),
        Some(traffic) => read_check(traffic),
    };
    BalancerStatus { status, cause: there.cause.clone(), why }
}

/// The last check's outcome with its words.
fn check_text(traffic: &Traffic) -> String {
    let words = [&traffic.check, &traffic.check_words].into_iter().flatten().map(String::as_str);
    words.collect::<Vec<_>>().join(": ")
}

/// Reads the status from HAProxy's last check, with a reason unless something answers.
fn read_check(traffic: &Traffic) -> (Option<&'static str>, Option<String>) {
    let [found, not_found] = FOUND;
    match traffic.check.as_deref() {
        _ if traffic.status.starts_with("MAINT") => (None, Some("in maintenance, which HAProxy doesn't check".into())),
        None if traffic.status == "no check" => (None, Some("its check is off".into())),
        None | Some("INI" | "UNK" | "SOCKERR" | "") => (None, Some("not checked yet".into())),
        // HAProxy changes UP and DOWN only after several checks in a row (`rise`, `fall`). It checks a drained server
        // all the same.
        _ if traffic.status.starts_with("DOWN") => (Some(not_found), Some(check_text(traffic))),
        _ if traffic.status.starts_with("UP") => (Some(found), None),
        Some(check) if check.ends_with("OK") || check == "L7OKC" => (Some(found), None),
        Some(_) => (Some(not_found), Some(check_text(traffic))),
    }
}

fn status_cell(status: Option<&'static str>) -> Cell {
    match status {
        None => "–".into(),
        Some(word) if word.starts_with("not_") => Cell::bad(word),
        Some(word) => Cell::good(word),
    }
}

impl Printable for Report {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["UPSTREAM", "STATUS", "BALANCER", "THERE", "WHY"]);
        for it in &self.upstreams {
            let name = format!("{}/{}", it.service, it.id);
            if it.balancers.is_empty() {
                table.add_row([
                    name.as_str().into(),
                    status_cell(it.status),
                    "–".into(),
                    "–".into(),
                    "no balancer lives".into(),
                ]);
            }
            for (node, status) in &it.balancers {
                let why = Cell::or_dash(status.why.as_ref());
                table.add_row([
                    name.as_str().into(),
                    status_cell(it.status),
                    node.as_str().into(),
                    status_cell(status.status),
                    why,
                ]);
            }
        }
        if self.upstreams.is_empty() { vec![Block::Text("no upstream".into())] } else { vec![Block::Table(table)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    fn answers(lb2: Result<&str, &str>) -> Answers<Upstreams> {
        let lb1 = r#"{"upstreams":[
            {"service":"http-shop","id":"a","balanced":true,"haproxy":{"status":"UP 1/3","up":true,"check":"L4OK"}},
            {"service":"http-shop","id":"b","balanced":false,"not_balanced":"HAProxy has it DOWN",
             "haproxy":{"status":"DOWN","check":"L4CON","check_words":"refused"}}]}"#;
        let parse = |text: &str| serde_json::from_str(text).unwrap();
        [("lb1".parse().unwrap(), Ok(parse(lb1))), ("lb2".parse().unwrap(), lb2.map(parse).map_err(str::to_owned))]
            .into()
    }

    fn lines(report: &Report) -> Vec<String> {
        let line = |it: &CheckedUpstream| {
            let by: Vec<_> = it.balancers.values().map(|it| it.status.unwrap_or("–")).collect();
            format!("{} {}: {}", it.id, it.status.unwrap_or("–"), by.join(" "))
        };
        report.upstreams.iter().map(line).collect()
    }

    fn report(answers: &Answers<Upstreams>, words: YesNo, judge: impl Fn(&BalancerView) -> BalancerStatus) -> Report {
        let store = store(&[
            ("http-services/shop/upstreams/a", "10.0.0.1:80"),
            ("http-services/shop/upstreams/b", "10.0.0.2:80"),
            ("http-services/shop/upstreams/c", "10.0.0.3:80"),
        ]);
        Report::from_answers(Keys::from(&store), answers, &Scope(None), words, judge)
    }

    #[test]
    fn balanced_is_everywhere_and_found_is_what_the_checks_say() {
        assert_eq!(
            lines(&report(&answers(Err("no")), BALANCED, judge_balanced)),
            ["a –: balanced –", "b not_balanced: not_balanced –", "c not_balanced: not_balanced –"]
        );
        let unchecked = r#"{"upstreams":[
            {"service":"http-shop","id":"a","balanced":true,"haproxy":{"status":"no check","up":true}},
            {"service":"http-shop","id":"b","haproxy":{"status":"DRAIN","check":"L7OK"}},
            {"service":"http-shop","id":"c","haproxy":{"status":"MAINT","check":"L4CON"}}]}"#;
        assert_eq!(
            lines(&report(&answers(Ok(unchecked)), FOUND, judge_found)),
            ["a –: found –", "b not_found: not_found found", "c –: – –"]
        );
        let both = report(&answers(Ok(&unchecked.replace("no check", "UP\",\"check\":\"L4OK"))), FOUND, judge_found);
        assert_eq!(lines(&both)[0], "a found: found found");
    }

    #[test]
    fn a_balancer_that_can_not_be_asked_leaves_the_answer_open() {
        let nobody: Answers<Upstreams> = Answers::new();
        assert_eq!(require_all_answers(&nobody).unwrap_err().exit_code(), 6);
        let alone = report(&nobody, BALANCED, |_| BalancerStatus::default());
        assert_eq!(lines(&alone)[0], "a –: ");

        let refused = |lb2: Result<&str, &str>| {
            require_all_answers(&answers(lb2)).err().map(|error| (error.exit_code(), error.to_string()))
        };
        assert_eq!(refused(Ok(r#"{"upstreams":[]}"#)), None);
        assert_eq!(refused(Err("no")), Some((6, "lb2 can't be asked: no".into())));
        let silent = r#"{"haproxy_error":"gone","upstreams":[]}"#;
        assert_eq!(refused(Ok(silent)), Some((6, "lb2 can't ask its HAProxy: gone".into())));
    }
}
