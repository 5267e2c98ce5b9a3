//! The time at which a copy with `--fence` is killed. Pure: no clock.

use std::time::{Duration, Instant};

use crate::slots::state::{Action, Event, State, step};

/// Smallest part of the TTL that is left for the kill. A SIGKILL takes milliseconds. A busy host may run the announcer
/// some hundred milliseconds late.
const MIN_MARGIN: Duration = Duration::from_millis(500);

/// Time that the guard leaves to the announcer, which kills the app in order.
const GUARD_DELAY: Duration = Duration::from_millis(200);

/// Time at which the app must get SIGKILL. `requested_at` is the time at which the last answered renewal was **sent**: etcd
/// counts the TTL from a later time, so the lease can't end before `requested_at` plus the TTL. The margin is a fifth of
/// the TTL, which is more than two hosts' clocks drift apart in that time. `None` without a lease.
pub fn kill_time(requested_at: Option<Instant>, ttl: Duration) -> Option<Instant> {
    Some(requested_at? + ttl.saturating_sub(margin(ttl)))
}

/// Time at which the guard kills the app, if the announcer is frozen. Still before the lease can end.
pub fn guard_time(requested_at: Option<Instant>, ttl: Duration) -> Option<Instant> {
    Some(kill_time(requested_at, ttl)? + GUARD_DELAY)
}

/// The event, unless it starts an app that has to be killed by now. The slot may be another copy's already: the view can be older than
/// the lease's end. A copy that rests between two runs gives its slot up.
pub fn check_start(state: State, event: Event, kill_time: Option<Instant>, now: Instant) -> Option<Event> {
    let (_, actions) = step(state, event);
    if !actions.contains(&Action::StartApp) || kill_time.is_some_and(|time| now < time) {
        return Some(event);
    }
    (state == State::Pausing).then_some(Event::FencePassed)
}

fn margin(ttl: Duration) -> Duration {
    (ttl / 5).max(MIN_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_killed_before_its_lease_can_end() {
        let sent = Instant::now();
        for seconds in [2, 3, 10, 60] {
            let ttl = Duration::from_secs(seconds);
            let (kill, guard) = (kill_time(Some(sent), ttl).unwrap(), guard_time(Some(sent), ttl).unwrap());
            assert!(kill < guard && guard + Duration::from_millis(300) <= sent + ttl, "{ttl:?}");
            // Two renewals, a third of the TTL apart, may fail before it.
            assert!(kill > sent + ttl * 2 / 3, "{ttl:?}");
        }
        assert_eq!(kill_time(Some(sent), Duration::from_secs(10)), Some(sent + Duration::from_secs(8)));
        assert_eq!(kill_time(Some(sent), Duration::from_secs(2)), Some(sent + Duration::from_millis(1500)));
    }

    #[test]
    fn no_app_starts_that_has_to_be_killed_at_once() {
        let now = Instant::now();
        let check = |state, event, kill_time| check_start(state, event, kill_time, now);
        let (later, over) = (Some(now + Duration::from_secs(1)), Some(now));
        assert_eq!(check(State::StandingBy, Event::SlotOurs, later), Some(Event::SlotOurs));
        for kill_time in [over, None] {
            assert_eq!(check(State::StandingBy, Event::SlotOurs, kill_time), None);
            assert_eq!(check(State::Pausing, Event::PauseOver, kill_time), Some(Event::FencePassed));
            assert_eq!(check(State::Resting, Event::PauseOver, kill_time), Some(Event::PauseOver), "nothing starts");
        }
    }

    #[test]
    fn no_lease_gives_no_time() {
        assert_eq!(kill_time(None, Duration::from_secs(10)), None);
        assert_eq!(guard_time(None, Duration::from_secs(10)), None);
    }
}
