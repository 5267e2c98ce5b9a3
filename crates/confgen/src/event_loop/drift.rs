//! Looks for manual changes over the Runtime API. `runtime/drift.rs` finds them, and the next reconcile repairs them.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::event_loop::malloc;
use crate::event_loop::reconciler_thread::StepSender;
use crate::reconcile::{DriftCheck, Reconciler, Steps};
use crate::status::activity::Activities;

/// A manual change of a small configuration lasts for this long.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The rest after a check, for each server. HAProxy and confgen together take some 20 µs to list and to compare a server, so this is
/// about one percent of a processor. A limit by the time that a check takes would check less on a busy machine.
const REST_PER_SERVER: Duration = Duration::from_millis(2);

/// The same for each entry of a map. An entry takes them some 2 µs.
const REST_PER_ENTRY: Duration = Duration::from_micros(200);

/// A look beside the reconciler proves nothing if confgen changes HAProxy meanwhile. After this many such looks the reconciler waits
/// for one.
const LOOKS_BESIDE: u32 = 2;

/// A change that nothing undoes is reported to the reconciler this often at least.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Checks until the shutdown. The receiver gets a message for each check that found a change.
pub fn spawn_drift_check(steps: StepSender, activities: Activities, shutdown: CancellationToken) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let (mut rest, mut repeated) = (CHECK_EVERY, 0);
        loop {
            tokio::time::sleep(rest).await;
            let (mut steps, activities) = (steps.clone(), activities.clone());
            let checking = tokio::task::spawn_blocking(move || {
                let checked = check_drift(&mut steps, &activities);
                // HAProxy's answers about 10,000 servers take some megabytes, and the next rest after a change may be far.
                if activities.under_way().is_empty() {
                    malloc::trim_heap();
                }
                checked
            });
            let Ok(checked) = checking.await else { continue };
            // The observer notices a HAProxy that doesn't answer.
            let Ok(check) = checked.inspect_err(|error| tracing::debug!(%error, "can't look for manual changes"))
            else {
                continue;
            };
            repeated = if check.is_repeated { repeated + 1 } else { 0 };
            rest = rest_after(check, repeated);
            if check.is_found && sender.send(()).await.is_err() {
                return;
            }
        }
    }));
    receiver
}

/// Asks HAProxy beside the reconciler, so that no change waits for the answers. With 10,000 servers they take some 70 ms.
fn check_drift(steps: &mut impl Steps, activities: &Activities) -> anyhow::Result<DriftCheck> {
    let begin = |reconciler: &mut Reconciler| Ok(reconciler.begin_drift_look());
    let judge = |answers| move |reconciler: &mut Reconciler| Ok(reconciler.judge_drift(answers));
    for _ in 0..LOOKS_BESIDE {
        let Some(look) = steps.run(begin)? else { return Ok(DriftCheck::default()) };
        let activity = activities.begin("look", "what HAProxy shows");
        let answers = look.ask()?;
        drop(activity);
        if let Some(check) = steps.run(judge(answers))? {
            return Ok(check);
        }
    }
    // The store changes all the time. Then changes wait for one look.
    let activities = activities.clone();
    steps.run(move |reconciler| {
        let _activity = activities.begin("look", "what HAProxy shows");
        let Some(look) = reconciler.begin_drift_look() else { return Ok(DriftCheck::default()) };
        Ok(reconciler.judge_drift(look.ask()?).unwrap_or_default())
    })
}

/// The time until the next check. `repeated` is the number of checks before that found the same change.
fn rest_after(check: DriftCheck, repeated: u32) -> Duration {
    let [servers, entries] = [check.servers, check.map_entries].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let listing = REST_PER_SERVER.saturating_mul(servers).saturating_add(REST_PER_ENTRY.saturating_mul(entries));
    let patience = CHECK_EVERY.saturating_mul(2_u32.saturating_pow(repeated)).min(LONGEST_REST);
    listing.max(patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_configuration_is_checked_less_often_and_so_is_one_that_stays_as_it_is() {
        let check = |servers, map_entries| DriftCheck { servers, map_entries, ..DriftCheck::default() };
        let second = Duration::from_secs(1);
        assert_eq!(rest_after(check(300, 1_000), 0), second);
        assert_eq!(rest_after(check(3_000, 50_000), 0), 16 * second);
        assert_eq!(rest_after(check(0, 0), 1), 2 * second);
        assert_eq!(rest_after(check(0, 0), 40), LONGEST_REST);
    }
}
