//! Shapes: the lines that backends have in common, as named `defaults` sections. Pure: no I/O, no clock.
//!
//! A backend's shape is everything but its name, its servers, and the lines that HAProxy takes only in the backend itself. HAProxy
//! 3.4 adds a backend while it runs if it has the shape.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use askama::Template;
use discovery::{Check, HttpCheck, Kind, Networks, StatusRange};

use crate::desired::fingerprint::hash_parts;
use crate::render::section::Section;
use crate::render::view::{self, Site};

/// The `defaults` of everything that reads HTTP. It has no rules, so that frontends and backends may share it.
pub const HTTP: &str = "discover-http";

/// The `defaults` of everything that reads TCP only.
pub const TCP: &str = "discover-tcp";

/// Stands for the folder of the maps in a shape's text. No setting's value can hold a quote, so this is in no value.
pub const MAPS: &str = "\"maps\"";

/// The longest value that stands in a shape's name as it is.
const LONGEST_WORD: usize = 32;

/// The lines of a section that the template writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The shape's lines, in a `defaults` section.
    Shape,
    /// The others, in a section that takes its shape from a `defaults` section.
    Own,
    /// All. A section with an operator's `defaults` has no other parent, and a `listen` section has its ports.
    Whole,
}

#[derive(Template)]
#[template(path = "http-service.cfg")]
struct HttpService<'a> {
    section: &'a Section<'a>,
    site: &'a Site,
    maps: &'static str,
}

#[derive(Template)]
#[template(path = "passthrough-service.cfg")]
struct PassthroughService<'a> {
    section: &'a Section<'a>,
    maps: &'static str,
}

#[derive(Template)]
#[template(path = "tcp-service.cfg")]
struct TcpService<'a> {
    section: &'a Section<'a>,
    site: &'a Site,
}

/// The shapes of all these sections, by name. Their texts have [`MAPS`] for the folder of the maps.
pub(super) fn list_shapes<'a>(
    sections: impl Iterator<Item = &'a Section<'a>>,
    site: &Site,
) -> Result<BTreeMap<String, String>, askama::Error> {
    let mut shapes = BTreeMap::new();
    for shape in sections.filter_map(Section::shape) {
        if let Entry::Vacant(entry) = shapes.entry(shape.shape_name()) {
            entry.insert(shape.render_text(site)?);
        }
    }
    Ok(shapes)
}

impl Section<'_> {
    /// The section's text by itself, with [`MAPS`] for the folder of the maps and without a line feed at its end.
    pub(super) fn render_text(&self, site: &Site) -> Result<String, askama::Error> {
        let (section, maps) = (self, MAPS);
        match self.id.kind {
            Kind::Http if self.wanted.settings.passes_through() => PassthroughService { section, maps }.render(),
            Kind::Http => HttpService { section, site, maps }.render(),
            Kind::Tcp => TcpService { section, site }.render(),
        }
    }

    /// The first line: the section's kind and name, and the `defaults` that it takes.
    pub(crate) fn header(&self) -> String {
        if self.part == Part::Shape {
            return format!("defaults {} from {}", self.shape_name(), self.base());
        }
        let kind = if self.id.kind == Kind::Tcp { "listen" } else { "backend" };
        let parent = match &self.wanted.settings.profile {
            Some(profile) => profile.to_string(),
            None if self.part == Part::Whole => self.base().to_owned(),
            None => self.shape_name(),
        };
        format!("{kind} {} from {parent}", self.name())
    }

    pub(crate) fn has_shape(&self) -> bool {
        self.part != Part::Own
    }

    pub(crate) fn has_own(&self) -> bool {
        self.part != Part::Shape
    }

    /// The section's shape, without servers. `None` if the section takes the `defaults` of its mode as they are, or an operator's.
    pub(super) fn shape(&self) -> Option<Self> {
        let has_one = self.part == Part::Own && self.shape_name() != self.base();
        has_one.then_some(Self { part: Part::Shape, servers: &[], ..*self })
    }

    fn base(&self) -> &'static str {
        if self.id.kind == Kind::Tcp || self.wanted.settings.passes_through() { TCP } else { HTTP }
    }

    /// The shape's name: the `defaults` of its mode, and a word for each setting in it. Sections with one name have one shape, and
    /// no other shape changes the name.
    pub(crate) fn shape_name(&self) -> String {
        let settings = &self.wanted.settings;
        let mut name = self.base().to_owned();
        if self.redirects_to_https() {
            name += "-https";
        }
        if self.plain_http_only() {
            name += "-plain";
        }
        if let Some(balance) = self.balance() {
            name += &format!("-{balance}");
        }
        if let Some(networks) = &settings.allow {
            name += &word_of("allow", &list_networks(networks));
        }
        if let Check::Http(check) = &settings.check {
            name += &word_of("check", &describe_check(check));
            if self.check_host().is_none() {
                name += "-hostless";
            }
        }
        if let Some(hsts) = settings.hsts {
            let subdomains = if hsts.include_subdomains { ":subdomains" } else { "" };
            let preload = if hsts.preload { ":preload" } else { "" };
            name += &word_of("hsts", &format!("{}{subdomains}{preload}", hsts.max_age));
        }
        if self.preview.is_some() {
            name += &word_of("preview", &settings.preview.as_ref().map(list_networks).unwrap_or_default());
        }
        if let Some(preview) = self.preview.filter(|_| self.label().is_some()) {
            name += &word_of("label", &preview.color.as_str().to_ascii_lowercase());
        }
        name
    }
}

/// A setting's word in a shape's name: its value after a dot, or a digest of it after a colon. Between words stands `-`, which no
/// value in a name holds. So two shapes have one name only if SHA-256's first 64 bits agree.
fn word_of(setting: &str, value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:/".contains(&byte);
    if (1..=LONGEST_WORD).contains(&value.len()) && value.bytes().all(is_plain) {
        format!("-{setting}.{}", value.replace('/', "_"))
    } else {
        format!("-{setting}:{}", hash_parts([value.as_bytes()]))
    }
}

fn list_networks(networks: &Networks) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The check's path alone, if the rest is as usual.
fn describe_check(check: &HttpCheck) -> String {
    let words = Check::Http(check.clone()).to_string();
    let path =
        words.strip_prefix("http GET /").and_then(|rest| rest.strip_suffix(&format!(" {}", StatusRange::default())));
    path.map(str::to_owned).unwrap_or(words)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::operator_files::parse::OperatorConfig;
    use crate::render::tests::site;
    use crate::render::view::View;

    /// The name of the shape of each section of these services.
    fn names(store: &str) -> Vec<String> {
        let (settled, site) =
            (settle(&topology(store), &Default::default(), &Default::default()), site("/state".as_ref()));
        let operator = OperatorConfig::default();
        let view = View::new(&settled, &site, &operator);
        view.http.iter().chain(&view.passthrough).map(Section::shape_name).collect()
    }

    fn name_with(settings: &[&str]) -> String {
        let settings: String = settings.iter().map(|line| format!("http-services/a/{line}\n")).collect();
        names(&format!("http-services/a/domain a.com\n{settings}")).remove(0)
    }

    #[test]
    fn a_name_lists_the_settings() {
        assert_eq!(name_with(&[]), "discover-http");
        assert_eq!(name_with(&["tls off", "balance leastconn"]), "discover-http-plain-leastconn");
        assert_eq!(name_with(&["tls terminate", "check http /health"]), "discover-http-https-check.health");
        assert_eq!(name_with(&["tls terminate", "hsts 180d"]), "discover-http-https-hsts.15552000");
        assert_eq!(name_with(&["allow 10.0.0.0/8"]), "discover-http-allow.10.0.0.0_8");
        assert_eq!(name_with(&["tls passthrough", "allow fd00::/8"]), "discover-tcp-allow.fd00::_8");
        assert_eq!(
            names("http-services/a/check http /a\nhttp-services/a/domain *.b.com"),
            ["discover-http-check.a-hostless"]
        );
        let several = name_with(&["allow 10.0.0.0/8 192.168.0.0/16"]);
        assert_eq!(several.strip_prefix("discover-http-allow:").map(str::len), Some(16), "{several}");
    }

    #[test]
    fn other_services_and_servers_change_no_name() {
        let same = ["maxconn 7", "sticky cookie", "sticky source", "proto h2", "check off", "slowstart 3s"];
        assert!(
            same.iter().all(|setting| name_with(&[setting]) == "discover-http"),
            "these lines stand in the backend"
        );
        assert_eq!(name_with(&["tls reencrypt"]), "discover-http-https", "as for `terminate`");
    }

    #[test]
    fn each_value_has_its_own_name() {
        let settings = [
            "check http /a",
            "check http /A",
            "check http /a_b",
            "check http /a/b",
            "check http /a-b",
            "check http HEAD /a",
            "check http /a 204",
            "check http /",
            "check http /a-hostless",
            "allow 10.0.0.0/8",
            "allow 10.0.0.0/9",
            "allow 10.0.0.0/8 10.1.0.0/16",
            "hsts 1",
            "hsts 1 preload",
            "hsts 1 include-subdomains",
            "hsts off",
            "balance uri",
            "balance source",
            "balance random",
            "tls terminate",
            "tls off",
            "tls passthrough",
        ];
        let all: BTreeSet<String> = settings.iter().map(|setting| name_with(&[setting])).collect();
        assert_eq!(all.len(), settings.len(), "{all:?}");
    }

    #[test]
    fn colors_share_a_shape_unless_the_upstreams_are_asked_for_the_host() {
        let colors =
            "http-services/a/domain a.com\nhttp-services/a/active blue=1 green=1\nhttp-services/a/preview 10.0.0.0/8\n";
        let own = "discover-http-preview.10.0.0.0_8";
        assert_eq!(names(colors), ["discover-http", own, own]);
        let labels: BTreeSet<String> = names(&format!("{colors}http-services/a/tls reencrypt")).into_iter().collect();
        assert_eq!(labels.len(), 3, "{labels:?}");
    }
}
