//! Holds the tables of `docs/settings.md` and `docs/keys.md` against the code.

use std::path::Path;

use discovery::{Kind, Setting, SettingName};

use crate::desired::tests::{settle, topology};
use crate::desired::{Authorities, Authority, DesiredState, LastKnownGood, Policy};
use crate::operator_files::parse::OperatorConfig;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::tests::site;
use crate::render::view::View;

const TEXT: &str = include_str!("../../../../docs/settings.md");
const KEYS: &str = include_str!("../../../../docs/keys.md");

/// A row of the table.
struct Row {
    name: SettingName,
    kinds: Vec<Kind>,
    /// What may be written, each for these kinds.
    values: Vec<(String, Vec<Kind>)>,
    default: Vec<(String, Vec<Kind>)>,
    followed: String,
}

fn kinds(words: &str) -> Vec<Kind> {
    [(Kind::Http, "http"), (Kind::Tcp, "tcp")]
        .into_iter()
        .filter(|(_, word)| words.contains(word))
        .map(|it| it.0)
        .collect()
}

/// The words between backticks, each for the kinds behind it, else for all of the row's.
fn values(cell: &str, all: &[Kind]) -> Vec<(String, Vec<Kind>)> {
    let parts: Vec<&str> = cell.split('`').collect();
    let said =
        |behind: &str| behind.strip_prefix(" (").and_then(|rest| rest.split_once(')')).map(|(words, _)| kinds(words));
    parts
        .chunks(2)
        .skip(1)
        .zip(parts.chunks(2))
        .map(|(next, this)| (this[1], next[0]))
        .map(|(value, behind)| (value.to_owned(), said(behind).unwrap_or_else(|| all.to_vec())))
        .collect()
}

/// The rows of the first table of keys.
fn table(page: &'static str) -> impl Iterator<Item = &'static str> {
    page.lines().skip_while(|line| !line.starts_with("| key |")).skip(2).take_while(|line| !line.is_empty())
}

fn rows() -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let kinds = kinds(cells[2]);
        Row {
            name: cells[1].trim_matches('`').parse().unwrap(),
            values: values(cells[3], &kinds),
            default: values(cells[4], &kinds),
            followed: cells[5].to_owned(),
            kinds,
        }
    };
    table(TEXT).map(row).collect()
}

fn limits() -> Policy {
    let authority = Authority { copy: "/state/ca/internal.pem".parse().unwrap(), fingerprint: "0".to_owned() };
    let authorities =
        Authorities { usable: [("internal.pem".parse().unwrap(), authority)].into(), ..Authorities::default() };
    Policy { profiles: vec!["slow".parse().unwrap()], ca_files: authorities, ..Policy::default() }
}

/// A service of the kind with this setting and no other, but for what it has no meaning without.
fn with(kind: Kind, name: SettingName, value: Option<&str>) -> DesiredState {
    let folder = format!("{kind}-services/a");
    let tls = matches!(name, SettingName::Verify | SettingName::Sni).then(|| format!("{folder}/tls reencrypt\n"));
    let named = match (kind, name) {
        (Kind::Http, SettingName::Domain) | (Kind::Tcp, SettingName::Ports) => None,
        (Kind::Http, _) => Some(format!("{folder}/domain a.com\n")),
        (Kind::Tcp, _) => Some(format!("{folder}/ports 3306\n")),
    };
    let colored = format!("{folder}/upstreams/1 {{\"address\":\"10.0.0.1:80\",\"color\":\"blue\"}}\n");
    let plain = format!("{folder}/upstreams/2 10.0.0.2:80\n");
    let set = value.map(|value| format!("{folder}/{name} {value}\n"));
    let store: String = [Some(colored), Some(plain), tls, named, set].into_iter().flatten().collect();
    settle(&topology(&store), &LastKnownGood::default(), &limits())
}

fn stamp(settled: &DesiredState) -> String {
    let site = site(Path::new("/state"));
    ConfigFingerprint::from_view(&View::new(settled, &site, &OperatorConfig::default()), &[]).unwrap().generation_id()
}

#[test]
fn every_setting_has_its_row() {
    let rows = rows();
    let names: Vec<SettingName> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names, SettingName::ALL);
    for Row { name, kinds, .. } in rows {
        assert_eq!(kinds, name.kinds(), "{name}");
    }
}

#[test]
fn every_value_can_be_written_as_it_stands_and_does_what_is_said() {
    for Row { name, kinds, values, default, followed } in rows() {
        for (value, of) in &values {
            for kind in &kinds {
                let parsed = Setting::parse(*kind, name, value.as_bytes());
                assert_eq!(parsed.is_ok(), of.contains(kind), "{name} {value}: {parsed:?}");
            }
        }
        for kind in &kinds {
            let unset = with(*kind, name, None);
            let of_kind = |some: &[(String, Vec<Kind>)]| -> Vec<DesiredState> {
                let of = some.iter().filter(|(_, of)| of.contains(kind));
                of.map(|(value, _)| with(*kind, name, Some(value))).collect()
            };
            for settled in of_kind(&default) {
                assert!(
                    settled.services().eq(unset.services()),
                    "{name}: the default is what counts where it is unset"
                );
            }
            for settled in of_kind(&values).iter().filter(|settled| !settled.services().eq(unset.services())) {
                assert!(settled.quarantined_keys().is_empty(), "{name}: {:?}", settled.quarantined_keys());
                let restart = stamp(settled) != stamp(&unset);
                assert_eq!(if restart { "restart" } else { "at once" }, followed, "{name}");
            }
            let differ = of_kind(&values).iter().any(|settled| !settled.services().eq(unset.services()));
            assert_eq!(differ, !values.is_empty(), "{name}: some value makes a difference");
        }
    }
}

#[test]
fn a_value_that_is_refused_does_what_is_said_where_there_is_no_good_one() {
    let mut names = Vec::new();
    for line in table(KEYS) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (folder, name) = cells[1].trim_matches('`').split_once("-services/<svc>/").unwrap();
        let name: SettingName = name.parse().unwrap();
        names.push(name);
        assert_eq!(kinds(folder), name.kinds(), "{name}");
        let Some(refused) = cells[4].split('`').nth(1) else { continue };
        for &kind in name.kinds() {
            let (unset, settled) = (with(kind, name, None), with(kind, name, Some(refused)));
            assert!(settled.quarantined_keys().contains_key(&format!("{kind}-services/a/{name}")), "{kind} {name}");
            let (_, service) = settled.services().next().unwrap();
            let is_so = match cells[5] {
                "as if unset" => settled.services().eq(unset.services()),
                "nobody is served" => {
                    service.servers.is_empty() && !service.routes.is_empty() | !service.binds.is_empty()
                }
                "no path is served" => service.routes.is_empty() && !service.servers.is_empty(),
                other => panic!("{name}: {other}"),
            };
            assert!(is_so, "{kind} {name} {refused}: not {}", cells[5]);
        }
    }
    assert_eq!(names.len(), SettingName::ALL.len());
}
