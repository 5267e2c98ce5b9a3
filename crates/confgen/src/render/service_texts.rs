//! The services' texts in haproxy.cfg, their shapes and their maps, kept from one generation to the next. Pure: no I/O, no clock.
//!
//! A change concerns few services. An unchanged service is the same `Arc`, and its text is the same too.

use std::collections::BTreeMap;
use std::sync::Arc;

use discovery::{Kind, ServiceId};

use crate::desired::{DesiredService, DesiredState};
use crate::render::section::{Section, sections_of};
use crate::render::shape::{MAPS, list_shapes};
use crate::render::view::{Maps, Site, has_section};

/// The texts of all services of a desired state. They are a function of that state and of the site.
#[derive(Debug, Default)]
pub struct ServiceTexts {
    /// `None` before the first update.
    site: Option<Site>,
    /// The state that the texts are of.
    desired: DesiredState,
    services: BTreeMap<ServiceId, ServiceText>,
    /// By name, with [`MAPS`] for the folder of the maps.
    shapes: BTreeMap<String, String>,
    maps: Arc<Maps>,
}

/// The text of one service: its own section, and those of its previews.
#[derive(Debug)]
struct ServiceText {
    passes_through: bool,
    /// With [`MAPS`] for the folder of the maps. Empty if the file has no section for the service.
    text: Arc<str>,
    names_maps: bool,
}

impl ServiceTexts {
    /// Renders the texts of this desired state.
    pub fn from_desired(desired: &DesiredState, site: &Site) -> Result<Self, askama::Error> {
        let mut texts = Self::default();
        texts.update(desired, site)?;
        Ok(texts)
    }

    /// Brings the texts to this desired state. It renders only the services that differ from the last one.
    pub fn update(&mut self, desired: &DesiredState, site: &Site) -> Result<(), askama::Error> {
        if self.site.as_ref() != Some(site) {
            *self = Self { site: Some(site.clone()), ..Self::default() };
        }
        let updated = self.update_services(desired, site);
        if updated.is_err() {
            // A part may have been updated. Begin anew.
            *self = Self::default();
        }
        updated
    }

    fn update_services(&mut self, desired: &DesiredState, site: &Site) -> Result<(), askama::Error> {
        let before = std::mem::replace(&mut self.desired, desired.clone());
        if desired.changes_since(&before).any(|(_, old, new)| differs_beside_servers(old, new)) {
            let http = desired.services().filter(|(id, _)| id.kind == Kind::Http);
            let sections: Vec<Section> = http.flat_map(|(id, wanted)| sections_of(id, wanted)).collect();
            self.shapes = list_shapes(sections.iter(), site)?;
            self.maps = Arc::new(Maps::from_desired(desired));
        }
        for (id, _, wanted) in desired.changes_since(&before) {
            let Some(wanted) = wanted else {
                self.services.remove(id);
                continue;
            };
            let (text, passes_through) = (render_service(id, wanted, site)?, wanted.settings.passes_through());
            self.services.insert(id.clone(), ServiceText { passes_through, names_maps: text.contains(MAPS), text });
        }
        Ok(())
    }

    /// The shapes of all sections, by name, with `MAPS` for the folder of the maps.
    pub fn shapes(&self) -> &BTreeMap<String, String> {
        &self.shapes
    }

    /// The maps of all services.
    pub fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// The texts in the order of the file: those of HTTP services, of services that pass TLS through, and of TCP services. `maps` is
    /// the folder of the maps. A text that doesn't name it is shared.
    pub(super) fn list_sections(&self, maps: &str) -> [Vec<Arc<str>>; 3] {
        let (mut http, mut passthrough, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
        for (id, ServiceText { passes_through, text, names_maps }) in &self.services {
            let text = if *names_maps { text.replace(MAPS, maps).into() } else { Arc::clone(text) };
            match id.kind {
                Kind::Http if *passes_through => passthrough.push(text),
                Kind::Http => http.push(text),
                Kind::Tcp => tcp.push(text),
            }
        }
        [http, passthrough, tcp]
    }
}

/// True if more than servers differ. Neither maps nor shapes depend on servers.
fn differs_beside_servers(before: Option<&Arc<DesiredService>>, after: Option<&Arc<DesiredService>>) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return true };
    let DesiredService { host, routes, url_reg, binds, settings, servers: _, previews } = &**before;
    let colors = |service: &DesiredService| -> Vec<_> {
        service.previews.iter().map(|preview| (preview.color.clone(), preview.routes.clone())).collect()
    };
    (host, routes, url_reg) != (&after.host, &after.routes, &after.url_reg)
        || (binds, settings) != (&after.binds, &after.settings)
        || (!previews.is_empty() || !after.previews.is_empty()) && colors(before) != colors(after)
}

fn render_service(id: &ServiceId, wanted: &DesiredService, site: &Site) -> Result<Arc<str>, askama::Error> {
    let mut text = String::new();
    for section in sections_of(id, wanted).filter(|_| has_section(id, wanted)) {
        // The ports of a TCP service say enough.
        if id.kind == Kind::Http {
            text += &format!("\n# {}", section.comment(site));
        }
        text += &format!("\n{}\n", section.render_text(site)?);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use discovery::{Change, Entry, Topology};
    use proptest::prelude::*;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::operator_files::parse::OperatorConfig;
    use crate::render::restart_needed::ConfigFingerprint;
    use crate::render::tests::site;
    use crate::render::view::View;
    use crate::store::Changed;

    const KEYS: [&str; 9] = ["domain", "path", "tls", "check", "active", "preview", "sticky", "upstreams/1", "ports"];
    const VALUES: [&str; 9] = [
        "a.com b.com",
        "/x",
        "passthrough",
        "http /health",
        "blue=1 green=1",
        "10.0.0.0/8",
        "source",
        r#"{"address":"10.0.0.1:80","color":"blue"}"#,
        "3306",
    ];

    fn settled(lines: &str) -> DesiredState {
        settle(&topology(lines), &Default::default(), &Default::default())
    }

    proptest! {
        /// In every order of changes, texts and fingerprints that are updated come to the same as new ones.
        #[test]
        fn an_update_comes_to_the_same_as_rendering_all_anew(
            steps in prop::collection::vec((0..4_usize, 0..KEYS.len(), 0..VALUES.len(), any::<bool>()), 1..30),
        ) {
            let (site, operator) = (site(Path::new("/state")), OperatorConfig::default());
            let (mut store, mut desired) = (Topology::default(), DesiredState::default());
            let mut texts = ServiceTexts::default();
            let all = |desired: &DesiredState| {
                ConfigFingerprint::from_view(&View::new(desired, &site, &operator), &[]).unwrap()
            };
            let mut prints = Arc::new(all(&desired));
            for ((service, key, value, is_matching), revision) in steps.into_iter().zip(1..) {
                let kind = if service == 3 { Kind::Tcp } else { Kind::Http };
                let id = ServiceId { kind, name: format!("s{service}").parse().unwrap() };
                let key_name = format!("{}{}", id.folder_path(), KEYS[key]);
                // Every fifth step deletes the key.
                let change = if revision % 5 == 0 {
                    Change::Delete { key: key_name, revision, previous: None }
                } else {
                    let value = VALUES[if is_matching { key } else { value }].into();
                    Change::Put(Entry { key: key_name, value, create_revision: revision, mod_revision: revision, lease: 0 })
                };
                store.apply_change(&change);
                let mut changed = Changed::no_services();
                changed.add_service(id);
                let mut touched = desired.update_services(&store, &changed);
                touched.extend(desired.drop_removed());
                texts.update(&desired, &site).unwrap();
                let anew = ServiceTexts::from_desired(&desired, &site).unwrap();
                prop_assert_eq!(texts.list_sections("m"), anew.list_sections("m"));
                prop_assert_eq!((texts.shapes(), texts.maps()), (anew.shapes(), anew.maps()));
                let is_whole = touched.iter().all(|id| {
                    prints.update_service(id, desired.service(id).map(|it| &**it), &site).unwrap()
                });
                let expected = all(&desired);
                if !is_whole {
                    prints = Arc::new(expected.clone());
                }
                // Shapes that no section has any more may stay.
                prop_assert!(expected.shapes.iter().all(|(name, text)| prints.shapes.get(name) == Some(text)));
                prop_assert_eq!(ConfigFingerprint { shapes: expected.shapes.clone(), ..(*prints).clone() }, expected);
            }
        }
    }

    #[test]
    fn a_changed_upstream_leaves_maps_and_fingerprints_as_they_are() {
        let site = site(Path::new("/state"));
        let store =
            |last: u8| settled(&format!("http-services/a/domain a.com\nhttp-services/a/upstreams/1 10.0.0.{last}:80"));
        let (before, after) = (store(1), store(2));
        let mut texts = ServiceTexts::from_desired(&before, &site).unwrap();
        let maps = Arc::clone(texts.maps());
        texts.update(&after, &site).unwrap();
        assert!(texts.list_sections("m")[0][0].contains("server 1 10.0.0.2:80\n"));
        assert!(Arc::ptr_eq(&maps, texts.maps()));
        let operator = OperatorConfig::default();
        let view = View::new(&before, &site, &operator);
        let first = Arc::new(ConfigFingerprint::from_view(&view, &[]).unwrap());
        let (mut second, (id, wanted)) = (Arc::clone(&first), after.services().next().unwrap());
        assert!(second.update_service(id, Some(wanted), &site).unwrap());
        assert!(Arc::ptr_eq(&first, &second), "nothing was copied");
    }
}
