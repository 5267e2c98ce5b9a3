//! Decides which containers of a limited service run, stand by, or are left alone, and what their ends mean. Pure: no I/O, no
//! clock.

use std::time::Duration;

use containers::{Container, RunState};
use discovery::Timestamp;

/// Standing of a container whose service has a limited number of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It runs, and needs a slot.
    Runs,
    /// The agent starts it once it has a slot.
    StandsBy,
    /// The operator has stopped it. The agent leaves it alone until the operator starts it.
    Left,
}

/// What the end of a copy's container means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It runs again. The copy keeps its slot.
    None,
    /// The agent has stopped it. The copy stands by, or leaves if it was asked to.
    ByAgent,
    /// Another client of the engine has stopped it. The copy leaves.
    ByOperator,
    /// The app has ended by itself. It is started again here or elsewhere.
    ByItself,
}

/// Standing of a container. `is_kept` is true if the agent had it run or stand by when it saw it last, and the operator has
/// not stopped it since.
pub(crate) fn judge_container(container: &Container, is_kept: bool) -> Standing {
    match &container.state {
        RunState::Running | RunState::Paused => Standing::Runs,
        RunState::Stopped(word) if word == "created" => Standing::StandsBy,
        RunState::Stopped(word) if word == "exited" && is_kept => Standing::StandsBy,
        RunState::Stopped(_) => Standing::Left,
    }
}

/// What the end of a container means, some time after it. `is_stopping` is true if the agent is stopping it, and `is_told` if
/// another client of the engine has sent it a stop signal since its start.
pub(crate) fn judge_end(runs: bool, is_stopping: bool, is_told: bool) -> End {
    match (runs, is_stopping, is_told) {
        (true, ..) => End::None,
        (_, true, _) => End::ByAgent,
        (_, _, true) => End::ByOperator,
        _ => End::ByItself,
    }
}

/// The time of a container's start, from the engine's words. Podman's have the offset of the host's zone.
pub(crate) fn parse_start(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once('T')?;
    let Some(at) = time.rfind(['+', '-']) else { return text.parse().ok() };
    let (time, offset) = time.split_at_checked(at)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let minutes = hours.parse::<u64>().ok()?.checked_mul(60)?.checked_add(minutes.parse::<u64>().ok()?)?;
    let offset_time = Duration::from_secs(minutes.checked_mul(60)?);
    let local = format!("{date}T{time}Z").parse::<Timestamp>().ok()?.to_time();
    let utc = if offset.starts_with('+') { local.checked_sub(offset_time) } else { local.checked_add(offset_time) };
    utc.map(Timestamp::from_time)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Part of `CONTAINERS.md`.
    pub(crate) fn table() -> String {
        let states = ["created", "exited", "dead"].map(|word| RunState::Stopped(word.to_owned()));
        let mut page = String::from(
            "\n# A container of a service with `replicas`\n\nThe same of `src/agent/standing.rs`. A container is kept if the \
             agent had it run or stand by, and if no operator has stopped it since.\n\n\
             | the container is | kept | not kept |\n|---|---|---|\n",
        );
        for state in [RunState::Running, RunState::Paused].into_iter().chain(states) {
            let container = Container { state, ..Container::default() };
            let [kept, other] = [true, false].map(|is_kept| judge_container(&container, is_kept));
            writeln!(page, "| {} | {kept:?} | {other:?} |", container.state).unwrap();
        }
        page.push_str(
            "\n| after its end it runs | the agent stops it | it was told to stop | the end is |\n|---|---|---|---|\n",
        );
        let yes = |is: bool| if is { "yes" } else { "" };
        for bits in 0..8 {
            let [runs, is_stopping, is_told] = [4, 2, 1].map(|bit| bits & bit != 0);
            let end = judge_end(runs, is_stopping, is_told);
            writeln!(page, "| {} | {} | {} | {end:?} |", yes(runs), yes(is_stopping), yes(is_told)).unwrap();
        }
        page
    }

    #[test]
    fn both_engines_times_are_read() {
        for (text, time) in [
            ("2026-11-30T10:13:06.123456789Z", "2026-11-30T10:13:06Z"),
            ("2026-11-30T11:13:06.1+01:00", "2026-11-30T10:13:06Z"),
            ("2026-11-30T04:43:06-05:30", "2026-11-30T10:13:06Z"),
        ] {
            assert_eq!(parse_start(text).unwrap().to_string(), time, "{text}");
        }
        for garbage in
            ["", "T", "0001-01-01", "2026-11-30T10:13:06+99999999999999999999:00", "2026-11-30T10:13:06+\u{e9}:00"]
        {
            assert_eq!(parse_start(garbage), None, "{garbage}");
        }
    }
}
