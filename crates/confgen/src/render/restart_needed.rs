//! Fingerprints of the parts of haproxy.cfg that only a restart changes, and the reason for a restart. Pure: no I/O, no clock.
//! Servers, hosts and paths are no part of a fingerprint, since HAProxy takes them while it runs.

mod build;
mod differences;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{Kind, ServiceId};
use serde::{Deserialize, Serialize};

use crate::desired::DesiredService;
use crate::desired::fingerprint::hash_parts;
use crate::desired::names::PREVIEW;
use crate::desired::names::parse_section;
use crate::desired::shared_map::SharedMap;
use crate::operator_files::filled::BlockFingerprint;
use crate::render::section::sections_of;
use crate::render::shape;
pub use differences::SectionDifferences;

/// The fingerprints of one generation. `structure.json` keeps them under these field names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFingerprint {
    /// `global`, `defaults`, the frontends, the templates, the error pages and the operator's files.
    pub common: String,
    /// The services' and previews' sections, by name.
    pub sections: SharedMap<String, String>,
    /// The services' shares of the common part, by the name of the service's own section.
    #[serde(default)]
    pub shares: BTreeMap<String, String>,
    /// The CA file of a section, by name. HAProxy loads it only at its start.
    #[serde(default)]
    pub authorities: BTreeMap<String, String>,
    /// The ports of each TCP service's section. A generation of an older release has none here.
    #[serde(default)]
    pub ports: BTreeMap<String, BTreeSet<u16>>,
    /// The sections that pass TLS through. While there is one, all other TLS takes the inner socket.
    #[serde(default)]
    pub passthrough: BTreeSet<String>,
    /// The server blocks of filled files, by `<path>#<number>`.
    #[serde(default)]
    pub fills: BTreeMap<String, BlockFingerprint>,
    /// The shapes by name, with their texts. HAProxy can add a backend of each that its file has.
    #[serde(default)]
    pub shapes: BTreeMap<String, String>,
    /// The sections with lines that no shape has. HAProxy can't add them while it runs.
    #[serde(default)]
    pub fixed: BTreeSet<String>,
    /// The names of sections that an operator's file has or leads to. `None` in a generation of a confgen that didn't note them.
    #[serde(default)]
    pub reserved: Option<BTreeSet<String>>,
}

/// One generation: its fingerprints and its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// The generation's fingerprints.
    pub fingerprint: Arc<ConfigFingerprint>,
    /// 16 hexadecimal digits: the value of `CONFGEN_GEN` in haproxy.cfg, and the name of the maps' folder in the state directory.
    pub id: String,
}

impl Generation {
    /// The generation with these fingerprints.
    pub fn new(fingerprint: Arc<ConfigFingerprint>) -> Self {
        Self { id: fingerprint.generation_id(), fingerprint }
    }
}

/// The difference between the running HAProxy and the wanted one that only a restart removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartReason {
    /// The first reason that was found, for the log and the API.
    pub reason: String,
    /// The services that wait for the restart. Empty if it concerns no single service.
    pub services: BTreeSet<ServiceId>,
}

impl ConfigFingerprint {
    /// Panics in debug builds if a fingerprint belongs to no section.
    fn check_invariants(&self) {
        debug_assert_eq!(self.find_violation(), None, "a fingerprint belongs to no section");
    }

    /// The name of a service without a section that has a share, a CA file or passes TLS through. `restart_reason` would compare it
    /// for ever.
    fn find_violation(&self) -> Option<&String> {
        let named = self.shares.keys().chain(self.authorities.keys()).chain(self.ports.keys()).chain(&self.passthrough);
        named.into_iter().find(|name| !self.sections.contains_key(*name))
    }

    /// The id of a generation with these fingerprints, 16 hexadecimal digits.
    pub fn generation_id(&self) -> String {
        // The other fields only explain a difference. Each of them shows in the common part or in a section too.
        let sections = self.sections.iter().flat_map(|(name, print)| [name.as_bytes(), print.as_bytes()]);
        let fills = self.fills.iter().flat_map(|(place, filled)| [place.as_bytes(), filled.print.as_bytes()]);
        hash_parts(std::iter::once(self.common.as_bytes()).chain(sections).chain(fills))
    }

    /// The sections for previews, by name.
    pub fn preview_sections(&self) -> impl Iterator<Item = &String> {
        self.sections.keys().filter(|section| section.contains(PREVIEW))
    }

    /// The services that have a section. A service with previews comes several times.
    /// The services with a section.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.sections.keys().filter_map(|section| parse_section(section))
    }

    /// True if a section passes TLS through.
    pub fn passes_through(&self) -> bool {
        !self.passthrough.is_empty()
    }

    /// True if the service has a section that passes TLS through, or not, as the service wants it. If false, its requests stay in the
    /// old section until a restart.
    pub fn has_section_for(&self, id: &ServiceId, wanted: &DesiredService) -> bool {
        let name = id.to_string();
        self.sections.contains_key(&name) && self.passthrough.contains(&name) == wanted.settings.passes_through()
    }

    /// True if the service's section binds the port.
    pub fn has_port(&self, id: &ServiceId, port: u16) -> bool {
        self.ports.get(&id.to_string()).is_some_and(|ports| ports.contains(&port))
    }

    /// True if HAProxy matches requests with the service's `url_reg`. It reads the map of expressions only at its start.
    pub fn has_expression(&self, id: &ServiceId, wanted: &DesiredService) -> bool {
        let line = wanted.url_reg.as_ref().map(|(since, regex)| format!("{since} {regex}"));
        line.is_some_and(|line| self.shares.get(&id.to_string()).is_some_and(|share| share.contains(&line)))
    }

    /// True if the service has a `url_reg` that HAProxy doesn't match requests with.
    pub fn lacks_expression(&self, id: &ServiceId, wanted: &DesiredService) -> bool {
        wanted.url_reg.is_some() && !self.has_expression(id, wanted)
    }

    /// True if a HAProxy with these fingerprints has all sections of the service as `wanted` has them.
    pub fn has_equal_sections(&self, id: &ServiceId, service: &DesiredService, wanted: &Self) -> bool {
        let mut names = sections_of(id, service).map(|section| section.name());
        names.all(|name| self.sections.get(&name).is_some_and(|print| wanted.sections.get(&name) == Some(print)))
    }

    /// True if a HAProxy with these fingerprints has this shape as `wanted` has it.
    pub fn has_shape(&self, name: &str, wanted: &Self) -> bool {
        match (self.shapes.get(name), wanted.shapes.get(name)) {
            (Some(running), Some(wanted)) => running == wanted,
            // The `defaults` of a mode are in the common part.
            (_, None) => name == shape::HTTP || name == shape::TCP && self.passes_through(),
            (None, Some(_)) => false,
        }
    }

    /// The sections that HAProxy must not delete: it couldn't add them again, or an operator's file leads there.
    pub fn lasting_sections(&self) -> BTreeSet<String> {
        self.fixed.iter().chain(self.reserved.iter().flatten()).cloned().collect()
    }

    /// True if HAProxy could add this section while it runs, if it has the shape.
    pub fn can_be_added(&self, section: &str) -> bool {
        let is_reserved = self.reserved.as_ref().is_none_or(|reserved| reserved.contains(section));
        !is_reserved && !self.fixed.contains(section)
    }

    /// True if there is a section of a TCP service. The common part has `defaults` for it then.
    fn has_tcp(&self) -> bool {
        let prefix = Kind::Tcp.to_string();
        self.sections.iter_from(&prefix).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    }

    /// The reason why a HAProxy with these fingerprints needs a restart to serve the wanted ones. `None` if it needs none. A section
    /// that is no longer wanted is no reason: without servers and routes it does no harm.
    pub fn restart_reason(&self, wanted: &Self) -> Option<RestartReason> {
        self.find_restart_reason(wanted, &mut SectionDifferences::default())
    }

    /// The same, at the cost of what changed since the last call with these `differences`. All calls with them are about this running
    /// generation.
    pub fn find_restart_reason(&self, wanted: &Self, differences: &mut SectionDifferences) -> Option<RestartReason> {
        differences.update(&self.sections, &wanted.sections);
        let mut services = BTreeSet::new();
        let mut reason = None;
        for name in differences.names() {
            // HAProxy can't add a backend before 3.4, nor one of a shape that it lacks.
            let words = if self.sections.contains_key(name) { "has another setting or port" } else { "is new" };
            services.extend(parse_section(name));
            reason.get_or_insert_with(|| format!("{name} {words}"));
        }
        // A block that is gone counts too: HAProxy would go on sending requests to its servers.
        for (place, filled) in self.fills.iter().chain(&wanted.fills) {
            if self.fills.get(place) != wanted.fills.get(place) {
                services.extend(parse_section(&filled.service));
                let file = place.rsplit_once('#').map_or(place.as_str(), |(file, _)| file);
                reason.get_or_insert_with(|| format!("{file} is filled anew with {}", filled.service));
            }
        }
        if self.common != wanted.common {
            let names = self.shares.keys().chain(wanted.shares.keys());
            let changed = names.filter(|name| self.shares.get(*name) != wanted.shares.get(*name));
            services.extend(changed.filter_map(|name| parse_section(name)));
            // A reason that concerns all services replaces the one of a single section.
            reason = Some(match (self.passes_through(), wanted.passes_through()) {
                (false, true) => "TLS is passed through from now on".into(),
                (true, false) => "TLS is no longer passed through".into(),
                _ => "what all services share is another: a flag or an operator's file".into(),
            });
        }
        reason.map(|reason| RestartReason { reason, services })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::operator_files::parse::OperatorConfig;
    use crate::render::tests::site;
    use crate::render::view::View;

    fn structure(common: &str, sections: &[(&str, &str)]) -> ConfigFingerprint {
        let sections = sections.iter().map(|(name, print)| ((*name).to_owned(), (*print).to_owned()));
        ConfigFingerprint { common: common.into(), sections: sections.collect(), ..ConfigFingerprint::default() }
    }

    #[test]
    fn only_a_new_or_changed_section_needs_a_restart() {
        let running = structure("c", &[("http-a", "1"), ("http-b", "1")]);
        let lacks =
            |wanted: ConfigFingerprint| running.restart_reason(&wanted).map(|lack| lack.reason).unwrap_or_default();
        assert_eq!(lacks(running.clone()), "");
        assert_eq!(lacks(structure("c", &[("http-a", "1")])), "", "one that went leaves an empty backend");
        assert_eq!(lacks(structure("c", &[("http-c", "1")])), "http-c is new");
        assert_eq!(lacks(structure("c", &[("http-a", "2")])), "http-a has another setting or port");
        assert!(lacks(structure("d", &[])).starts_with("what all services share"));
        assert_ne!(running.generation_id(), structure("c", &[("http-a", "1")]).generation_id());
    }

    #[test]
    fn haproxy_adds_what_has_a_shape_and_no_line_of_its_own() {
        let site = site(Path::new("/state"));
        let of = |store: &str| {
            let settled = settle(&topology(store), &Default::default(), &Default::default());
            let operator =
                OperatorConfig::from_texts([("mine.cfg", "backend http-mine\nfrontend f\n use_backend http-gone\n")]);
            ConfigFingerprint::from_view(&View::new(&settled, &site, &operator), &[]).unwrap()
        };
        let wanted = of("http-services/plain/domain a.com\nhttp-services/fast/balance leastconn\n\
            http-services/cookie/sticky cookie\nhttp-services/table/sticky source\ntcp-services/db/ports 3306\n");
        for (section, can) in [
            ("http-plain", true),
            ("http-fast", true),
            ("http-cookie", false),
            ("http-table", false),
            ("tcp-db", false),
            ("http-mine", false),
            ("http-gone", false),
        ] {
            assert_eq!(wanted.can_be_added(section), can, "{section}");
        }
        let running = of("http-services/plain/domain a.com\n");
        assert!(running.has_shape("discover-http", &wanted), "every file has it");
        assert!(
            !running.has_shape("discover-http-leastconn", &wanted)
                && wanted.has_shape("discover-http-leastconn", &wanted)
        );
        assert!(!running.has_shape("discover-tcp", &wanted), "the file has it only with TLS that is passed through");
        let other = ConfigFingerprint {
            shapes: [("discover-http-leastconn".to_owned(), "of another release".to_owned())].into(),
            ..running
        };
        assert!(!other.has_shape("discover-http-leastconn", &wanted));
    }

    #[test]
    fn a_share_without_a_section_is_a_violation() {
        let good = structure("c", &[("http-a", "1")]);
        assert_eq!(good.find_violation(), None);
        let entry = || [("http-b".to_owned(), "x".to_owned())].into();
        for bad in [
            ConfigFingerprint { shares: entry(), ..good.clone() },
            ConfigFingerprint { authorities: entry(), ..good.clone() },
            ConfigFingerprint { ports: [("http-b".to_owned(), BTreeSet::from([1]))].into(), ..good.clone() },
            ConfigFingerprint { passthrough: ["http-b".to_owned()].into(), ..good },
        ] {
            assert_eq!(bad.find_violation().map(String::as_str), Some("http-b"), "{bad:?}");
        }
    }

    #[test]
    fn a_service_that_no_longer_passes_tls_through_needs_a_restart() {
        let site = site(Path::new("/state"));
        let of = |store: &str| {
            let settled = settle(&topology(store), &Default::default(), &Default::default());
            ConfigFingerprint::from_view(&View::new(&settled, &site, &OperatorConfig::default()), &[]).unwrap()
        };
        let other = "http-services/b/domain b.com\n http-services/b/tls passthrough\n http-services/a/domain a.com\n ";
        let (through, ended) = (of(&format!("{other} http-services/a/tls passthrough")), of(other));
        for (running, wanted) in [(&through, &ended), (&ended, &through)] {
            let lack = running.restart_reason(wanted).unwrap();
            assert_eq!(lack.reason, "http-a has another setting or port", "with no setting beside it, too");
        }
    }

    #[test]
    fn colors_switch_without_a_restart_and_a_new_one_takes_one() {
        let site = site(Path::new("/state"));
        let settled = |store: &str| settle(&topology(store), &Default::default(), &Default::default());
        let of = |store: &str| {
            ConfigFingerprint::from_view(&View::new(&settled(store), &site, &OperatorConfig::default()), &[]).unwrap()
        };
        let color = |name: &str| {
            format!("http-services/a/upstreams/{name} {{\"address\":\"10.0.0.1:80\",\"color\":\"{name}\"}}\n")
        };
        let plain = format!("http-services/a/domain a.com\nhttp-services/a/active blue\n{}", color("blue"));
        let blue = format!("{plain}http-services/a/preview 10.0.0.0/8\n{}", color("green"));
        let (running, switched) = (of(&blue), of(&blue.replace("active blue", "active green")));
        assert_eq!(running, switched);
        assert_eq!(running.preview_sections().collect::<Vec<_>>(), ["http-a:preview-blue", "http-a:preview-green"]);
        let red = format!("{blue}{}", color("red"));
        let lack = running.restart_reason(&of(&red)).unwrap();
        let services: Vec<String> = lack.services.iter().map(ToString::to_string).collect();
        assert_eq!((lack.reason.as_str(), services), ("http-a:preview-red is new", vec!["http-a".to_owned()]));
        assert_eq!(of(&red).restart_reason(&running), None, "one that went leaves an empty backend");
        // An update service by service has the same result.
        let (id, settled) = (parse_section("http-a:preview-red").unwrap(), settled(&red));
        let mut updated = Arc::new(running.clone());
        assert!(updated.update_service(&id, settled.service(&id).map(|it| &**it), &site).unwrap());
        assert_eq!(*updated, of(&red));
        assert!(
            !Arc::new(of(&plain)).update_service(&id, settled.service(&id).map(|it| &**it), &site).unwrap(),
            "the frontend knows it"
        );
    }

    #[test]
    fn a_block_that_is_gone_needs_a_restart_too() {
        let filled = |print: &str| BlockFingerprint { service: "http-a".into(), print: print.into() };
        let with = |fills: &[(&str, &str)]| ConfigFingerprint {
            fills: fills.iter().map(|(place, print)| ((*place).to_owned(), filled(print))).collect(),
            ..structure("c", &[("http-a", "1")])
        };
        let running = with(&[("/x.cfg#0", "1")]);
        assert_eq!(running.restart_reason(&running), None);
        for wanted in [with(&[]), with(&[("/x.cfg#0", "2")]), with(&[("/x.cfg#0", "1"), ("/x.cfg#1", "1")])] {
            let lack = running.restart_reason(&wanted).unwrap();
            assert_eq!(lack.reason, "/x.cfg is filled anew with http-a");
            assert_eq!(lack.services.len(), 1, "it is pending");
            assert_ne!(running.generation_id(), wanted.generation_id());
        }
    }

    #[test]
    fn each_service_that_waits_for_a_restart_is_named() {
        let running = ConfigFingerprint {
            shares: [("http-b".to_owned(), "4 ^/old".to_owned())].into(),
            ..structure("c", &[("http-a", "1"), ("http-b", "1")])
        };
        let waiting = |wanted: ConfigFingerprint| -> Vec<String> {
            let lack = running.restart_reason(&wanted);
            lack.into_iter().flat_map(|lack| lack.services).map(|id| id.to_string()).collect()
        };
        let wanted = structure("d", &[("http-a", "2"), ("http-b", "1"), ("http-c", "1")]);
        assert_eq!(waiting(wanted.clone()), ["http-a", "http-b", "http-c"], "b's expression has gone");
        assert_eq!(waiting(ConfigFingerprint { shares: running.shares.clone(), ..wanted }), ["http-a", "http-c"]);
    }
}
