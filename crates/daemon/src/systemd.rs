//! The word to systemd (sd_notify(3)). Without `NOTIFY_SOCKET` nothing here does anything.

use std::time::Duration;

use sd_notify::NotifyState;

/// The variables by which systemd talks to a service. A child that inherited them could speak for the service.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The service is up: dependents may start.
pub fn notify_ready() {
    send_state(&NotifyState::Ready);
}

/// One line for `systemctl status`.
pub fn notify_status(line: &str) {
    // A line break would start another assignment.
    send_state(&NotifyState::Status(&program::text::escape_line(line)));
}

/// The service is going down.
pub fn notify_stopping() {
    send_state(&NotifyState::Stopping);
}

/// The service lives. To be said at least every [`watchdog_interval`].
pub fn notify_watchdog() {
    send_state(&NotifyState::Watchdog);
}

/// Moves the end of the start or stop time to `time` from now, where that is later than it was.
pub fn extend_timeout(time: Duration) {
    send_state(&NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)));
}

/// Whether systemd wants to hear from this service.
pub fn has_notify_socket() -> bool {
    program::variable::read("NOTIFY_SOCKET").is_some()
}

/// How often [`watchdog`] is to be said: half of the unit's `WatchdogSec`, as sd_watchdog_enabled(3) advises. None when
/// the unit has none.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|time| time / 2).filter(|time| !time.is_zero())
}

/// A service manager that can't be reached is no reason to fail: the service works without it.
fn send_state(state: &NotifyState<'_>) {
    if !has_notify_socket() {
        return;
    }
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "systemd can't be told {state}");
    }
}
