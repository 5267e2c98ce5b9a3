//! The writes of a copy's own keys, one at a time, each planned on a view that shows the one before.

use std::time::{Instant, SystemTime};

use discovery::Timestamp;
use registry::{Client, Committed, Txn};
use tokio::time::Duration;

use crate::retry;
use crate::slots::app::App;
use crate::slots::choice::{self, Opening};
use crate::slots::keeper::Keeper;
use crate::slots::state::State;
use crate::slots::write;

/// Time between attempts to write after a transaction whose conditions didn't hold. The view shows why by then.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);

impl<A: App> Keeper<A> {
    /// Starts the next write if one is due and none is in flight. Returns the time at which an opening is due.
    pub(super) fn plan_write(&mut self, now: Instant) -> Option<Instant> {
        let Self { view, us, facts, .. } = self;
        let is_shown = view.is_current()
            && us.lease.is_some_and(|lease| view.standby(&us.id).is_some_and(|seen| seen.lease == lease.get()));
        self.tempo.note_standby(is_shown, now);
        if !self.writes.is_empty() || self.write_after.is_some_and(|after| now < after) {
            return None;
        }
        if let Some(txn) = write::plan_repair(self.state, view, us, facts) {
            us.given_up = write::find_given_up(self.state, view, us).or(us.given_up);
            self.start_write(txn);
            return None;
        }
        let found = choice::find_opening(self.state, view, us);
        let due = self.tempo.due_time(found, self.state == State::StandingBy, now)?;
        let (opening, _) = found?;
        if now < due {
            return Some(due);
        }
        self.take_opening(opening);
        None
    }

    fn take_opening(&mut self, opening: Opening) {
        self.apply(opening.event());
        let Self { view, us, facts, .. } = &*self;
        let now = Timestamp::from_time(SystemTime::now());
        if let Some(txn) = write::plan_opening(opening, view, us, facts, now) {
            tracing::debug!(?opening, "taking a slot");
            self.start_write(txn);
        }
    }

    fn start_write(&mut self, txn: Txn) {
        let client: Client = self.lease.client.clone();
        self.writes.spawn(async move { client.commit(txn).await });
    }

    pub(super) fn end_write(&mut self, written: Result<Committed, registry::Error>) {
        let now = Instant::now();
        match written {
            Ok(committed) => {
                if std::mem::take(&mut self.is_write_failing) {
                    tracing::info!("etcd takes the copy's keys again");
                }
                self.write_delays = Box::new(retry::store_delays());
                self.write_after = (!committed.succeeded).then(|| now + CONFLICT_PAUSE);
                if committed.succeeded {
                    self.view.require_revision(committed.revision);
                }
            }
            Err(error) => {
                // etcd may have ended the lease since the last renewal. A renewal at once finds out.
                if error.is_lease_not_found() {
                    self.lease.renew_now.notify_one();
                }
                if !std::mem::replace(&mut self.is_write_failing, true) {
                    tracing::warn!(%error, "can't write the copy's slot or stand-by, trying again");
                }
                self.write_after = Some(now + self.write_delays.next().unwrap_or_default());
            }
        }
    }
}
