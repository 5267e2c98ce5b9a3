//! The wait at the start: until balancers send requests.

use std::collections::BTreeSet;

use discovery::{Key, RefusedKey};
use registry::Client;
use tokio::sync::mpsc;

use crate::{
    balancers::{Listening, Question},
    registrar::{Reached, Registrar},
    report::Report,
};

/// Waits until every live balancer, and there is one, sends requests to all records of ours. One that refuses a record
/// doesn't; the log and the loop hear of that.
pub(crate) async fn until_balanced(registrar: &Registrar, client: &Client, reports: &mpsc::Sender<Report>) {
    let mut listening = Listening::to(client);
    let (mut said, mut told) = (BTreeSet::new(), None);
    loop {
        let reached = registrar.reached();
        let known = &listening.known;
        let (records, services) = keys(&reached);
        let refused: Vec<_> = known.refused(&records).collect();
        let all = refused.iter().cloned().chain(known.refused(&services)).collect();
        log(&all, &said, &records);
        said = all;
        let runs = known.missing(Question::Runs, &reached).is_empty();
        if known.is_heard && !known.is_empty() && !reached.ours.is_empty() && runs {
            return tracing::info!("every balancer sends requests");
        }
        let obstacle = describe(&refused);
        if obstacle != told {
            let _ = reports.send(Report::Obstacle(obstacle.clone())).await;
            told = obstacle;
        }
        listening.next().await;
    }
}

/// The keys of our records; and those of the settings that we were given, with the folder that stands for a service as a
/// whole.
fn keys(reached: &Reached) -> (Vec<String>, Vec<String>) {
    let records = reached.names().map(|(service, id)| Key::upstream(service, id).to_string()).collect();
    let folders = reached.names().map(|(service, _)| service.folder());
    let services: BTreeSet<_> = reached.ours.iter().flat_map(|record| record.setting_keys()).chain(folders).collect();
    (records, services.into_iter().collect())
}

/// Says what was not said before. A setting is no obstacle: its last good value may serve, or the rest of it; nor is a
/// service that HAProxy refuses: its last good form may.
fn log(refused: &BTreeSet<RefusedKey>, said: &BTreeSet<RefusedKey>, records: &[String]) {
    for RefusedKey { node, key, reason } in refused.difference(said) {
        if records.contains(key) {
            tracing::warn!(balancer = %node, key, reason, "a balancer refuses the record: waiting until it doesn't");
        } else {
            tracing::warn!(balancer = %node, key, reason, "a balancer doesn't follow this key as it stands");
        }
    }
}

/// What is waited for, in one line.
fn describe(refused: &[RefusedKey]) -> Option<String> {
    let (RefusedKey { node, key, reason }, others) = refused.split_first()?;
    let more = if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
    Some(format!("{node} refuses {key}: {reason}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obstacle_is_one_line() {
        let refused = |node: &str| RefusedKey { node: node.parse().unwrap(), key: "k".into(), reason: "why".into() };
        assert_eq!(describe(&[]), None);
        assert_eq!(describe(&[refused("lb-1")]).unwrap(), "lb-1 refuses k: why");
        assert_eq!(describe(&[refused("lb-1"), refused("lb-2")]).unwrap(), "lb-1 refuses k: why, and 1 more");
    }
}
