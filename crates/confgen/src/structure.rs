//! What of the file a restart alone can change, told apart from what HAProxy takes while it runs. Pure.

use std::collections::BTreeMap;

use askama::Template;
use discovery::{Kind, ServiceId};
use serde::{Deserialize, Serialize};

use crate::render::{self, digest};
use crate::settle::Wanted;
use crate::view::{self, Section, Site, View};

/// Fingerprints of everything but servers, hosts and paths: of what all share, and of each service's section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// `global`, `defaults`, the frontends, the operator's files, the certificates.
    pub common: String,
    /// By the section's name.
    pub sections: BTreeMap<String, String>,
}

/// The templates themselves: another confgen may write another file for the same store.
const TEMPLATES: [&str; 2] =
    [include_str!("../../../templates/http-service.cfg"), include_str!("../../../templates/tcp-service.cfg")];

#[derive(Template)]
#[template(path = "http-service.cfg")]
struct HttpService<'a> {
    section: Section<'a>,
}

#[derive(Template)]
#[template(path = "tcp-service.cfg")]
struct TcpService<'a> {
    section: Section<'a>,
    site: &'a Site,
}

impl Structure {
    /// The structure of a whole view. `outside` is what the file names and a restart alone takes in.
    pub fn of(view: &View, outside: &[Vec<u8>]) -> Result<Self, askama::Error> {
        let frame = render::frame(view)?;
        let parts = [frame.as_str(), &view.maps.urls].into_iter().chain(TEMPLATES).map(str::as_bytes);
        let common = digest(parts.chain(outside.iter().map(Vec::as_slice)));
        let sections = view.http.iter().chain(&view.tcp);
        let sections =
            sections.map(|section| Ok((section.id.to_string(), Self::section(section.id, section.wanted, view.site)?)));
        Ok(Self { common, sections: sections.collect::<Result<_, askama::Error>>()? })
    }

    /// The fingerprint of one service's section. Whether a server is a backup can't be changed while HAProxy runs.
    pub fn section(id: &ServiceId, wanted: &Wanted, site: &Site) -> Result<String, askama::Error> {
        let section = Section { id, wanted, servers: &[] };
        let text = match id.kind {
            Kind::Http => HttpService { section }.render()?,
            Kind::Tcp => TcpService { section, site }.render()?,
        };
        let backups = wanted.servers.iter().filter(|server| server.backup).map(|server| server.id.as_str().as_bytes());
        Ok(digest(std::iter::once(text.as_bytes()).chain(backups)))
    }

    /// The name of a generation with this structure.
    pub fn stamp(&self) -> String {
        let sections = self.sections.iter().flat_map(|(name, print)| [name.as_bytes(), print.as_bytes()]);
        digest(std::iter::once(self.common.as_bytes()).chain(sections))
    }

    /// The services that have a section.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        let id = |section: &String| {
            let (kind, name) = section.split_once('-')?;
            let kind = [Kind::Http, Kind::Tcp].into_iter().find(|known| known.to_string() == kind)?;
            Some(ServiceId { kind, name: name.parse().ok()? })
        };
        self.sections.keys().filter_map(id)
    }

    /// Puts one service's section right; none where the file has none for it.
    pub fn set(&mut self, id: &ServiceId, section: Option<String>) {
        match section {
            Some(section) => self.sections.insert(id.to_string(), section),
            None => self.sections.remove(&id.to_string()),
        };
    }

    /// Why a HAProxy that runs this structure needs a restart to serve the wanted one; none where it doesn't. A section
    /// that is no longer wanted is no reason: emptied, it does no harm.
    pub fn lacks(&self, wanted: &Self) -> Option<String> {
        if self.common != wanted.common {
            return Some("what all services share is another: a flag, an operator's file, a certificate".into());
        }
        wanted.sections.iter().find_map(|(name, print)| match self.sections.get(name) {
            None => Some(format!("{name} is new")),
            Some(running) if running != print => Some(format!("{name} has another setting or port")),
            Some(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(common: &str, sections: &[(&str, &str)]) -> Structure {
        let sections = sections.iter().map(|(name, print)| ((*name).to_owned(), (*print).to_owned()));
        Structure { common: common.into(), sections: sections.collect() }
    }

    #[test]
    fn only_what_is_missing_or_another_needs_a_restart() {
        let running = structure("c", &[("http-a", "1"), ("http-b", "1")]);
        let lacks = |wanted: Structure| running.lacks(&wanted).unwrap_or_default();
        assert_eq!(lacks(running.clone()), "");
        assert_eq!(lacks(structure("c", &[("http-a", "1")])), "", "one that went leaves an empty backend");
        assert_eq!(lacks(structure("c", &[("http-c", "1")])), "http-c is new");
        assert_eq!(lacks(structure("c", &[("http-a", "2")])), "http-a has another setting or port");
        assert!(lacks(structure("d", &[])).starts_with("what all services share"));
        assert_ne!(running.stamp(), structure("c", &[("http-a", "1")]).stamp());
    }
}
