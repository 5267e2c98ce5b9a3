//! The values that the templates need of a section and of its servers. Pure: no I/O, no clock.

use discovery::{Balance, Check, Host, HttpCheck, Kind, Networks, ServiceId, Sni, Sticky, Tls, Weight};

use crate::desired::names::preview_section;
use crate::desired::{DesiredService, Preview, Server};
use crate::operator_files::server_words::{state_words, written_weight};
use crate::render::server_options;
use crate::render::shape::Part;
use crate::render::view::Site;

/// A section of a service: its own, or one for the preview of a color.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a> {
    pub(crate) id: &'a ServiceId,
    pub(crate) wanted: &'a DesiredService,
    pub(crate) preview: Option<&'a Preview>,
    /// The servers of the service or of the color. Empty for a fingerprint.
    pub(crate) servers: &'a [Server],
    /// The lines that the templates write.
    pub(crate) part: Part,
}

/// The service's own section, then those of its previews.
pub(crate) fn sections_of<'a>(id: &'a ServiceId, wanted: &'a DesiredService) -> impl Iterator<Item = Section<'a>> {
    let own = Section { servers: &wanted.servers, ..Section::without_servers(id, wanted, None) };
    let previews = wanted.previews.iter();
    let previews = previews.map(move |preview| Section { preview: Some(preview), servers: &preview.servers, ..own });
    std::iter::once(own).chain(previews)
}

/// Networks in rows of 16, since HAProxy rejects a line of more than 64 words.
pub(super) fn rows_of(networks: Option<&Networks>) -> Vec<String> {
    const PER_LINE: usize = 16;
    let all: Vec<String> = networks.iter().flat_map(|n| n.iter()).map(ToString::to_string).collect();
    // With the words before them, 16 stay far below the limit.
    all.chunks(PER_LINE).map(|row| row.join(" ")).collect()
}

impl<'a> Section<'a> {
    /// The section as it stands in the file, but for its servers.
    pub(super) fn without_servers(id: &'a ServiceId, wanted: &'a DesiredService, preview: Option<&'a Preview>) -> Self {
        // HAProxy refuses a `defaults` section that takes another one with rules, and an operator's may have some (2.6 to 3.4).
        let part = if id.kind == Kind::Tcp || wanted.settings.profile.is_some() { Part::Whole } else { Part::Own };
        Self { id, wanted, preview, servers: &[], part }
    }
}

impl Section<'_> {
    pub(super) fn is_default(&self) -> bool {
        self.id.is_default()
    }

    pub(crate) fn name(&self) -> String {
        self.preview.map_or(self.id.to_string(), |preview| preview_section(self.id, &preview.color))
    }

    /// The name of the cookie that keeps a client with its upstream.
    pub(crate) fn cookie(&self) -> String {
        // With its service's cookie, a client of a preview would stay in that color on the service's host too. `~` is in no
        // service's name.
        let color = self.preview.map(|preview| format!("~{}", preview.color)).unwrap_or_default();
        format!("discover-{}{color}", self.id.name)
    }

    /// The networks of clients that may preview.
    pub(crate) fn preview_rows(&self) -> Vec<String> {
        rows_of(self.wanted.settings.preview.as_ref())
    }

    /// A regular expression for the label that a preview's host has before the service's host. HAProxy removes it, since the
    /// upstreams' certificates are for the service's host. `None` if HAProxy doesn't ask upstreams for the request's host.
    pub(crate) fn label(&self) -> Option<String> {
        let settings = &self.wanted.settings;
        let asks = settings.tls == Tls::Reencrypt && settings.sni == Sni::RequestHost;
        let color = self.preview.filter(|_| asks)?.color.as_str().to_ascii_lowercase();
        Some(format!("^{}[.]", color.replace('.', "[.]")))
    }

    /// The comment above the section: the hosts and paths that lead to it.
    pub(crate) fn comment(&self, site: &Site) -> String {
        // A service may have thousands of routes (docs/limits.md).
        const SHOWN: usize = 4;
        let routes = self.preview.map_or(&self.wanted.routes, |preview| &preview.routes);
        let mut words: Vec<String> =
            routes.iter().take(SHOWN).map(|route| format!("{}{}", route.domain, route.path)).collect();
        if routes.len() > SHOWN {
            words.push(format!("{} more", routes.len() - SHOWN));
        }
        // Without a host of its own, a preview is reached by the header only.
        if let Some(preview) = self.preview {
            let asked = if words.is_empty() { "by header alone".into() } else { words.join(", ") };
            return format!("{} of {}, for those who may preview it: {asked}", preview.color, self.id);
        }
        if let Some((_, regex)) = &self.wanted.url_reg {
            words.push(format!("URLs like {regex}"));
        }
        if self.is_default() {
            words.push("whatever no other service answers for".into());
        }
        if site.acme.as_ref() == Some(self.id) {
            words.push("ACME challenges of every host".into());
        }
        if words.is_empty() { "reached by no host or path".into() } else { words.join(", ") }
    }

    pub(crate) fn redirects_to_https(&self) -> bool {
        matches!(self.wanted.settings.tls, Tls::Terminate | Tls::Reencrypt)
    }

    pub(crate) fn plain_http_only(&self) -> bool {
        self.wanted.settings.tls == Tls::Off
    }

    pub(crate) fn terminates(&self) -> bool {
        self.wanted.settings.tls == Tls::Terminate
    }

    /// `None` for HAProxy's default.
    pub(crate) fn balance(&self) -> Option<Balance> {
        Some(self.wanted.settings.balance).filter(|balance| *balance != Balance::RoundRobin)
    }

    /// True if the section needs a consistent hash: HAProxy adds servers at run time only under such a one.
    pub(crate) fn hashes(&self) -> bool {
        // `roundrobin`, `leastconn`, `first` and `random` are dynamic by themselves.
        matches!(self.wanted.settings.balance, Balance::Source | Balance::Uri)
    }

    pub(crate) fn allow_rows(&self) -> Vec<String> {
        rows_of(self.wanted.settings.allow.as_ref())
    }

    pub(crate) fn http_check(&self) -> Option<&HttpCheck> {
        match &self.wanted.settings.check {
            Check::Http(check) => Some(check),
            Check::Tcp | Check::Off => None,
        }
    }

    /// The host that a check asks for: the service's primary host.
    pub(crate) fn check_host(&self) -> Option<&Host> {
        self.wanted.host.as_ref()
    }

    pub(crate) fn hsts(&self) -> Option<String> {
        self.wanted.settings.hsts.map(|hsts| {
            let subdomains = if hsts.include_subdomains { "; includeSubDomains" } else { "" };
            let preload = if hsts.preload { "; preload" } else { "" };
            format!("max-age={}{subdomains}{preload}", hsts.max_age)
        })
    }

    pub(crate) fn sticks_by_cookie(&self) -> bool {
        self.wanted.settings.sticky == Sticky::Cookie
    }

    pub(crate) fn sticks_by_source(&self) -> bool {
        self.wanted.settings.sticky == Sticky::Source
    }

    /// True if the section has lines that no shape has.
    pub(crate) fn is_fixed(&self) -> bool {
        self.part == Part::Whole || self.wanted.settings.sticky != Sticky::Off
    }

    /// True if the section takes an operator's `defaults`. Then it takes nothing from the file's own.
    pub(crate) fn has_profile(&self) -> bool {
        self.wanted.settings.profile.is_some()
    }

    /// The words that all servers of the section share and the `defaults` lack. `None` if there are none.
    pub(crate) fn default_server(&self) -> Option<String> {
        // An added server takes nothing from it, so it needs no shape of its own.
        if self.part == Part::Shape {
            return None;
        }
        let mut words = Vec::new();
        match (self.wanted.settings.check == Check::Off, self.has_profile()) {
            (true, _) => words.push("no-check".to_owned()),
            (false, true) => words.push("check".to_owned()),
            (false, false) => {}
        }
        // Without the file's `defaults`, a server has HAProxy's weight of 1, and an added server the file's 100.
        if self.has_profile() {
            words.push(format!("weight {}", Weight::DEFAULT));
        }
        words.extend(server_options::default_server_words(self.wanted));
        (!words.is_empty()).then(|| words.join(" "))
    }
}

impl Server {
    /// The server's line as the templates have it. The API shows it, so that an operator can find it in the file.
    pub(crate) fn config_line(&self) -> String {
        format!("server {} {}{}", self.id, self.address, self.options())
    }

    /// The words behind the address on the server's line. The file's `defaults` set the default weight.
    pub(crate) fn options(&self) -> String {
        let weight = Some(written_weight(self)).filter(|weight| *weight != Weight::DEFAULT.get());
        let id = self.hash_id.map(|id| format!(" id {id}")).unwrap_or_default();
        format!("{}{id}", state_words(weight, self.backup, self.state))
    }
}
