//! The wait at the start: until balancers send requests.

use discovery::QuarantinedKey;
use registry::Client;
use tokio::sync::mpsc;

use crate::balancers::reception::{AnnouncedKeys, RefusalLog};
use crate::balancers::{BalancerWatch, Question};
use crate::message::Message;
use crate::registrar::Registrar;

/// Waits until every live balancer, and there is one, sends requests to all records of ours. One that refuses a record
/// doesn't; the log and the loop hear of that.
pub(crate) async fn wait_until_applied(
    registrar: &Registrar,
    client: &Client,
    log: &RefusalLog,
    reports: &mpsc::Sender<Message>,
) {
    let mut listening = BalancerWatch::start(client);
    let mut told = None;
    loop {
        let reached = registrar.latest_written();
        let known = &listening.balancers;
        let keys = AnnouncedKeys::from_written(&reached);
        let refused: Vec<_> = known.list_refusals(&keys.records).collect();
        log.log_refusals(refused.iter().cloned().chain(known.list_refusals(&keys.services)).collect(), &keys);
        let runs = known.list_unconfirmed(Question::Runs, &reached).is_empty();
        if known.is_connected && !known.is_empty() && !reached.ours.is_empty() && runs {
            return tracing::info!("every balancer sends requests");
        }
        let blocked_by = describe_refusals(&refused);
        if blocked_by != told {
            let _ = reports.send(Message::BlockedBy(blocked_by.clone())).await;
            told = blocked_by;
        }
        listening.apply_next().await;
    }
}

/// What is waited for, in one line.
fn describe_refusals(refused: &[QuarantinedKey]) -> Option<String> {
    let (QuarantinedKey { node, key, reason }, others) = refused.split_first()?;
    let more = if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
    Some(format!("{node} refuses {key}: {reason}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obstacle_is_one_line() {
        let refused =
            |node: &str| QuarantinedKey { node: node.parse().unwrap(), key: "k".into(), reason: "why".into() };
        assert_eq!(describe_refusals(&[]), None);
        assert_eq!(describe_refusals(&[refused("lb-1")]).unwrap(), "lb-1 refuses k: why");
        assert_eq!(describe_refusals(&[refused("lb-1"), refused("lb-2")]).unwrap(), "lb-1 refuses k: why, and 1 more");
    }
}
