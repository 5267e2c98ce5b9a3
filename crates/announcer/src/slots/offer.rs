//! Offers the slot of a copy whose announcer is another process, before that copy is stopped. It stops nothing itself.

use std::num::NonZeroU16;
use std::time::Duration;

use discovery::{ServiceId, Slot, UpstreamId};
use registry::{Client, FollowOptions, LeaseId};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::slots::choice::{self, Us};
use crate::slots::state::{Event, State};
use crate::slots::view::View;
use crate::slots::write;

/// Offers the copy's slot, and waits until another copy has taken it over, at most for `limit`. Returns at once if the copy
/// holds no slot, or if no copy stands by for it.
pub(crate) async fn offer_slot(client: &Client, service: &ServiceId, id: &UpstreamId, limit: Duration) {
    let deadline = Instant::now() + limit;
    let folder = service.folder_path();
    let end = CancellationToken::new();
    let (first, last) = (format!("{folder}slots"), format!("{folder}standby"));
    let options = FollowOptions { shares_stream: true, ..FollowOptions::default() };
    let mut events = client.follow_folders(&first, &last, options, end.clone());
    let _ends_with_us = end.drop_guard();
    let mut view = View::new(service.clone());
    // One attempt at a time. Its result shows in the view.
    let mut offered_revision = 0;
    while let Ok(Some(event)) = timeout_at(deadline, events.recv()).await {
        view.apply_event(&event);
        // The next listing shows how the slot stands.
        if !view.is_connected() {
            continue;
        }
        let held = view.read_slots().find(|(_, _, slot)| slot.id == *id);
        let Some((number, seen, slot)) = held else { return };
        if is_handed_over(&view, id, seen.lease) {
            return;
        }
        if !slot.leaving && seen.mod_revision > offered_revision {
            offered_revision = seen.mod_revision;
            tracing::info!(%service, slot = number.get(), "offering the slot to a copy that stands by");
            let offered = Slot { leaving: true, successor: None, ..slot.clone() };
            if let Err(error) = client.commit(write::plan_offer(service, number, seen, &offered)).await {
                tracing::warn!(%error, "can't offer the slot, stopping without a successor");
                return;
            }
        }
    }
    tracing::warn!(%service, "no copy has taken the slot over in time");
}

/// True if no copy would take the offered slot, or if one has taken it.
fn is_handed_over(view: &View, id: &UpstreamId, lease: i64) -> bool {
    let us = Us {
        id: id.clone(),
        // The offered slot alone counts here, whatever its number.
        replicas: NonZeroU16::MAX,
        has_fence: false,
        lease: Some(LeaseId::from(lease)),
        last_slot: None,
        given_up: None,
        since: None,
    };
    choice::find_event(State::Offering, view, &us) == Some(Event::HandedOver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::view::tests::view;

    #[test]
    fn an_offer_of_another_process_is_over_as_one_of_our_own() {
        let is_over = |keys: &[(&str, &str, i64)]| is_handed_over(&view(keys), &"a".parse().unwrap(), 1);
        let standby = ("standby/b", r#"{"host":"h2"}"#, 2);
        let held = ("slots/9", r#"{"id":"a","host":"h1"}"#, 1);
        let offered = ("slots/9", r#"{"id":"a","host":"h1","leaving":true}"#, 1);
        assert!(!is_over(&[held]) && !is_over(&[held, standby]), "it isn't offered yet");
        assert!(!is_over(&[offered, standby]));
        assert!(is_over(&[offered]), "no copy stands by");
        assert!(is_over(&[("slots/9", r#"{"id":"b","host":"h2"}"#, 2)]), "another copy has it");
    }
}
