//! Renders haproxy.cfg and its maps. Pure: no I/O, no clock, and the same view gives the same bytes.

mod config_text;
pub(crate) mod error_pages;
mod internal_sockets;
mod invariants;
pub(crate) mod restart_needed;
pub(crate) mod section;
pub(crate) mod server_options;
pub(crate) mod service_texts;
pub(crate) mod shape;
pub(crate) mod stats_hash;
pub(crate) mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;

pub use crate::render::config_text::ConfigText;
use crate::render::config_text::PLACES;
use crate::render::error_pages::ErrorPages;
use crate::render::error_pages::HttpErrorLine;
use crate::render::invariants::check_invariants;
use crate::render::restart_needed::{ConfigFingerprint, Generation};
use crate::render::service_texts::ServiceTexts;
use crate::render::view::{Maps, Site, Stub, View};

/// One generation: the files of a haproxy.cfg.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// See [`Generation::id`].
    pub generation_id: String,
    /// The content of haproxy.cfg, with a line feed at its end.
    pub cfg: ConfigText,
    /// The contents of the maps.
    pub maps: Arc<Maps>,
    /// The error pages.
    pub pages: Arc<ErrorPages>,
    /// The fingerprint of the parts that only a restart changes.
    pub fingerprint: Arc<ConfigFingerprint>,
}

#[derive(Template)]
#[template(path = "haproxy.cfg")]
struct HaproxyCfg<'a> {
    view: &'a View<'a>,
    site: &'a Site,
    sections: Sections<'a>,
    maps: &'a str,
    generation_id: &'a str,
}

/// The services' sections, in the order of the file. Without them the template renders the common part.
#[derive(Clone, Copy, Default)]
struct Sections<'a> {
    /// The shapes of HTTP backends.
    http_shapes: &'a [String],
    /// The shapes of backends that pass TLS through.
    tcp_shapes: &'a [String],
    /// The place of HTTP services, one of [`PLACES`].
    http: &'static str,
    /// The place of services that pass TLS through.
    passthrough: &'static str,
    /// The place of TCP services. Empty if there is none.
    tcp: &'static str,
    /// Stubs are no part of the common part: a HAProxy that lacks one also lacks the operator's line that names it.
    stubs: &'a [Stub],
    /// The inner socket stays bound for the process before. No part of the common part, so this alone needs no restart.
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
        self.site.pages.http_error_lines(self.maps)
    }
}

/// Renders a generation. `texts` and the view have the same services. `state_dir` has the folders of the maps. `kept_shapes` are
/// shapes that stay although no backend has them.
pub fn render_config(
    view: &View,
    texts: &ServiceTexts,
    generation: &Generation,
    kept_shapes: &BTreeMap<String, String>,
    state_dir: &Path,
) -> Result<Rendered, askama::Error> {
    let Generation { id, fingerprint } = generation;
    let maps = state_dir.join(id).display().to_string();
    check_invariants(view);
    let mut shapes = kept_shapes.clone();
    shapes.extend(texts.shapes().clone());
    let of_base = |base: &str| -> Vec<String> {
        let of_base = shapes.iter().filter(|(name, _)| name.starts_with(base));
        of_base.map(|(_, text)| text.replace(shape::MAPS, &maps)).collect()
    };
    let (http_shapes, tcp_shapes) = (&of_base(shape::HTTP)[..], &of_base(shape::TCP)[..]);
    let groups = texts.list_sections(&maps);
    let [http, passthrough, tcp] = PLACES;
    let tcp = if groups[2].is_empty() { "" } else { tcp };
    let View { stubs, lingers, .. } = view;
    let sections = Sections { http_shapes, tcp_shapes, http, passthrough, tcp, stubs, lingers: *lingers };
    let frame = HaproxyCfg { view, site: view.site, sections, maps: &maps, generation_id: id }.render()?;
    let mut cfg = ConfigText::from_frame(&frame, groups);
    // HAProxy rejects a file without a line feed at its end, and Askama drops the template's.
    cfg.end_line();
    let fingerprint = if fingerprint.shapes == shapes {
        Arc::clone(fingerprint)
    } else {
        Arc::new(ConfigFingerprint { shapes, ..ConfigFingerprint::clone(fingerprint) })
    };
    let (maps, pages) = (Arc::clone(&view.maps), Arc::clone(&view.site.pages));
    Ok(Rendered { generation_id: id.clone(), cfg, maps, pages, fingerprint })
}

/// The common part: the file without services and without the generation's id.
pub fn render_frame(view: &View) -> Result<String, askama::Error> {
    // The file has the `defaults` for TCP only with such a service or with passthrough, and this text has no TCP section.
    let tcp = if view.tcp.is_empty() { "" } else { "tcp" };
    let frame = HaproxyCfg { view, site: view.site, sections: Sections::default(), maps: "-", generation_id: tcp };
    let mut text = frame.render()?;
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// The value of `timeout http-keep-alive` in haproxy.cfg. The drain waits for it too.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);

#[cfg(test)]
pub(crate) mod tests;
