//! Notifications to systemd (sd_notify(3)). Without `NOTIFY_SOCKET` none is sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells that the service is up. systemd then starts its dependents.
pub fn notify_ready() {
    send_state(&NotifyState::Ready);
}

/// Sets the line of `systemctl status`.
pub fn notify_status(line: &str) {
    // sd_notify separates assignments by line breaks, so a line break would start another one.
    send_state(&NotifyState::Status(&program::text::escape_line(line)));
}

/// Tells that the service is going down.
pub fn notify_stopping() {
    send_state(&NotifyState::Stopping);
}

/// Tells that the service lives. Due at least every [`watchdog_interval`].
pub fn notify_watchdog() {
    send_state(&NotifyState::Watchdog);
}

/// Moves the end of the start or stop timeout to `time` from now, if that is later than before.
pub fn extend_timeout(time: Duration) {
    // The library takes 32 bits of microseconds, some 71 minutes.
    send_state(&NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)));
}

/// True if systemd gave this service a notification socket.
pub fn has_notify_socket() -> bool {
    program::variable::read("NOTIFY_SOCKET").is_some()
}

/// Interval of [`notify_watchdog`]: half of the unit's `WatchdogSec`, as sd_watchdog_enabled(3) advises. `None` if the unit
/// has none.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|time| time / 2).filter(|time| !time.is_zero())
}

/// Sends one notification. A failure is only logged, because the service works without systemd.
fn send_state(state: &NotifyState<'_>) {
    if !has_notify_socket() {
        return;
    }
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, %state, "can't notify systemd");
    }
}
