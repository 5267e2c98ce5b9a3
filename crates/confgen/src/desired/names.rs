//! The names of sections in haproxy.cfg. Pure.

use discovery::{Color, Kind, ServiceId};

/// The service of a section, which may be a preview. `None` if the section is no service's.
pub fn parse_section(section: &str) -> Option<ServiceId> {
    let section = section.split_once(PREVIEW).map_or(section, |(own, _)| own);
    let (kind, name) = section.split_once('-')?;
    let kind = match kind {
        "http" => Kind::Http,
        "tcp" => Kind::Tcp,
        _ => return None,
    };
    Some(ServiceId { kind, name: name.parse().ok()? })
}

/// Stands between service and color in the name of a preview's section.
pub const PREVIEW: &str = ":preview-";

/// The beginning of the names of all previews of a service.
pub fn preview_prefix(id: &ServiceId) -> String {
    format!("{id}{PREVIEW}")
}

/// The section of a color's preview. No service has this name, because names hold no colon.
pub fn preview_section(id: &ServiceId, color: &Color) -> String {
    format!("{}{color}", preview_prefix(id))
}
