//! The app of a copy, as the copy's loop sees it. It decides nothing.

/// Starts and stops the app of a copy. No call waits. The app's events come over a channel.
pub(crate) trait App {
    /// Starts the app. The number tells this run's events from those of earlier runs.
    fn start(&mut self, run: u64);

    /// Drains the run, stops its app, and withdraws its records. [`AppEventKind::Ended`] follows. With `is_awaited`, another
    /// program has asked for the stop and does all that itself. The app is stopped here only if that program fails.
    fn stop(&mut self, is_awaited: bool);

    /// Kills everything of the run. [`AppEventKind::Ended`] follows.
    fn kill(&mut self);

    /// True if the start waits for etcd or for balancers, and not for the app.
    fn is_start_waiting(&self) -> bool;
}

/// Event of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AppEvent {
    pub(crate) run: u64,
    pub(crate) kind: AppEventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppEventKind {
    /// The app works, and its records are stored.
    Announced,
    /// The app has ended with this status.
    Ended(u8),
    /// The operator has stopped or removed the app, or the app is another copy's now. The copy leaves.
    TakenAway,
}
