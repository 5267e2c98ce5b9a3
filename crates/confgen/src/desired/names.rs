//! The names of sections in haproxy.cfg. Pure.

use discovery::{Color, Kind, ServiceId};

/// The service of which a section bears this name: its own, or one for previews.
pub fn parse_section(section: &str) -> Option<ServiceId> {
    let section = section.split_once(PREVIEW).map_or(section, |(own, _)| own);
    let (kind, name) = section.split_once('-')?;
    let kind = [Kind::Http, Kind::Tcp].into_iter().find(|known| known.to_string() == kind)?;
    Some(ServiceId { kind, name: name.parse().ok()? })
}

/// Follows the service in the name of a section for previews.
pub const PREVIEW: &str = ":preview-";

/// What the names of all such sections of a service begin with.
pub fn preview_prefix(id: &ServiceId) -> String {
    format!("{id}{PREVIEW}")
}

/// The section that a color is previewed in. No service is called so: names hold no colon.
pub fn preview_section(id: &ServiceId, color: &Color) -> String {
    format!("{}{color}", preview_prefix(id))
}
