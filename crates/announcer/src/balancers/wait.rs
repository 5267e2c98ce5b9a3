//! The wait at the start: until balancers send requests.

use discovery::RefusedKey;
use registry::Client;
use tokio::sync::mpsc;

use crate::balancers::reception::{Keys, RefusalLog};
use crate::balancers::{Listening, Question};
use crate::message::Message;
use crate::registrar::Registrar;

/// Waits until every live balancer, and there is one, sends requests to all records of ours. One that refuses a record
/// doesn't; the log and the loop hear of that.
pub(crate) async fn until_balanced(
    registrar: &Registrar,
    client: &Client,
    log: &RefusalLog,
    reports: &mpsc::Sender<Message>,
) {
    let mut listening = Listening::to(client);
    let mut told = None;
    loop {
        let reached = registrar.reached();
        let known = &listening.known;
        let keys = Keys::of(&reached);
        let refused: Vec<_> = known.refused(&keys.records).collect();
        log.note(refused.iter().cloned().chain(known.refused(&keys.services)).collect(), &keys);
        let runs = known.missing(Question::Runs, &reached).is_empty();
        if known.is_heard && !known.is_empty() && !reached.ours.is_empty() && runs {
            return tracing::info!("every balancer sends requests");
        }
        let blocked_by = describe(&refused);
        if blocked_by != told {
            let _ = reports.send(Message::Obstacle(blocked_by.clone())).await;
            told = blocked_by;
        }
        listening.next().await;
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
