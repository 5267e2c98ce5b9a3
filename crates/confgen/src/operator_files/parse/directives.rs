//! `global` lines and sections that break confgen or handover. Each was tried on HAProxy 2.6. Pure: no I/O, no clock.

use std::path::Path;

/// HAProxy's default for `tune.bufsize`, in bytes. A payload over the Runtime API has to fit in.
const BUFFER: u64 = 16_384;

/// HAProxy's default for `stats maxconn`.
const SESSIONS: u64 = 10;

/// The reason why confgen rejects a `global` line, and the remedy. `None` if the line does no harm.
pub(super) fn find_directive_conflict(words: &[&str], state_file: &Path) -> Option<String> {
    match words {
        // Of two such lines the first counts, and handover writes only the file of its own option.
        ["server-state-file", file, ..] if Path::new(file) != state_file => Some(format!(
            "handover saves the servers' states in {} (--server-state-file), and HAProxy would read this one: after a \
             restart, upstreams that are down or drained would get requests. Delete the line",
            state_file.display()
        )),
        ["unix-bind", options @ ..] if options.contains(&"prefix") => Some(
            "`prefix` moves confgen's own unix sockets too, and HAProxy no longer finds them. Write whole paths in your \
             `bind` lines, and delete `prefix`"
                .into(),
        ),
        ["zero-warning", ..] => Some(
            "HAProxy warns at a restart of each server that was down before, and would not start. Delete the line: \
             confgen logs every warning"
                .into(),
        ),
        ["quiet", ..] => Some("HAProxy would give no reason for what it refuses. Delete the line".into()),
        ["resetenv", ..] => Some(
            "it removes variables that the generated file and HAProxy's master rely on. Name those to remove, with unsetenv"
                .into(),
        ),
        ["unsetenv", names @ ..] if names.iter().any(|name| is_used(name)) => {
            Some(format!("the generated file or HAProxy's master relies on it. Leave out {}", USED.join(", ")))
        }
        ["setenv" | "presetenv", name, ..] if is_used(name) => {
            Some("the variable is confgen's or HAProxy's own. Give yours another name".into())
        }
        ["grace", ..] => Some(
            "for so long after a restart the old HAProxy would still accept connections, and answer for the services as it \
             knew them. Delete the line: handover needs no grace"
                .into(),
        ),
        ["tune.bufsize", size, ..] if parse_number(size).is_some_and(|size| size < BUFFER) => {
            Some(format!("what confgen sends over the Runtime API no longer fits. Write at least {BUFFER}"))
        }
        [limit, size, ..] if is_limit_of_variables(limit) && parse_number(size).is_some_and(|size| (1..BUFFER).contains(&size)) => {
            Some(format!("confgen's frontend keeps host and path in variables, and would answer 404. Write at least {BUFFER}"))
        }
        ["stats", "maxconn", most, ..] if parse_number(most).is_some_and(|most| most < SESSIONS) => Some(format!(
            "one open session on the Runtime API would keep confgen and handover out. Write at least {SESSIONS}"
        )),
        ["stats", "timeout", time, ..] if parse_milliseconds(time).is_some_and(|time| time < 1_000) => {
            Some("HAProxy would close the Runtime API before confgen and handover have spoken. Write at least 1s".into())
        }
        _ => None,
    }
}

/// The reason why confgen rejects a section of this kind, and the remedy. `None` if the section does no harm.
pub(super) fn find_section_conflict(kind: &str) -> Option<&'static str> {
    // `haproxy -c` refuses it without -W, and each HAProxy that still finishes its requests would run the program too.
    (kind == "program").then_some("each HAProxy, old ones too, would run the program. Run it under supervisord")
}

/// Variables that the generated file or HAProxy's master relies on.
const USED: [&str; 5] =
    ["CONFGEN_GEN", "HAPROXY_LOCALPEER", "HAPROXY_MWORKER", "HAPROXY_MWORKER_REEXEC", "HAPROXY_PROCESSES"];

fn parse_number(text: &str) -> Option<u64> {
    text.parse().ok()
}

fn is_used(name: &str) -> bool {
    USED.contains(&name)
}

fn is_limit_of_variables(keyword: &str) -> bool {
    keyword.starts_with("tune.vars.") && keyword.ends_with("-max-size")
}

/// A time as HAProxy reads it. A number without a unit is milliseconds.
fn parse_milliseconds(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    match unit {
        "us" => Some(number / 1_000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        find_directive_conflict(&words, Path::new("/run/haproxy/servers.state")).is_some()
    }

    #[test]
    fn a_line_that_breaks_a_restart_or_the_runtime_api_is_refused() {
        for line in [
            "server-state-file /var/lib/haproxy/state",
            "server-state-file servers.state",
            "unix-bind mode 600 prefix /run/x",
            "zero-warning",
            "quiet",
            "resetenv PATH",
            "unsetenv A HAPROXY_LOCALPEER",
            "presetenv CONFGEN_GEN x",
            "grace 10s",
            "tune.bufsize 8192",
            "tune.vars.txn-max-size 64",
            "stats maxconn 1",
            "stats timeout 500",
            "stats timeout 1ms",
        ] {
            assert!(is_refused(line), "{line}");
        }
    }

    #[test]
    fn a_harmless_line_is_accepted() {
        for line in [
            "server-state-file /run/haproxy/servers.state",
            "server-state-base /var/lib/haproxy",
            "load-server-state-from-file none",
            "unix-bind mode 600",
            "setenv HAPROXY_MINE x",
            "unsetenv MINE",
            "daemon",
            "master-worker no-exit-on-failure",
            "nbthread 4",
            "maxconn 100",
            "hard-stop-after 30s",
            "localpeer lb1",
            "default-path config",
            "pidfile /run/haproxy.pid",
            "tune.bufsize 32768",
            "tune.vars.txn-max-size 0",
            "stats maxconn 100",
            "stats timeout 30s",
            "stats timeout 2m",
        ] {
            assert!(!is_refused(line), "{line}");
        }
    }
}
