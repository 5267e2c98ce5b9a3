//! registrator's labels and variables, with its option `-explicit`: only containers that name a service. Names alone say
//! no domain, so fabio's `urlprefix-` tags are read, by which most of its users route. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::container::Container;
use crate::draft::{Drafts, FieldName, ServiceDraft};
use crate::fault::LabelFault;

/// The begin of each name.
const PREFIX: &str = "SERVICE_";

/// The most ports of one container that are read.
const MOST_PORTS: usize = 32;

/// By the word behind `SERVICE_` or `SERVICE_<port>_`, in capitals: the whole name and the value.
type Words = BTreeMap<String, (String, String)>;

/// Drafts of the ports that have a name. registrator reads the environment first and then the labels.
pub(super) fn read_container(container: &Container) -> Drafts {
    let variables = container.environment.iter().filter_map(|text| text.split_once('='));
    let labels = container.labels.iter().map(|(label, value)| (label.as_str(), value.as_str()));
    let all: Vec<(&str, &str)> = variables.chain(labels).filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut made = Drafts::default();
    if all.is_empty() {
        return made;
    }
    let ports: BTreeSet<u16> = container.published.keys().chain(&container.exposed).copied().collect();
    let is_group = ports.len() > 1;
    for port in ports.into_iter().take(MOST_PORTS) {
        let words = collect_words(&all, port);
        if words.get("IGNORE").is_some_and(|(_, value)| !value.is_empty()) {
            continue;
        }
        let Some((label, name)) = words.get("NAME").filter(|(_, name)| !name.is_empty()) else { continue };
        // As registrator does: the name of a whole container gets the port, if it has several.
        let is_of_port = label.starts_with(&format!("{PREFIX}{port}_"));
        let service = if is_group && !is_of_port { format!("{name}-{port}") } else { name.clone() };
        let mut draft = ServiceDraft { folder: label.clone(), ..ServiceDraft::default() };
        draft.set(FieldName::Service, label, &service);
        draft.set(FieldName::Port, label, &port.to_string());
        read_check(&words, &mut draft);
        match read_tags(&words, &mut draft) {
            Ok(()) => made.drafts.push(draft),
            Err(fault) => made.faults.push(fault),
        }
    }
    made
}

/// The words for one port. `SERVICE_8000_NAME` beats `SERVICE_NAME`, and one of another port doesn't count.
fn collect_words(all: &[(&str, &str)], port: u16) -> Words {
    let (mut general, mut special) = (Words::new(), Words::new());
    for (name, value) in all {
        let word = name.strip_prefix(PREFIX).unwrap_or_default();
        let entry = ((*name).to_owned(), (*value).to_owned());
        match word.split_once('_').and_then(|(number, word)| Some((number.parse::<u16>().ok()?, word))) {
            Some((number, word)) if number == port => _ = special.insert(word.to_ascii_uppercase(), entry),
            Some(_) => {}
            None => _ = general.insert(word.to_ascii_uppercase(), entry),
        }
    }
    general.extend(special);
    general
}

fn read_check(words: &Words, draft: &mut ServiceDraft) {
    for (word, scheme) in [("CHECK_HTTP", ""), ("CHECK_HTTPS", "https:")] {
        if let Some((label, value)) = words.get(word) {
            draft.set(FieldName::Check, label, &format!("{scheme}{value}"));
        }
    }
    if let Some((label, _)) = words.get("CHECK_TCP") {
        draft.set(FieldName::Check, label, "tcp");
    }
}

/// Reads `urlprefix-HOST/PATH` of the tags. Other tags mean nothing here.
fn read_tags(words: &Words, draft: &mut ServiceDraft) -> Result<(), LabelFault> {
    let Some((label, tags)) = words.get("TAGS") else { return Ok(()) };
    let routes = tags.split(',').filter_map(|tag| tag.trim().strip_prefix("urlprefix-"));
    let (mut hosts, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for route in routes {
        // Options follow a blank: `urlprefix-a.com/ strip=/x`.
        let mut parts = route.split_whitespace();
        let (host, path) = parts.next().and_then(|route| route.split_once('/')).unwrap_or_default();
        if host.is_empty() || parts.next().is_some() {
            let reason = "expected urlprefix-HOST/PATH without options; label it haproxy-discover.domain otherwise";
            return Err(LabelFault::new(label, tags, reason));
        }
        hosts.insert(host.to_owned());
        paths.insert(format!("/{path}"));
    }
    if paths.len() > 1 && hosts.len() > 1 {
        return Err(LabelFault::new(label, tags, "a service here has all of its hosts with all of its paths"));
    }
    if !hosts.is_empty() {
        draft.set(FieldName::Domain, label, &hosts.into_iter().collect::<Vec<_>>().join(" "));
    }
    if !paths.is_empty() && !paths.contains("/") {
        draft.set(FieldName::Path, label, &paths.into_iter().collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use crate::labels::{LabelRules, Reading};
    use crate::service::LabelCheck;

    fn read(labels: &[(&str, &str)], environment: &[&str], ports: &[u16]) -> Reading {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        let environment = environment.iter().map(|text| (*text).to_owned()).collect();
        let published = ports.iter().map(|port| (*port, Vec::new())).collect();
        let rules = LabelRules { prefix: "haproxy-discover".to_owned(), dialects: vec![Dialect::Registrator] };
        rules.read(&Container { labels, environment, published, ..Container::default() })
    }

    fn names(reading: &Reading) -> Vec<String> {
        assert_eq!(reading.faults, []);
        reading.services.iter().map(|it| format!("{} {:?}", it.service, it.port.map(u16::from))).collect()
    }

    #[test]
    fn names_are_formed_as_registrator_forms_them() {
        assert_eq!(names(&read(&[("SERVICE_NAME", "shop")], &[], &[8000])), ["http-shop Some(8000)"]);
        assert_eq!(names(&read(&[], &["SERVICE_NAME=shop"], &[8000])), ["http-shop Some(8000)"]);
        let both = read(&[("SERVICE_NAME", "shop")], &["SERVICE_81_NAME=admin"], &[80, 81]);
        assert_eq!(names(&both), ["http-shop-80 Some(80)", "http-admin Some(81)"]);
        let ignored = read(&[("SERVICE_NAME", "shop"), ("SERVICE_81_IGNORE", "true")], &[], &[80, 81]);
        assert_eq!(names(&ignored), ["http-shop-80 Some(80)"]);
        assert_eq!(read(&[("SERVICE_NAME", "x"), ("SERVICE_IGNORE", "yes")], &[], &[80]), Reading::default());
        assert_eq!(read(&[("SERVICE_TAGS", "x")], &[], &[80]), Reading::default(), "without a name");
    }

    #[test]
    fn checks_and_fabios_tags_are_read() {
        let labels = [
            ("SERVICE_NAME", "shop"),
            ("SERVICE_CHECK_HTTP", "/health"),
            ("SERVICE_TAGS", "prod, urlprefix-a.com/x,urlprefix-a.com/y"),
        ];
        let reading = read(&labels, &[], &[80]);
        assert_eq!(reading.services[0].check, Some(LabelCheck::Http("/health".to_owned())));
        let settings: Vec<_> = reading.services[0].settings.iter().map(ToString::to_string).collect();
        assert_eq!(settings, ["a.com", "/x /y"]);
        for tags in ["urlprefix-:3306 proto=tcp", "urlprefix-a.com/ strip=/x", "urlprefix-a.com/x,urlprefix-b.com/"] {
            assert_eq!(read(&[("SERVICE_NAME", "x"), ("SERVICE_TAGS", tags)], &[], &[80]).faults.len(), 1, "{tags}");
        }
    }
}
