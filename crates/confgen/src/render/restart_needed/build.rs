//! Computes fingerprints: those of a view, and those of one service that changed. Pure: no I/O, no clock.

use std::sync::Arc;

use discovery::{ServiceId, Tls};

use super::ConfigFingerprint;
use crate::desired::fingerprint::hash_parts;
use crate::desired::names::preview_prefix;
use crate::desired::{DesiredService, Trust};
use crate::render;
use crate::render::section::sections_of;
use crate::render::server_options;
use crate::render::view;
use crate::render::view::{Section, Site, View, has_section};

/// The templates are a part of the fingerprint, since another release of confgen may write another file for the same store.
const TEMPLATES: [&str; 3] = [
    include_str!("../../../../../templates/http-service.cfg"),
    include_str!("../../../../../templates/passthrough-service.cfg"),
    include_str!("../../../../../templates/tcp-service.cfg"),
];

impl ConfigFingerprint {
    /// The fingerprints of a view, without filled files. `outside` are the fingerprints of the operator's files.
    pub fn from_view(view: &View, outside: &[String]) -> Result<Self, askama::Error> {
        let frame = render::render_frame(view)?;
        let parts = [frame.as_str(), &view.maps.urls].into_iter().chain(TEMPLATES).map(str::as_bytes);
        let prints = outside.iter().map(String::as_bytes).chain(view.site.pages.contents());
        let mut fingerprints = Self { common: hash_parts(parts.chain(prints)), ..Self::default() };
        let sections = view.http.iter().chain(&view.passthrough).chain(&view.tcp);
        for Section { id, wanted, .. } in sections.filter(|section| section.preview.is_none()) {
            fingerprints.add_part(Self::part_of_service(id, Some(wanted), view.site)?);
        }
        fingerprints.reserved = Some(view.operator.named_sections());
        fingerprints.check_invariants();
        Ok(fingerprints)
    }

    /// The part of one service, without the common part. Empty if the file has no section for the service.
    fn part_of_service(id: &ServiceId, wanted: Option<&DesiredService>, site: &Site) -> Result<Self, askama::Error> {
        let mut part = Self::default();
        let Some(wanted) = wanted.filter(|wanted| has_section(id, wanted)) else { return Ok(part) };
        let name = id.to_string();
        part.shares.extend(view::shared_part_of(id, wanted, site).map(|share| (name.clone(), share)));
        part.authorities.extend(ca_file_of(wanted).map(|file| (name.clone(), file)));
        if !wanted.binds.is_empty() {
            part.ports.insert(name.clone(), wanted.ports().collect());
        }
        if wanted.settings.passes_through() {
            part.passthrough.insert(name);
        }
        for section in sections_of(id, wanted) {
            part.add_section(&section, site)?;
        }
        Ok(part)
    }

    /// Adds the fingerprint of one section, and its shape.
    fn add_section(&mut self, section: &Section, site: &Site) -> Result<(), askama::Error> {
        let name = section.name();
        let shape = section.shape().map(|shape| shape.render_text(site)).transpose()?;
        let print = fingerprint_section(section, shape.as_deref().unwrap_or_default(), site)?;
        if section.is_fixed() {
            self.fixed.insert(name.clone());
        }
        self.shapes.extend(shape.map(|text| (section.shape_name(), text)));
        self.sections.insert(name, print);
        Ok(())
    }

    fn add_part(&mut self, part: Self) {
        self.sections.extend(part.sections.iter().map(|(name, print)| (name.clone(), print.clone())));
        self.shares.extend(part.shares);
        self.authorities.extend(part.authorities);
        self.ports.extend(part.ports);
        self.passthrough.extend(part.passthrough);
        // The shapes that no section has any more stay until all fingerprints are computed again. They do no harm.
        self.shapes.extend(part.shapes);
        self.fixed.extend(part.fixed);
    }

    /// Updates the part of one service. `None` as `wanted` removes it. Returns false if the common part has changed: then the
    /// caller has to compute all fingerprints again. Without a difference the fingerprints stay the same `Arc`.
    pub fn update_service(
        self: &mut Arc<Self>,
        id: &ServiceId,
        wanted: Option<&DesiredService>,
        site: &Site,
    ) -> Result<bool, askama::Error> {
        let (name, part) = (id.to_string(), Self::part_of_service(id, wanted, site)?);
        // A share shows only in the common part, which needs all services.
        if self.shares.get(&name) != part.shares.get(&name) {
            return Ok(false);
        }
        if self.has_part(id, &name, &part) {
            return Ok(true);
        }
        let all = Arc::make_mut(self);
        // Both decide about lines of the common part: the `defaults` for TCP, and the frontends of the inner hop.
        let had = (all.has_tcp(), all.passes_through());
        all.remove_part(id, &name);
        all.add_part(part);
        all.check_invariants();
        Ok(had == (all.has_tcp(), all.passes_through()))
    }

    /// The service's own section and those of its previews, with their fingerprints.
    fn sections_of_service<'a>(&'a self, id: &ServiceId, name: &str) -> impl Iterator<Item = (&'a String, &'a String)> {
        let prefix = preview_prefix(id);
        let previews = self.sections.iter_from(&prefix);
        let previews = previews.take_while(move |(section, _)| section.starts_with(&prefix));
        self.sections.get_key_value(name).into_iter().chain(previews)
    }

    /// True if the service `id`, with the own section `name`, has just this part.
    fn has_part(&self, id: &ServiceId, name: &str, part: &Self) -> bool {
        self.sections_of_service(id, name).eq(part.sections.iter())
            && part.sections.keys().all(|section| self.fixed.contains(section) == part.fixed.contains(section))
            && part.shapes.iter().all(|(shape, text)| self.shapes.get(shape) == Some(text))
            && self.authorities.get(name) == part.authorities.get(name)
            && self.ports.get(name) == part.ports.get(name)
            && self.passthrough.contains(name) == part.passthrough.contains(name)
    }

    /// Removes the part of a service. A preview's color that is gone must leave no section.
    fn remove_part(&mut self, id: &ServiceId, name: &str) {
        let sections: Vec<String> = self.sections_of_service(id, name).map(|(section, _)| section.clone()).collect();
        for section in &sections {
            self.sections.remove(section);
            self.fixed.remove(section);
        }
        self.shares.remove(name);
        self.authorities.remove(name);
        self.ports.remove(name);
        self.passthrough.remove(name);
    }
}

fn fingerprint_section(section: &Section, shape: &str, site: &Site) -> Result<String, askama::Error> {
    let Section { id, wanted, preview, .. } = *section;
    let text = Section::without_servers(id, wanted, preview).render_text(site)?;
    let settings = &wanted.settings;
    // The Runtime API changes neither a server's `backup` nor the content of a CA file.
    let backups = wanted.servers.iter().filter(|server| server.backup).map(|server| server.id.as_str().as_bytes());
    let authority = match &settings.trust {
        Trust::Authority(_, authority) if settings.tls == Tls::Reencrypt => Some(authority.fingerprint.as_bytes()),
        _ => None,
    };
    Ok(hash_parts([text.as_bytes(), shape.as_bytes()].into_iter().chain(backups).chain(authority)))
}

/// The CA file, or `@system-ca`, against which HAProxy checks certificates of the service's upstreams.
fn ca_file_of(wanted: &DesiredService) -> Option<String> {
    Some(server_options::options_for(wanted).tls?.authorities?.to_string())
}
