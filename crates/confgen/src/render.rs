//! From the view to bytes: the file, its maps, and the stamp that names them. Pure: the same view, the same bytes.

use std::fmt::Write;
use std::path::Path;

use askama::Template;
use sha2::{Digest, Sha256};

use crate::view::{self, Maps, Section, Site, View};

/// What is to stand on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Names this generation: `setenv CONFGEN_GEN` in the file, the maps' folder in the state directory.
    pub stamp: String,
    /// haproxy.cfg, ending in a line feed.
    pub cfg: String,
    /// The maps that it names.
    pub maps: Maps,
}

#[derive(Template)]
#[template(path = "haproxy.cfg")]
struct HaproxyCfg<'a> {
    view: &'a View<'a>,
    site: &'a Site,
    http: &'a [Section<'a>],
    tcp: &'a [Section<'a>],
    maps: String,
    stamp: &'a str,
}

impl HaproxyCfg<'_> {
    fn ours(&self, keyword: &str) -> bool {
        self.view.ours(keyword)
    }
}

/// Renders. `outside` is what the file names and a restart alone takes in: the operator's files, the certificates.
/// `state_dir` is where the maps' folders are.
pub fn render(view: &View, state_dir: &Path, outside: &[Vec<u8>]) -> Result<Rendered, askama::Error> {
    let cfg = |stamp: &str| {
        let template = HaproxyCfg {
            view,
            site: view.site,
            http: &view.http,
            tcp: &view.tcp,
            maps: state_dir.join(stamp).display().to_string(),
            stamp,
        };
        // Askama drops the template's last line feed, without which HAProxy refuses the file.
        template.render().map(|text| format!("{}\n", text.trim_end()))
    };
    // The stamp is no part of what it is the stamp of.
    let unstamped = cfg("-")?;
    let maps = &view.maps;
    let inside = [&unstamped, &maps.hosts, &maps.paths, &maps.urls].into_iter().map(String::as_bytes);
    let stamp = digest(inside.chain(outside.iter().map(Vec::as_slice)));
    Ok(Rendered { cfg: cfg(&stamp)?, maps: maps.clone(), stamp })
}

/// Sixteen hexadecimal digits: enough to tell the generations of one balancer apart, short enough to read out.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
