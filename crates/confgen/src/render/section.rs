//! What the templates ask of a section, and of a server in it.

use discovery::{Balance, Check, Host, HttpCheck, Networks, ServiceId, Sni, Sticky, Tls, Weight};

use crate::desired::names::preview_section;
use crate::desired::{DesiredService, Preview, Server};
use crate::operator_files::server_words::{state_words, written_weight};
use crate::render::server_options;
use crate::render::view::Site;

/// A section of a service: its own, or one for those who may preview a color.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a> {
    pub(crate) id: &'a ServiceId,
    pub(crate) wanted: &'a DesiredService,
    pub(crate) preview: Option<&'a Preview>,
    /// Its servers; a section's structure is what is left without those that can come and go at run time.
    pub(crate) servers: &'a [Server],
}

/// A service's sections, its own first.
pub(super) fn sections_of<'a>(id: &'a ServiceId, wanted: &'a DesiredService) -> impl Iterator<Item = Section<'a>> {
    let own = Section { id, wanted, preview: None, servers: &wanted.servers };
    let preview = move |preview: &'a Preview| Section { preview: Some(preview), servers: &preview.servers, ..own };
    std::iter::once(own).chain(wanted.previews.iter().map(preview))
}

/// Networks in rows: HAProxy refuses a line of more than 64 words.
pub(super) fn rows_of(networks: Option<&Networks>) -> Vec<String> {
    const PER_LINE: usize = 16;
    let all: Vec<String> = networks.iter().flat_map(|n| n.iter()).map(ToString::to_string).collect();
    all.chunks(PER_LINE).map(|row| row.join(" ")).collect()
}

impl Section<'_> {
    pub(super) fn is_default(&self) -> bool {
        self.id.is_default()
    }

    /// As it is called.
    pub(crate) fn name(&self) -> String {
        self.preview.map_or(self.id.to_string(), |preview| preview_section(self.id, &preview.color))
    }

    /// The cookie of those who stay with their upstream. A preview has another than its service on the same host: a
    /// client would keep its way into that color. `~` is in no service's name.
    pub(crate) fn cookie(&self) -> String {
        let color = self.preview.map(|preview| format!("~{}", preview.color)).unwrap_or_default();
        format!("discover-{}{color}", self.id.name)
    }

    /// Who may preview, in rows of words.
    pub(crate) fn preview_rows(&self) -> Vec<String> {
        rows_of(self.wanted.settings.preview.as_ref())
    }

    /// What stands before the service's own host in a preview's, as an expression: an upstream's certificate is for the
    /// service's host. None where upstreams aren't asked for a request's host.
    pub(crate) fn label(&self) -> Option<String> {
        let settings = &self.wanted.settings;
        let asks = settings.tls == Tls::Reencrypt && settings.sni == Sni::RequestHost;
        let color = self.preview.filter(|_| asks)?.color.as_str().to_ascii_lowercase();
        Some(format!("^{}[.]", color.replace('.', "[.]")))
    }

    /// What a person would write above the section: which hosts and paths lead here.
    pub(crate) fn comment(&self, site: &Site) -> String {
        const SHOWN: usize = 4;
        let routes = self.preview.map_or(&self.wanted.routes, |preview| &preview.routes);
        let mut words: Vec<String> =
            routes.iter().take(SHOWN).map(|route| format!("{}{}", route.domain, route.path)).collect();
        if routes.len() > SHOWN {
            words.push(format!("{} more", routes.len() - SHOWN));
        }
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

    /// The line's value where it isn't HAProxy's default.
    pub(crate) fn balance(&self) -> Option<Balance> {
        Some(self.wanted.settings.balance).filter(|balance| *balance != Balance::RoundRobin)
    }

    /// Servers can come and go at run time under a hash only if it is consistent.
    pub(crate) fn hashes(&self) -> bool {
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

    /// The host that a check asks for: the one that the service goes by.
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

    /// Whether the section takes an operator's `defaults` in place of the file's own, of which it then has nothing.
    pub(crate) fn has_profile(&self) -> bool {
        self.wanted.settings.profile.is_some()
    }

    /// What all servers of the section have in common and differs from the `defaults`.
    pub(crate) fn default_server(&self) -> Option<String> {
        let mut words = Vec::new();
        match (self.wanted.settings.check == Check::Off, self.has_profile()) {
            (true, _) => words.push("no-check".to_owned()),
            (false, true) => words.push("check".to_owned()),
            (false, false) => {}
        }
        if self.has_profile() {
            words.push(format!("weight {}", Weight::DEFAULT));
        }
        words.extend(server_options::default_server_words(self.wanted));
        (!words.is_empty()).then(|| words.join(" "))
    }
}

impl Server {
    /// Its line, as the template has it: who asks for it is told what to look for in the file.
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
