//! What a copy tells: systemd's status line, READY, and the admin port. It decides nothing.

use std::time::{Duration, Instant};

use daemon::systemd;
use humantime::format_rfc3339_seconds;

use crate::slots::app::App;
use crate::slots::choice;
use crate::slots::keeper::{Keeper, Place};
use crate::slots::state::State;
use crate::slots::view::View;
use crate::slots::write;
use crate::status::SlotStatus;

/// Time in which the keys of an ended lease disappear from the view.
const CONFLICT_LIMIT: Duration = Duration::from_secs(1);

impl<A: App> Keeper<A> {
    /// Publishes the status. While the app runs, the status line is the run's.
    pub(super) fn show_status(&mut self, now: Instant) {
        self.log_conflict(now);
        let status = self.describe();
        // A copy that will take a slot at once says READY only once its app is announced.
        let stands_by = match self.state {
            State::StandingBy => {
                self.tempo.is_settled(now) && choice::find_opening(self.state, &self.view, &self.us).is_none()
            }
            State::Resting => true,
            _ => false,
        };
        if stands_by && !std::mem::replace(&mut self.is_ready_said, true) && self.place == Place::WholeProcess {
            systemd::notify_ready();
        }
        if self.place == Place::WholeProcess && self.run.is_none() && self.status_line.as_ref() != Some(&status.line) {
            systemd::notify_status(&status.line);
            self.status_line = Some(status.line.clone());
        }
        self.outlets.shown.send_if_modified(|shown| {
            let is_new = *shown != status;
            *shown = status;
            is_new
        });
    }

    /// Logs once that another lease has this copy's id, unless that is an ended lease whose keys the view still shows.
    fn log_conflict(&mut self, now: Instant) {
        let is_taken = self.view.is_current() && write::is_id_taken(&self.view, &self.us);
        self.conflict_since = is_taken.then(|| self.conflict_since.unwrap_or(now));
        if !is_taken {
            self.is_conflict_logged = false;
        } else if self.conflict_time().is_some_and(|time| now >= time) {
            self.is_conflict_logged = true;
            let id = &self.us.id;
            tracing::warn!(%id, "this id is in use under another lease, waiting for its end; give each announcer its own --id");
        }
    }

    /// Time at which a conflict is logged. `None` without one, or once it is.
    pub(super) fn conflict_time(&self) -> Option<Instant> {
        self.conflict_since.filter(|_| !self.is_conflict_logged).map(|since| since + CONFLICT_LIMIT)
    }

    fn describe(&self) -> SlotStatus {
        let (view, us) = (&self.view, &self.us);
        let slot = us.lease.and_then(|lease| view.slot_of(&us.id, lease)).map(|(number, ..)| number.get());
        let running = list_running(view, us.replicas.get());
        let count = |is_first: bool| {
            let number = slot.or(us.last_slot.map(discovery::SlotNumber::get)).unwrap_or_default();
            let place = format!("slot {number} of {}", us.replicas);
            if is_first { place } else { format!("handing {place} over") }
        };
        let line = match self.state {
            State::StandingBy if !view.is_connected() => "standing by, waiting for etcd".to_owned(),
            State::StandingBy => {
                let names = if running.is_empty() { String::new() } else { format!(": {}", running.join(", ")) };
                format!("standing by ({} of {} run{names})", running.len(), us.replicas)
            }
            State::Resting => {
                let until = self.facts.rests_until.map(|until| format_rfc3339_seconds(until.to_time()));
                let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
                format!("standing by{until}: the app ended too often")
            }
            State::Pausing => format!("{}: the app has ended, starting it again", count(true)),
            State::Offering => count(false),
            State::Releasing | State::Done => "withdrawing".to_owned(),
            _ => count(true),
        };
        SlotStatus {
            runs_app: self.run.is_some() || self.state == State::Pausing,
            stands_by: self.state == State::StandingBy && view.is_connected(),
            slot,
            wanted: us.replicas.get(),
            running: running.len(),
            standing_by: view.candidates().count(),
            line,
        }
    }
}

/// Hosts of the copies that hold slots, or their ids if they don't know their hosts.
fn list_running(view: &View, replicas: u16) -> Vec<String> {
    let slots = view.slots().filter(|(number, _)| number.get() <= replicas);
    let name = |slot: Option<&discovery::Slot>| match slot {
        Some(slot) => slot.host.as_ref().map_or_else(|| slot.id.to_string(), ToString::to_string),
        None => "a slot that can't be read".to_owned(),
    };
    slots.map(|(_, seen)| name(seen.slot.as_ref())).collect()
}
