//! The records of all containers of a host, and the order that they make. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use containers::{Container, HealthStatus};

use crate::agent::life::Life;
use crate::config::upstream::Upstream;
use crate::record::{Record, Want};

/// A container: the number of its engine, and the engine's id.
pub(crate) type ContainerKey = (usize, String);

/// One service of one container.
pub(crate) struct Member {
    /// `None` for a record that an earlier agent left, and whose container is gone.
    pub(crate) owner: Option<ContainerKey>,
    /// `None` as above.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) record: Arc<Record>,
    pub(crate) life: Life,
    /// Result of the agent's own check.
    pub(crate) passes_check: bool,
    /// True if the container has another name now, and its new record replaces this one.
    pub(crate) is_retired: bool,
}

/// An engine's container, as far as it was asked for.
#[derive(Default)]
pub(crate) struct Known {
    /// Grows with each event. An answer to an older question is out of date.
    pub(crate) generation: u64,
    /// Fingerprint of the listing that the last answer belongs to.
    pub(crate) fingerprint: String,
    pub(crate) container: Option<Container>,
    /// Time of the last event. `None` before the first.
    pub(crate) touched: Option<std::time::Instant>,
    /// True if it has labels that count.
    pub(crate) counts: bool,
    /// What was logged.
    pub(crate) faults: Vec<String>,
}

impl Known {
    /// True if its HEALTHCHECK lets requests come. A container without one has none that fails.
    pub(crate) fn passes_healthcheck(&self) -> bool {
        let health = self.container.as_ref().and_then(|container| container.health);
        matches!(health, None | Some(HealthStatus::Healthy))
    }
}

impl Member {
    /// Key relative to the prefix.
    pub(crate) fn key(&self) -> String {
        self.record.key()
    }

    /// True if the container still has this service.
    pub(crate) fn is_current(&self) -> bool {
        !self.life.has_ended() && !self.is_retired
    }
}

/// The wanted records. Of several with one key, that of a live container comes before that of one which has ended or has
/// another name, and the earlier before the later.
pub(crate) fn order_records<'a>(members: impl Iterator<Item = &'a Member>) -> Vec<(Arc<Record>, Want)> {
    let mut chosen: BTreeMap<String, (u8, &Arc<Record>, Want)> = BTreeMap::new();
    for member in members {
        let Some(want) = member.life.want() else { continue };
        let rank = match (member.life, member.is_retired) {
            (Life::Leaving, _) => 0,
            (_, true) => 1,
            (_, false) => 2,
        };
        let is_better = chosen.get(&member.key()).is_none_or(|(before, ..)| rank > *before);
        if is_better {
            chosen.insert(member.key(), (rank, &member.record, want));
        }
    }
    chosen.into_values().map(|(_, record, want)| (record.clone(), want)).collect()
}

/// True if both orders are the same records in the same states.
pub(crate) fn is_same_order(one: &[(Arc<Record>, Want)], other: &[(Arc<Record>, Want)]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((one, want), (other, wanted))| Arc::ptr_eq(one, other) && want == wanted)
}

#[cfg(test)]
mod tests {
    use discovery::UpstreamState;

    use super::*;
    use crate::record::tests::record_of;

    fn member(id: &str, address: &str, life: Life) -> Member {
        let record = Arc::new(record_of(id, address));
        Member { owner: None, upstream: None, record, life, passes_check: true, is_retired: false }
    }

    fn order(members: &[Member]) -> Vec<(String, Want)> {
        let order = order_records(members.iter());
        order.into_iter().map(|(record, want)| (record.address().to_string(), want)).collect()
    }

    const READY: Want = Want::Present(UpstreamState::Ready);

    #[test]
    fn a_container_that_is_created_again_has_the_record_before_the_old_one_is_gone() {
        let old = || member("a", "10.0.0.1:1", Life::Leaving);
        let starting = member("a", "10.0.0.1:2", Life::Starting);
        assert_eq!(order(&[old(), starting]), [("10.0.0.1:1".to_owned(), Want::Absent)], "nothing works yet");
        for members in
            [[old(), member("a", "10.0.0.1:2", Life::Serving)], [member("a", "10.0.0.1:2", Life::Serving), old()]]
        {
            assert_eq!(order(&members), [("10.0.0.1:2".to_owned(), READY)]);
        }
    }

    #[test]
    fn of_two_live_containers_the_first_has_the_id() {
        let members = [member("a", "10.0.0.1:1", Life::Serving), member("a", "10.0.0.1:2", Life::Serving)];
        assert_eq!(order(&members), [("10.0.0.1:1".to_owned(), READY)]);
        let mut renamed = member("a", "10.0.0.1:1", Life::Serving);
        renamed.is_retired = true;
        assert_eq!(order(&[renamed, member("a", "10.0.0.1:2", Life::Serving)]), [("10.0.0.1:2".to_owned(), READY)]);
    }
}
