//! The invariants of the schedule. Pure: no I/O, no clock.

use std::time::Instant;

use super::{Action, LONGEST_RETRY, Scheduler};

impl Scheduler {
    pub(super) fn check_invariants(&self, now: Instant) {
        let is_idle = self.began_at.is_none() && self.beside.is_none();
        debug_assert!(self.is_store_known || is_idle, "an action is in progress before the store is known");
        let latest = now + self.min_wait.max(LONGEST_RETRY);
        debug_assert!(
            self.reconcile_at.is_none_or(|at| at <= latest),
            "a reconcile waits longer than the longest retry"
        );
        let is_in_order = self.restart.as_ref().is_none_or(|restart| restart.at >= restart.since);
        debug_assert!(is_in_order, "a restart is due before it was wanted");
    }

    pub(super) fn check_may_begin(&self, action: &Action) {
        debug_assert!(self.is_store_known, "{action:?} begins before the store is known");
        debug_assert!(self.began_at.is_none(), "{action:?} begins beside another action");
        let uses_files = action.beside().is_some();
        debug_assert!(
            !(uses_files && self.beside.is_some()),
            "{action:?} begins while {:?} is in progress",
            self.beside
        );
    }
}
