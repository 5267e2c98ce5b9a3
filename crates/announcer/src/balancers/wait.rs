//! Wait at the start until balancers send requests. It only reads.

use discovery::QuarantinedKey;
use registry::Client;
use tokio::sync::mpsc;

use crate::balancers::key_status::{AnnouncedKeys, RefusalLog};
use crate::balancers::{BalancerWatch, Question};
use crate::registrar::Registrar;
use crate::state::message::Message;

/// Waits until at least one balancer is live and all live ones send requests to all of our records. A balancer that
/// refuses a record is logged and reported to the loop.
pub(crate) async fn wait_until_applied(
    registrar: &Registrar,
    client: &Client,
    log: &RefusalLog,
    messages: &mpsc::Sender<Message>,
) {
    let mut watch = BalancerWatch::start(client);
    let mut reported = None;
    loop {
        let written = registrar.latest_written();
        let balancers = &watch.balancers;
        let keys = AnnouncedKeys::from_written(&written);
        // Refused settings are only logged. They don't block the start, because a last good value may serve.
        let refused: Vec<_> = balancers.list_refusals(&keys.records).collect();
        log.log_refusals(refused.iter().cloned().chain(balancers.list_refusals(&keys.services)).collect(), &keys);
        let is_applied = balancers.list_unconfirmed(Question::Runs, &written).is_empty();
        if balancers.is_connected && !balancers.is_empty() && !written.ours.is_empty() && is_applied {
            return tracing::info!(records = written.ours.len(), "every balancer sends requests");
        }
        let blocked_by = describe_refusals(&refused);
        // The status line of systemd shows it, so an unchanged reason is not sent again.
        if blocked_by != reported {
            let _ = messages.send(Message::BlockedBy(blocked_by.clone())).await;
            reported = blocked_by;
        }
        watch.apply_next().await;
    }
}

/// First refusal and the number of the others, in one line. `None` without a refusal.
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
