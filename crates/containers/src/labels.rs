//! Reads labels into services. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::container::Container;
use crate::dialect::{self, Dialect};
use crate::draft::{Drafts, Field, FieldName, ServiceDraft};
use crate::fault::LabelFault;
use crate::service::LabelledService;

/// The most services of one container. The next ones are refused: each costs checks and a record.
const MOST_SERVICES: usize = 32;

/// The most faults of one container that are kept, since thousands would fill the log.
const MOST_FAULTS: usize = 32;

/// The labels that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRules {
    /// Begin of the names of this project's own labels, without the dot behind it.
    pub prefix: String,
    /// Labels of other programs that are read too, from containers without labels of our own.
    pub dialects: Vec<Dialect>,
}

/// What the labels of one container say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The services, sorted by the names of their labels.
    pub services: Vec<LabelledService>,
    /// The labels that can't be read. Each costs its own service.
    pub faults: Vec<LabelFault>,
}

impl LabelRules {
    /// True if this is the name of a label that limits a service's copies. Its value may be wrong all the same.
    pub fn is_limit(&self, label: &str) -> bool {
        label.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(LIMIT))
    }

    /// Reads a container's labels. A container without any that count has no service and no fault.
    pub fn read(&self, container: &Container) -> Reading {
        // A mixture of two programs' labels would be read as services that neither program has.
        let mut reading = read_own(&self.prefix, &container.labels);
        if reading.is_empty() {
            for dialect in &self.dialects {
                let other = dialect::read(*dialect, container);
                reading.drafts.extend(other.drafts);
                reading.faults.extend(other.faults);
            }
        }
        resolve(reading)
    }
}

/// The last word of a label that limits a service's copies.
const LIMIT: &str = ".replicas";

/// Reads the labels below the prefix: `domain`, `set.balance`, `api.domain`, `api.set.balance`.
fn read_own(prefix: &str, labels: &BTreeMap<String, String>) -> Drafts {
    let folder = format!("{prefix}.");
    let mut drafts: BTreeMap<&str, ServiceDraft> = BTreeMap::new();
    // Services with an unknown label are refused: `pth` for `path` would open the service at every path.
    let mut refused = BTreeSet::new();
    let mut faults = Vec::new();
    let own = labels.range(folder.clone()..).take_while(|(label, _)| label.starts_with(&folder));
    for (label, value) in own {
        let words = label.strip_prefix(&folder).unwrap_or_default();
        let (group, target) = split_label(words);
        let Some(target) = target else {
            if faults.len() < MOST_FAULTS {
                let names: Vec<&str> = FieldName::ALL.iter().map(|(name, _)| *name).collect();
                let reason = format!("unknown label; {}, and set.KEY are known", names.join(", "));
                faults.push(LabelFault::new(label, value, reason));
            }
            refused.insert(group);
            continue;
        };
        let draft = drafts.entry(group).or_insert_with(|| ServiceDraft {
            folder: if group.is_empty() { prefix.to_owned() } else { format!("{folder}{group}") },
            ..ServiceDraft::default()
        });
        let field = Field { label: label.clone(), value: value.clone() };
        match target {
            Target::Field(name) => draft.fields.insert(name, field),
            Target::Setting(key) => draft.settings.insert(key.to_owned(), field),
        };
    }
    drafts.retain(|group, _| !refused.contains(group));
    Drafts { drafts: drafts.into_values().collect(), faults }
}

/// What a label sets.
enum Target<'a> {
    Field(FieldName),
    Setting(&'a str),
}

/// Splits a name below the prefix into the service's group, which is empty without one, and the rest. `None` if the rest is
/// unknown. A field's name is never a group.
fn split_label(words: &str) -> (&str, Option<Target<'_>>) {
    if let Some(target) = parse_target(words) {
        return ("", Some(target));
    }
    match words.split_once('.') {
        Some((group, rest)) if !group.is_empty() && !is_reserved(group) => (group, parse_target(rest)),
        _ => ("", None),
    }
}

fn is_reserved(word: &str) -> bool {
    word == "set" || FieldName::parse(word).is_some()
}

fn parse_target(words: &str) -> Option<Target<'_>> {
    match words.strip_prefix("set.") {
        Some(key) => (!key.is_empty()).then_some(Target::Setting(key)),
        None => FieldName::parse(words).map(Target::Field),
    }
}

/// Reads the drafts' values. Two drafts that say the same are one service, and two that contradict each other are refused.
fn resolve(reading: Drafts) -> Reading {
    let Drafts { drafts, mut faults } = reading;
    let mut services: Vec<LabelledService> = Vec::new();
    for draft in drafts {
        if services.len() >= MOST_SERVICES {
            let reason = format!("a container has at most {MOST_SERVICES} services");
            faults.push(LabelFault::missing(&draft.folder, reason));
            break;
        }
        match draft.resolve() {
            Ok(service) => match find_twin(&services, &service) {
                None => services.push(service),
                Some(twin) if twin.says_the_same_as(&service) => {}
                Some(twin) => {
                    let reason = format!("{} at this port is described by {} too", service.service, twin.folder);
                    faults.push(LabelFault::missing(&service.folder, discovery::Excerpt::new(&reason).to_string()));
                }
            },
            Err(fault) => faults.push(fault),
        }
    }
    faults.truncate(MOST_FAULTS);
    Reading { services, faults }
}

fn find_twin<'a>(services: &'a [LabelledService], new: &LabelledService) -> Option<&'a LabelledService> {
    services.iter().find(|known| known.service == new.service && known.port == new.port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::LabelCheck;

    fn rules() -> LabelRules {
        LabelRules { prefix: "haproxy-discover".to_owned(), dialects: Vec::new() }
    }

    pub(crate) fn container(labels: &[(&str, &str)]) -> Container {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        Container { name: "web".to_owned(), labels, ..Container::default() }
    }

    fn read(labels: &[(&str, &str)]) -> Reading {
        rules().read(&container(labels))
    }

    fn shown(service: &LabelledService) -> String {
        let settings: Vec<_> = service.settings.iter().map(|setting| format!("{}={setting}", setting.name())).collect();
        let port = service.port.map_or("-".to_owned(), |port| port.to_string());
        format!("{} port {port} {}", service.service, settings.join(" "))
    }

    #[test]
    fn one_label_is_enough() {
        let reading = read(&[("haproxy-discover.domain", "Shop.a.com, b.com"), ("maintainer", "me")]);
        assert_eq!(reading.faults, []);
        assert_eq!(shown(&reading.services[0]), "http-shop.a.com port - domain=shop.a.com b.com");
        assert_eq!(read(&[("maintainer", "me"), ("haproxy-discovery.domain", "a.com")]), Reading::default());
    }

    #[test]
    fn each_label_means_what_the_option_means() {
        let reading = read(&[
            ("haproxy-discover.service", "shop"),
            ("haproxy-discover.domain", "a.com"),
            ("haproxy-discover.path", "/x"),
            ("haproxy-discover.tls", "off"),
            ("haproxy-discover.port", "8000/tcp"),
            ("haproxy-discover.weight", "7"),
            ("haproxy-discover.color", "blue"),
            ("haproxy-discover.check", "/health?deep=1"),
            ("haproxy-discover.set.balance", "leastconn"),
        ]);
        assert_eq!(reading.faults, []);
        let service = &reading.services[0];
        assert_eq!(shown(service), "http-shop port 8000 domain=a.com path=/x tls=off balance=leastconn");
        assert_eq!((service.weight.get(), service.color.as_ref().unwrap().as_str()), (7, "blue"));
        assert_eq!(service.check, Some(LabelCheck::Http("/health?deep=1".to_owned())));
    }

    #[test]
    fn a_service_says_how_many_copies_may_run() {
        let limit = |labels: &[(&str, &str)]| {
            let reading = read(labels);
            assert_eq!(reading.faults, []);
            reading.services[0].limit.map(|limit| (limit.replicas.get(), limit.prefer))
        };
        let domain = ("haproxy-discover.domain", "a.com");
        assert_eq!(limit(&[domain]), None);
        assert_eq!(limit(&[domain, ("haproxy-discover.replicas", "2")]), Some((2, 0)));
        let preferred = [domain, ("haproxy-discover.replicas", "2"), ("haproxy-discover.prefer", "7")];
        assert_eq!(limit(&preferred), Some((2, 7)));
        let named = [("haproxy-discover.a.domain", "a.com"), ("haproxy-discover.a.replicas", "1")];
        assert_eq!(limit(&named), Some((1, 0)));
        let alone = read(&[domain, ("haproxy-discover.prefer", "1")]).faults[0].to_string();
        assert_eq!(alone, "label `haproxy-discover.replicas` is missing: prefer means nothing without it");
        let is_limit = |label: &str| rules().is_limit(label);
        assert!(is_limit("haproxy-discover.replicas") && is_limit("haproxy-discover.web.replicas"));
        assert!(!is_limit("haproxy-discover-x.replicas") && !is_limit("haproxy-discover.domain"));
    }

    #[test]
    fn several_services_have_names() {
        let reading = read(&[
            ("haproxy-discover.domain", "a.com"),
            ("haproxy-discover.db.service", "db"),
            ("haproxy-discover.db.type", "tcp"),
            ("haproxy-discover.db.ports", "3306"),
            ("haproxy-discover.db.port", "3306"),
            ("haproxy-discover.db.set.balance", "leastconn"),
        ]);
        assert_eq!(reading.faults, []);
        let all: Vec<_> = reading.services.iter().map(shown).collect();
        assert_eq!(all, ["http-a.com port - domain=a.com", "tcp-db port 3306 ports=*:3306 balance=leastconn"]);
    }

    #[test]
    fn a_wrong_label_is_named_and_costs_its_own_service_only() {
        for (label, value, words) in [
            ("port", "80x", "expected the container's port"),
            ("port", "0", "expected the container's port"),
            ("type", "udp", "expected http or tcp"),
            ("weight", "257", "a weight from 0 to 256"),
            ("color", "dark blue", "a name is a letter or digit"),
            ("service", "a/b", "a name has no `/`"),
            ("domain", "", "empty"),
            ("ports", "80", "http services have no such setting"),
            ("check", "exec:rm -rf /", "a command belongs into HEALTHCHECK"),
            ("check", "http://10.0.0.1/", "expected tcp, a path"),
            ("check", "/a b", "expected tcp, a path"),
            ("pth", "/admin", "unknown label; service, type, domain"),
            ("replicas", "0", "expected the number of copies"),
            ("replicas", "two", "expected the number of copies"),
            ("prefer", "-1", "expected a rank"),
            ("fence", "true", "unknown label"),
            ("set.nope", "1", "set.nope"),
            ("set.domain", "b.com", "the setting domain is given twice"),
            ("set.", "1", "unknown label"),
            ("port.x", "1", "unknown label"),
        ] {
            let wrong = format!("haproxy-discover.x.{label}");
            let domain = if label == "domain" { "haproxy-discover.y.weight" } else { "haproxy-discover.x.domain" };
            let domain_value = if label == "domain" { "1" } else { "a.com" };
            let reading = read(&[(&wrong, value), (domain, domain_value), ("haproxy-discover.z.domain", "z.com")]);
            let all: Vec<_> = reading.services.iter().map(|service| service.service.to_string()).collect();
            assert_eq!(all, ["http-z.com"], "{label}={value}");
            let fault = reading.faults[0].to_string();
            assert!(fault.contains(&wrong) && fault.contains(words), "{fault}");
        }
        let missing = read(&[("haproxy-discover.port", "80")]).faults[0].to_string();
        assert!(missing.starts_with("label `haproxy-discover.domain` is missing: a service needs it"), "{missing}");
        let wild = read(&[("haproxy-discover.domain", "*.a.com")]).faults[0].to_string();
        assert!(wild.contains("haproxy-discover.service") && wild.contains("*.a.com"), "{wild}");
    }

    #[test]
    fn nothing_in_a_label_breaks_a_line_or_fills_a_log() {
        let long = "x".repeat(1 << 20);
        let reading = read(&[
            ("haproxy-discover.domain", "a.com\n# frontend evil"),
            ("haproxy-discover.b.domain", "a.com;b"),
            ("haproxy-discover.c.domain", &long),
            ("haproxy-discover.d\n.dom\u{202e}ain", "a.com"),
        ]);
        assert_eq!((reading.services.len(), reading.faults.len()), (0, 4), "{reading:?}");
        for fault in &reading.faults {
            let text = fault.to_string();
            assert!(text.len() < 600 && !text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text}");
        }
    }

    #[test]
    fn thousands_of_labels_are_bounded() {
        let named: Vec<(String, &str)> =
            (0..5000).map(|number| (format!("haproxy-discover.s{number}.domain"), "a.com")).collect();
        let wrong: Vec<(String, &str)> = (0..5000).map(|number| (format!("haproxy-discover.w{number}"), "1")).collect();
        let services = named.iter().enumerate().map(|(at, (label, _))| (label.clone(), format!("a{at}.com")));
        let labels = services.chain(wrong.iter().map(|(label, value)| (label.clone(), (*value).to_owned()))).collect();
        let reading = rules().read(&Container { labels, ..Container::default() });
        assert!(reading.services.len() <= MOST_SERVICES && reading.faults.len() <= MOST_FAULTS);
    }

    #[test]
    fn two_that_say_the_same_are_one() {
        let one = read(&[("haproxy-discover.a.domain", "a.com"), ("haproxy-discover.b.domain", "a.com")]);
        assert_eq!((one.services.len(), one.faults.len()), (1, 0));
        let two = read(&[
            ("haproxy-discover.a.domain", "a.com"),
            ("haproxy-discover.b.domain", "a.com"),
            ("haproxy-discover.b.weight", "1"),
        ]);
        assert_eq!((two.services.len(), two.faults.len()), (1, 1), "{two:?}");
        let ports = read(&[
            ("haproxy-discover.a.domain", "a.com"),
            ("haproxy-discover.a.port", "1"),
            ("haproxy-discover.b.domain", "a.com"),
            ("haproxy-discover.b.port", "2"),
        ]);
        assert_eq!((ports.services.len(), ports.faults.len()), (2, 0));
    }

    proptest! {
        #[test]
        fn no_label_panics(labels in prop::collection::btree_map(
            prop_oneof![
                "haproxy-discover(\\.[a-z]{1,7}){0,3}",
                "traefik\\.(http|tcp)\\.(routers|services)\\.[a-z.]{1,9}\\.(rule|service|middlewares)",
                "SERVICE_[0-9A-Z_]{0,12}",
                ".{0,20}",
            ],
            prop_oneof![".{0,40}", "[(Host)`a.com&|!,/ ]{0,40}", "Host\\(`[a-z.]{1,9}`\\).{0,9}"],
            0..12,
        )) {
            let rules = LabelRules { dialects: vec![Dialect::Traefik, Dialect::Registrator], ..rules() };
            let reading = rules.read(&Container { labels, ..Container::default() });
            for fault in reading.faults {
                let text = fault.to_string();
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }
    }
}
