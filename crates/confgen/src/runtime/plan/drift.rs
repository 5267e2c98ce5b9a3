//! Finds what HAProxy shows and confgen did not apply. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::RuntimeState;
use super::maps::Maps;
use super::server::LiveServer;
use crate::desired::pairs::pair_by_key;

/// Differences between what HAProxy shows and what was last applied, by name, with what HAProxy shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    pub frontends: BTreeMap<String, String>,
    pub backends: BTreeMap<String, String>,
    pub servers: BTreeMap<String, String>,
    pub map_entries: BTreeMap<String, String>,
}

impl Drift {
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, part)| part.is_empty())
    }

    /// The kinds of differences, as the metrics name them.
    pub fn parts(&self) -> [(&'static str, &BTreeMap<String, String>); 4] {
        let Self { frontends, backends, servers, map_entries } = self;
        [("frontend", frontends), ("backend", backends), ("server", servers), ("map_entry", map_entries)]
    }

    /// The first name, for the log.
    pub fn first_name(&self) -> Option<&str> {
        self.parts().iter().find_map(|(_, part)| part.keys().next()).map(String::as_str)
    }
}

impl RuntimeState {
    /// Compares this observed state with what was last applied. `sections` are those of confgen.
    pub fn find_drift<'a>(&self, applied: &Self, sections: impl Iterator<Item = &'a String>) -> Drift {
        let sections: BTreeSet<&String> = sections.collect();
        let servers = self.find_changed_servers(applied, &sections);
        let mut map_entries = find_entries(&self.maps, &applied.maps);
        if self.expressions != applied.expressions {
            map_entries.insert("urls.map".to_owned(), format!("{:?}", self.expressions));
        }
        Drift {
            frontends: find_differences(&self.frontends, &applied.frontends),
            backends: find_differences(&self.shown_backends(&sections), &applied.shown_backends(&sections)),
            servers,
            map_entries,
        }
    }

    /// The changed servers of these sections, by section and name.
    fn find_changed_servers(&self, applied: &Self, sections: &BTreeSet<&String>) -> BTreeMap<String, String> {
        let pairs = pair_by_key(&self.servers, &applied.servers).filter(|(section, _, _)| sections.contains(section));
        let mut changed = BTreeMap::new();
        for (section, seen, known) in pairs {
            for (name, seen, known) in pair_by_key(seen.into_iter().flatten(), known.into_iter().flatten()) {
                // A server that HAProxy refuses to delete stays in maintenance.
                let is_refused = known.is_none() && seen.is_some_and(|live| live.maint);
                let (seen, known) = (seen.map(Shown::of), known.map(Shown::of));
                if seen != known && !is_refused {
                    changed.insert(format!("{section}/{name}"), describe_seen(seen.as_ref()));
                }
            }
        }
        changed
    }

    /// Those of these sections that get no request, wherever a map leads.
    fn shown_backends(&self, sections: &BTreeSet<&String>) -> BTreeMap<String, &'static str> {
        let ours = self.backends.unpublished().iter().filter(|section| sections.contains(section));
        ours.map(|section| (section.clone(), "unpublished")).collect()
    }
}

/// A server without what confgen doesn't compare: its id, and whether it is leaving.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown(LiveServer);

impl Shown {
    fn of(live: &LiveServer) -> Self {
        Self(LiveServer { id: 0, leaving: false, ..*live })
    }
}

fn find_entries(seen: &Maps<String>, applied: &Maps<String>) -> BTreeMap<String, String> {
    let maps = [
        ("hosts", &seen.hosts, &applied.hosts),
        ("paths", &seen.paths, &applied.paths),
        ("passthrough", &seen.passthrough, &applied.passthrough),
        ("checks", &seen.checks, &applied.checks),
    ];
    let found = maps.into_iter().flat_map(|(map, seen, applied)| {
        let differences = find_differences(seen, applied).into_iter();
        differences.map(move |(key, shown)| (format!("{map}.map {key}"), shown))
    });
    found.collect()
}

/// The keys whose seen value differs from the applied one. The value is the seen one, or `gone`.
fn find_differences<V: PartialEq + Debug>(
    seen: &BTreeMap<String, V>,
    applied: &BTreeMap<String, V>,
) -> BTreeMap<String, String> {
    let changed = pair_by_key(seen, applied).filter(|(_, seen, applied)| seen != applied);
    changed.map(|(key, seen, _)| (key.clone(), describe_seen(seen))).collect()
}

fn describe_seen<V: Debug>(seen: Option<&V>) -> String {
    seen.map_or_else(|| "gone".to_owned(), |value| format!("{value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::plan::tests::{id, settled};
    use crate::runtime::plan::{ListedMaps, Scope};

    fn named(drift: &Drift) -> Vec<&str> {
        drift.parts().into_iter().flat_map(|(_, part)| part.keys().map(String::as_str)).collect()
    }

    #[test]
    fn only_what_confgen_did_not_apply_is_drift() {
        let line = |section: &str, name: &str, weight: u16, admin: u32| {
            format!("5 {section} 1 {name} 10.0.0.1 2 {admin} {weight} 100 16 8 2 0 6 0 0 0 - 80 - 0 0 - - 0\n")
        };
        let observed = |servers: &str, hosts: &[(&str, &str)]| {
            let hosts = hosts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let listed = ListedMaps { hosts, paths: vec![("a.com/".into(), "http-a".into())], ..ListedMaps::default() };
            RuntimeState::from_answers(&format!("1\n# be_id …\n{servers}").parse().unwrap(), listed)
        };
        let (a, store) = (id("a"), settled("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n"));
        let mut applied = RuntimeState::default();
        applied.mark_applied(Scope::All, &[(&a, store.service(&a).map(|wanted| &**wanted))]);
        let sections = ["http-a".to_owned()];
        let found =
            |servers: &str, hosts: &[(&str, &str)]| observed(servers, hosts).find_drift(&applied, sections.iter());
        let fine = line("http-a", "1", 100, 0);
        let host = [("a.com", "a.com")];
        assert!(found(&fine, &host).is_empty());
        let mine = format!("{fine}{}", line("mine", "1", 7, 1));
        assert!(found(&mine, &host).is_empty(), "an operator's own server is theirs");
        let refused = format!("{fine}{}", line("http-a", "old", 7, 1));
        assert!(found(&refused, &host).is_empty(), "it couldn't be deleted");
        assert_eq!(named(&found(&line("http-a", "1", 1, 0), &host)), ["http-a/1"]);
        assert_eq!(named(&found("", &host)), ["http-a/1"]);
        let stranger = format!("{fine}{}", line("http-a", "x", 7, 0));
        assert_eq!(
            named(&found(&stranger, &[("a.com", "b"), ("c", "c")])),
            ["http-a/x", "hosts.map a.com", "hosts.map c"]
        );
        assert_eq!(found(&fine, &[]).map_entries["hosts.map a.com"], "gone");
    }
}
