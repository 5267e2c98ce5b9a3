//! From the view to bytes: the file, its maps, and the stamp that names them. Pure: the same view, the same bytes.

pub(crate) mod error_pages;
mod internal_sockets;
pub(crate) mod restart_needed;
mod section;
pub(crate) mod server_options;
pub(crate) mod stats_hash;
pub(crate) mod view;

use std::time::Duration;

use std::path::Path;
use std::sync::Arc;

use askama::Template;

use crate::render::error_pages::ErrorPages;
use crate::render::error_pages::HttpErrorLine;
use crate::render::restart_needed::ConfigFingerprint;
use crate::render::view::{Maps, Section, Site, Stub, View};

/// What is to stand on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Names this generation: `setenv CONFGEN_GEN` in the file, the maps' folder in the state directory.
    pub generation_id: String,
    /// haproxy.cfg, ending in a line feed.
    pub cfg: String,
    /// The maps that it names.
    pub maps: Maps,
    /// The error pages that it names.
    pub pages: Arc<ErrorPages>,
    /// What of it a restart alone can change.
    pub fingerprint: ConfigFingerprint,
}

#[derive(Template)]
#[template(path = "haproxy.cfg")]
struct HaproxyCfg<'a> {
    view: &'a View<'a>,
    site: &'a Site,
    sections: Sections<'a>,
    maps: String,
    stamp: &'a str,
}

/// The services' sections, in the order of the file.
#[derive(Clone, Copy, Default)]
struct Sections<'a> {
    http: &'a [Section<'a>],
    passthrough: &'a [Section<'a>],
    tcp: &'a [Section<'a>],
    /// No reason for a restart: a HAProxy that lacks one also lacks the operator's line that names it.
    stubs: &'a [Stub],
    /// Whether the inner hop is kept for the process before: a service's matter no more.
    lingers: bool,
}

impl HaproxyCfg<'_> {
    fn ours(&self, keyword: &str) -> bool {
        self.view.writes_global(keyword)
    }

    fn chroot(&self) -> Option<&Path> {
        self.site.rights.chroot.as_deref().filter(|_| self.ours("chroot"))
    }

    fn group(&self) -> Option<&str> {
        self.site.rights.haproxy_group.name().filter(|_| self.ours("group") && self.ours("gid"))
    }

    fn user(&self) -> Option<&str> {
        self.site.rights.haproxy_user.name().filter(|_| self.ours("user") && self.ours("uid"))
    }

    fn error_pages(&self) -> Vec<HttpErrorLine> {
        self.site.pages.http_error_lines(&self.maps)
    }
}

/// Renders. `state_dir` is where the maps' folders are.
pub fn render_config(view: &View, structure: &ConfigFingerprint, state_dir: &Path) -> Result<Rendered, askama::Error> {
    let stamp = structure.generation_id();
    let maps = state_dir.join(&stamp).display().to_string();
    let View { http, passthrough, tcp, stubs, lingers, .. } = view;
    let cfg = render_file(view, Sections { http, passthrough, tcp, stubs, lingers: *lingers }, maps, &stamp)?;
    Ok(Rendered {
        generation_id: stamp,
        cfg,
        maps: view.maps.clone(),
        pages: Arc::clone(&view.site.pages),
        fingerprint: structure.clone(),
    })
}

/// The file without any service, nor anything that tells one generation from another.
pub fn render_frame(view: &View) -> Result<String, askama::Error> {
    let tcp = if view.tcp.is_empty() { "" } else { "tcp" };
    render_file(view, Sections::default(), "-".into(), tcp)
}

fn render_file(view: &View, sections: Sections, maps: String, stamp: &str) -> Result<String, askama::Error> {
    let text = HaproxyCfg { view, site: view.site, sections, maps, stamp }.render()?;
    // Askama drops the template's last line feed, without which HAProxy refuses the file.
    Ok(format!("{}\n", text.trim_end()))
}

/// `timeout http-keep-alive` in haproxy.cfg.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);

#[cfg(test)]
pub(crate) mod tests;
