//! Asks etcd and the balancers for the facts, all at once and each with a deadline. It decides nothing, and writes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use discovery::Node;
use futures_util::future::join_all;
use registry::{Client, Condition, Txn};
use tokio::time::sleep;

use super::facts::{Facts, Refusal};
use super::judge::{EXPIRES_SOON_DAYS, is_behind};
use crate::balancer_api::{
    Answers, BalancerApi, ClockReading, Problems, Status, build_http_client, read_client_identity, read_server_clock,
};
use crate::commands::lint::{self, BalancerAnswers};
use crate::context::Context;
use crate::error::Error;
use crate::store::Store;

/// The keys that stand for the folders that commands write below. None of them is written.
const WRITTEN: [(&str, &str); 4] = [
    ("http-services/", "http-services/doctor/domain"),
    ("tcp-services/", "tcp-services/doctor/ports"),
    ("control/", "control/accept-store"),
    ("log/", "log/doctor"),
];

/// A change is applied within this time unless it waits for a restart.
const FOLLOW_TIME: Duration = Duration::from_secs(2);

/// Gathers all facts. The second value is the reason why the store can't be read.
pub(super) async fn gather_facts(context: &Context) -> Result<(Facts, Option<Error>), Error> {
    let client = &context.client;
    let (members, store, clocks) =
        tokio::join!(client.member_statuses(), context.read_store(), read_etcd_clocks(client));
    let mut facts = Facts {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        prefix: client.config().prefix().to_owned(),
        members: members.into_iter().map(|(url, answer)| (url, answer.map_err(|error| error.to_string()))).collect(),
        asked_clocks: clocks.keys().cloned().collect(),
        clocks: clocks.into_iter().filter_map(|(name, clock)| Some((name, clock?))).collect(),
        ..Facts::default()
    };
    let store = match store {
        Ok(store) => store,
        Err(error) => return Ok((facts, Some(error))),
    };
    let api = context.balancer_api(&store)?;
    let (rights, answers, problems, clocks) =
        tokio::join!(probe_rights(client), BalancerAnswers::ask(&api), api.ask_all("problems"), api.read_clocks());
    facts.rights = rights;
    facts.asked_clocks.extend(answers.status.iter().filter(|(_, it)| it.is_ok()).map(|(node, _)| node.to_string()));
    facts.clocks.extend(clocks.into_iter().map(|(node, clock)| (node.to_string(), clock)));
    facts.silent = list_silent(&answers, &problems);
    facts.lint = lint::find_faults(&store, &answers, EXPIRES_SOON_DAYS);
    (facts.status, facts.problems) = ask_again_if_behind(&api, &store, (answers.status, problems)).await;
    facts.store = Some(store);
    Ok((facts, None))
}

/// Asks the balancers a second time if one of them may just be about to apply the newest change.
async fn ask_again_if_behind(
    api: &BalancerApi,
    store: &Store,
    answers: (Answers<Status>, Answers<Problems>),
) -> (Answers<Status>, Answers<Problems>) {
    if !answers.0.values().flatten().any(|status| is_behind(status, store)) {
        return answers;
    }
    sleep(FOLLOW_TIME).await;
    // Both again, because a restart may have ended the problems of the first answer.
    tokio::join!(api.ask_all("status"), api.ask_all("problems"))
}

/// The balancers that said their state, and left another question open.
fn list_silent(answers: &BalancerAnswers, problems: &Answers<Problems>) -> BTreeMap<Node, String> {
    let mut silent = BTreeMap::new();
    let mut add = |node: &Node, reason: Option<&String>| {
        if let (Some(Ok(_)), Some(reason)) = (answers.status.get(node), reason) {
            silent.insert(node.clone(), reason.clone());
        }
    };
    problems.iter().for_each(|(node, it)| add(node, it.as_ref().err()));
    answers.services.iter().for_each(|(node, it)| add(node, it.as_ref().err()));
    answers.quarantine.iter().for_each(|(node, it)| add(node, it.as_ref().err()));
    answers.upstreams.iter().for_each(|(node, it)| add(node, it.as_ref().err()));
    answers.certificates.iter().for_each(|(node, it)| add(node, it.as_ref().err()));
    silent
}

/// Asks etcd whether this user may write. etcd checks the roles of a transaction before its conditions, and no key is absent and
/// present.
async fn probe_rights(client: &Client) -> Vec<(&'static str, Result<(), Refusal>)> {
    let probes = WRITTEN.iter().map(|(folder, key)| async move {
        let never = Txn::new().only_if(Condition::Absent((*key).into())).only_if(Condition::Present((*key).into()));
        let answer = client.commit(never.put(*key, "", None)).await;
        let refusal = answer.map(|_| ()).map_err(|error| match error.is_permission_denied() {
            true => Refusal::Roles,
            false => Refusal::Store(error.to_string()),
        });
        (*folder, refusal)
    });
    join_all(probes).await
}

/// Reads the clock of each endpoint's host. None for an endpoint that doesn't answer over HTTP.
async fn read_etcd_clocks(client: &Client) -> BTreeMap<String, Option<ClockReading>> {
    let config = client.config();
    let (cacert, identity) = config.tls_files();
    let identity = identity.and_then(|(cert, key)| read_client_identity(("--cert", cert), ("--key", key)).ok());
    // A file that can't be read is an error of the connection to etcd, which says so.
    let Ok(http) = build_http_client(cacert.map(|path| ("--cacert", path)), identity) else { return BTreeMap::new() };
    let clocks = config.endpoints().iter().map(|endpoint| {
        let http = &http;
        async move { (format!("etcd at {endpoint}"), read_server_clock(http, &format!("{endpoint}/version")).await) }
    });
    join_all(clocks).await.into_iter().collect()
}
