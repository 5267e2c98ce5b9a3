//! Completions that know the store: services, upstreams, colors, hosts, settings and their values.
//!
//! A shell asks while the operator types. So every failure completes nothing, and prints nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, FromArgMatches, ValueHint};
use discovery::{ServiceId, SettingName, Topology};
use registry::Client;
use tokio::time::timeout;

use crate::config::Config;
use crate::shared_options::Common;
use crate::store::Store;

/// The variable by which a shell asks.
pub(crate) const VARIABLE: &str = "DISCOVERCTL_COMPLETE";

/// An operator waits for a completion for about a second. The process itself needs some of it.
const PATIENCE: Duration = Duration::from_millis(800);

/// The values of settings that have a few. A setting that isn't here takes names, numbers or networks.
const VALUES: &[(SettingName, &[&str])] = &[
    (SettingName::Tls, &["both", "terminate", "off", "passthrough", "reencrypt"]),
    (SettingName::Balance, &["roundrobin", "leastconn", "random", "source", "uri"]),
    (SettingName::Check, &["tcp", "off"]),
    (SettingName::Sticky, &["off", "cookie", "source"]),
    (SettingName::Hsts, &["off", "180d"]),
    (SettingName::ProxyProtocol, &["off", "v1", "v2"]),
    (SettingName::Proto, &["h1", "h2"]),
    (SettingName::Verify, &["on", "off"]),
    (SettingName::Sni, &["host", "off"]),
];

/// The kinds of values that an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Service,
    Upstream,
    ServiceOrUpstream,
    Setting,
    SettingValue,
    Color,
    Host,
}

/// Answers a shell that asks for completions. None if none asks.
pub(crate) fn answer_if_asked(command: &Command) -> Option<ExitCode> {
    // Most runs are commands, and need no completions.
    std::env::var_os(VARIABLE)?;
    manual::complete_if_asked(VARIABLE, &add_completions(command.clone()))
}

fn add_completions(command: Command) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|it| it.get_name().to_owned()).collect();
    let command = command.mut_args(add_values);
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |it| it.mut_args(add_values)))
}

fn add_values(arg: Arg) -> Arg {
    // clap refuses a hint for a flag.
    if !arg.get_action().takes_values() {
        return arg;
    }
    if arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "FILE")) {
        return manual::complete_with_paths(arg);
    }
    let kind = kind_of(&arg);
    // Without a hint the library lists files.
    let arg = arg.value_hint(ValueHint::Other);
    match kind {
        Some(kind) => manual::complete_with_values(arg, move || list_values(kind, &typed_words(), known_names())),
        None => arg,
    }
}

fn kind_of(arg: &Arg) -> Option<Kind> {
    if arg.get_id() == "host" && arg.get_long().is_some() {
        return Some(Kind::Host);
    }
    match arg.get_value_names()?.first()?.as_str() {
        "SVC" => Some(Kind::Service),
        "SVC/ID" => Some(Kind::Upstream),
        "SVC[/ID]" => Some(Kind::ServiceOrUpstream),
        "KEY" => Some(Kind::Setting),
        "VALUE" => Some(Kind::SettingValue),
        "COLOR" | "SPEC" => Some(Kind::Color),
        _ => None,
    }
}

/// The names in the store.
#[derive(Debug, Default)]
struct Known {
    services: BTreeSet<String>,
    /// `shop/node-1`.
    upstreams: BTreeSet<String>,
    /// The colors of a service, with the service's name.
    colors: BTreeSet<(String, String)>,
    hosts: BTreeSet<String>,
}

impl Known {
    fn from_topology(topology: &Topology) -> Self {
        let mut known = Self::default();
        for (id, service) in topology.services() {
            let name = name_of(topology, id);
            known.services.insert(name.clone());
            for (upstream, field) in service.upstreams() {
                known.upstreams.insert(format!("{name}/{upstream}"));
                let Ok(record) = &field.value else { continue };
                known.colors.extend(record.color.iter().map(|color| (name.clone(), color.to_string())));
                known.hosts.extend(record.host.iter().map(ToString::to_string));
            }
        }
        known
    }
}

/// The name as an operator types it. Two services of one name have those of their sections.
fn name_of(topology: &Topology, id: &ServiceId) -> String {
    let is_shared = topology.services().keys().any(|other| other.name == id.name && other.kind != id.kind);
    if is_shared { id.to_string() } else { id.name.to_string() }
}

/// The values for an argument, after these words. Pure.
fn list_values(kind: Kind, words: &[String], known: &Known) -> Vec<String> {
    match kind {
        Kind::Service => known.services.iter().cloned().collect(),
        Kind::Upstream => known.upstreams.iter().cloned().collect(),
        Kind::ServiceOrUpstream => known.services.iter().chain(&known.upstreams).cloned().collect(),
        Kind::Setting => SettingName::ALL.iter().map(ToString::to_string).collect(),
        Kind::SettingValue => {
            let named = words.iter().find_map(|word| VALUES.iter().find(|(name, _)| name.as_str() == word));
            named.into_iter().flat_map(|(_, values)| values.iter()).map(ToString::to_string).collect()
        }
        Kind::Color => {
            let named = |service: &String| words.contains(service);
            known.colors.iter().filter(|(service, _)| named(service)).map(|(_, color)| color.clone()).collect()
        }
        Kind::Host => known.hosts.iter().cloned().collect(),
    }
}

/// The words of the command line so far. The shell puts them behind `--`.
fn typed_words() -> Vec<String> {
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}

/// The names in the store, which is read once. None of them if it can't be read in time.
fn known_names() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| read_store().map(|store| Known::from_topology(&store.topology)).unwrap_or_default())
}

fn read_store() -> Option<Store> {
    let common = Common::from_arg_matches(&read_options()?).ok()?;
    let client = Client::new(common.etcd.resolve().ok()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let snapshot = runtime.block_on(async { timeout(PATIENCE, client.read_snapshot("")).await });
    // A name that is looked up in a thread must not delay the answer.
    runtime.shutdown_background();
    Some(Store::from_snapshot(snapshot.ok()?.ok()?))
}

/// The options so far: of the command line, of the variables and of the files. The line isn't complete, so errors don't count.
fn read_options() -> Option<ArgMatches> {
    let command = super::command().ignore_errors(true);
    let words: Vec<OsString> = typed_words().into_iter().map(OsString::from).collect();
    let given = command.clone().try_get_matches_from(words.clone()).ok()?;
    // The files' defaults count only for options that are not typed.
    let command = Config::read().ok()?.apply_defaults(command, &given);
    command.try_get_matches_from(words).ok()
}

#[cfg(test)]
mod tests {
    use discovery::{Kind as ServiceKind, Setting};

    use super::*;
    use crate::store::tests::store;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn each_argument_gets_what_the_store_has_for_it() {
        let store = store(&[
            ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue","host":"web-1"}"#),
            ("http-services/shop/upstreams/b", r#"{"address":"10.0.0.2:80","color":"green","host":"web-2"}"#),
            ("http-services/db/upstreams/a", r#"{"address":"10.0.0.3:80","color":"red"}"#),
            ("tcp-services/db/upstreams/a", "10.0.0.4:80"),
            ("http-services/e\u{1b}vil/upstreams/a", "10.0.0.5:80"),
        ]);
        let known = Known::from_topology(&store.topology);
        let list = |kind, line: &str| list_values(kind, &words(line), &known).join(" ");
        assert_eq!(list(Kind::Service, "discoverctl show"), "http-db shop tcp-db");
        assert_eq!(list(Kind::Upstream, "discoverctl drain"), "http-db/a shop/a shop/b tcp-db/a");
        assert_eq!(list(Kind::Color, "discoverctl switch shop"), "blue green");
        assert_eq!(list(Kind::Host, "discoverctl drain --host"), "web-1 web-2");
        assert_eq!(list(Kind::SettingValue, "discoverctl set shop proto"), "h1 h2");
        assert_eq!(list(Kind::SettingValue, "discoverctl set shop domain"), "");
        assert!(list(Kind::Setting, "discoverctl set shop").contains("balance"));
    }

    #[test]
    fn the_command_line_with_completions_fits_together() {
        add_completions(super::super::command()).debug_assert();
    }

    #[test]
    fn every_offered_value_is_one_of_the_setting() {
        for (name, values) in VALUES {
            for value in *values {
                let kinds = [ServiceKind::Http, ServiceKind::Tcp];
                let is_good = kinds.iter().any(|kind| Setting::parse(*kind, *name, value.as_bytes()).is_ok());
                assert!(is_good, "{name} {value}");
            }
        }
    }

    #[test]
    fn every_service_and_upstream_argument_is_completed() {
        let mut kinds = BTreeSet::new();
        for command in super::super::command().get_subcommands() {
            for arg in command.get_arguments() {
                kinds.extend(kind_of(arg).map(|kind| format!("{kind:?}")));
            }
        }
        assert_eq!(kinds.len(), 7, "{kinds:?}");
    }
}
