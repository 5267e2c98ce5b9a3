//! Names of services' sections in the operator's lines. HAProxy does not start while a section is missing that a line names. Pure:
//! no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;
use haproxy::config::ConfigWord;

use super::{OperatorConfig, ReferencedSection};
use crate::desired::names::parse_section;

/// The part of a section that a line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The section itself, as the target of requests.
    Route,
    /// The section itself, as the argument of a condition or a value.
    Section,
    /// The section's stick table.
    Table,
    /// A server of the section, which comes and goes with an upstream.
    Server,
}

/// Functions that take a backend: `nbsrv(http-shop)`. The rest begins with `be_` or `srv_`.
const OF_BACKENDS: [&str; 4] = ["nbsrv", "avg_queue", "queue", "connslots"];

/// Beginnings of functions that take a table as their last argument: `src_conn_cur(http-shop)`.
const OF_TABLES: [&str; 7] = ["sc_", "sc0_", "sc1_", "sc2_", "src_", "table_", "in_table"];

/// The services' sections that a line names, each with the part that it names.
pub(super) fn find_references(words: &[ConfigWord]) -> Vec<(String, Part)> {
    let texts: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let mut found = Vec::new();
    if let ["use_backend" | "default_backend", name, ..] = texts.as_slice() {
        found.extend(reference_to(name, Part::Route));
    }
    // `table` and `track` stand anywhere in a line, behind other options.
    for pair in texts.windows(2) {
        match pair {
            ["table", name] => found.extend(reference_to(name, Part::Table)),
            ["track" | "attach-srv", name] => found.extend(reference_to(name, Part::Server)),
            _ => {}
        }
    }
    for text in texts {
        found.extend(find_calls(text).flat_map(|(function, arguments)| reference_in_call(function, arguments)));
    }
    found
}

fn reference_to(name: &str, part: Part) -> Option<(String, Part)> {
    let (section, server) = name.split_once('/').map_or((name, None), |(section, server)| (section, Some(server)));
    let part = if server.is_some() { Part::Server } else { part };
    parse_section(section).map(|_| (section.to_owned(), part))
}

fn reference_in_call(function: &str, arguments: &str) -> Option<(String, Part)> {
    let (first, last) = (arguments.split(',').next()?.trim(), arguments.rsplit(',').next()?.trim());
    if first.is_empty() || last.is_empty() {
        return None;
    }
    if OF_BACKENDS.contains(&function) || function.starts_with("be_") {
        reference_to(first, Part::Section)
    } else if function.starts_with("srv_") {
        reference_to(first, Part::Server)
    } else if OF_TABLES.iter().any(|start| function.starts_with(start)) {
        reference_to(last, Part::Table)
    } else {
        None
    }
}

/// Every `function(arguments)` in a word.
fn find_calls(word: &str) -> impl Iterator<Item = (&str, &str)> {
    word.match_indices('(').filter_map(|(open, _)| {
        let (before, behind) = (word.get(..open)?, word.get(open + 1..)?);
        let function = before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next()?;
        Some((function, behind.split_once(')')?.0))
    })
}

/// The services that a word may name by their section: `http-shop`, also in `nbsrv(http-shop)`.
pub(super) fn services_in_word(word: &str) -> impl Iterator<Item = ServiceId> + '_ {
    let parts = word.split(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)));
    parts.filter_map(parse_section)
}

impl OperatorConfig {
    /// The services' sections that the files name and don't have themselves, by name.
    pub fn referenced_sections(&self) -> BTreeMap<String, ReferencedSection> {
        let mut named: BTreeMap<String, ReferencedSection> = BTreeMap::new();
        for reference in self.references.iter().filter(|it| !self.has_section(&it.section)) {
            let section = named.entry(reference.section.clone()).or_default();
            if !section.places.contains(&reference.source.place) {
                section.places.push(reference.source.place.clone());
            }
            section.has_table |= reference.part == Part::Table;
            section.gets_requests |= reference.part == Part::Route;
        }
        named
    }

    /// The names of all frontends, backends and other sections that the files have or lead to.
    pub fn named_sections(&self) -> BTreeSet<String> {
        let own = self.sections.iter().map(|section| &section.name);
        own.chain(self.references.iter().map(|reference| &reference.section)).cloned().collect()
    }

    pub(super) fn has_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }
}

#[cfg(test)]
mod tests {
    use haproxy::config::tokenize;

    use super::*;

    fn named(line: &str) -> Vec<String> {
        find_references(&tokenize(line)).into_iter().map(|(section, part)| format!("{section} {part:?}")).collect()
    }

    #[test]
    fn every_place_that_names_a_section_is_found() {
        for (line, expected) in [
            ("use_backend http-shop if { nbsrv(tcp-db) gt 0 }", &["http-shop Route", "tcp-db Section"][..]),
            ("default_backend http-shop:preview-blue", &["http-shop:preview-blue Route"]),
            ("monitor fail if { nbsrv(http-a) lt 1 }", &["http-a Section"]),
            ("acl busy be_conn(http-a) gt 9", &["http-a Section"]),
            ("http-request set-header x %[be_sess_rate(http-a)]", &["http-a Section"]),
            ("http-request track-sc0 src table http-a if x", &["http-a Table"]),
            ("stick match src table http-a", &["http-a Table"]),
            ("http-request deny if { src_http_req_rate(http-a) gt 9 }", &["http-a Table"]),
            ("acl x src,table_http_req_rate(http-a) gt 9", &["http-a Table"]),
            ("acl x sc_http_req_rate(0,http-a) gt 9", &["http-a Table"]),
            ("acl x src,in_table(http-a)", &["http-a Table"]),
            ("server one 10.0.0.1:80 track http-a/x", &["http-a Server"]),
            ("default-server track http-a/x", &["http-a Server"]),
            ("acl up srv_is_up(http-a/x)", &["http-a Server"]),
            ("tcp-request session attach-srv http-a/x", &["http-a Server"]),
        ] {
            assert_eq!(named(line), expected, "{line}");
        }
    }

    #[test]
    fn a_word_that_only_looks_like_a_name_is_no_reference() {
        for line in [
            "option http-server-close",
            "http-request deny if { req.hdr(http-x) -m found }",
            "acl x http_auth(http-users)",
            "use_backend %[req.hdr(host),map(/etc/x.map)]",
            "default_backend mine",
            "acl x nbsrv() gt 0",
            "acl x nbsrv(mine) gt 0",
            "server http-a 10.0.0.1:80",
        ] {
            assert_eq!(named(line), Vec::<String>::new(), "{line}");
        }
    }
}
