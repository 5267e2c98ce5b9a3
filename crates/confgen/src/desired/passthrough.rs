//! Pass-through owns its whole host, and sees nothing of what it passes through: what can't stand beside it.

use discovery::{Balance, Service, ServiceId, Setting, SettingName, Sticky, Tls};

/// What would have to be read in a request, or written into its answer.
const INSIDE: [SettingName; 3] = [SettingName::Path, SettingName::UrlReg, SettingName::Hsts];

/// Whether the setting asks for it.
pub(super) fn is_requested_by(setting: &Setting) -> bool {
    matches!(setting, Setting::Tls(Tls::Passthrough) | Setting::Sslpass(()))
}

/// Why the service can't have it; none where it can.
pub(super) fn conflict_reason(id: &ServiceId, service: &Service) -> Option<String> {
    if id.is_default() {
        return Some("passthrough: `default` has no host that a client could ask for".into());
    }
    let sets = |name| service.setting(name).map(|field| &field.value);
    let beside = |what: String| Some(format!("passthrough has its whole host and sees no request: not beside {what}"));
    if let Some(name) = INSIDE.into_iter().find(|name| sets(*name).is_some()) {
        return beside(format!("`{name}`"));
    }
    match sets(SettingName::Sticky) {
        Some(Ok(Setting::Sticky(Sticky::Cookie))) => beside("`sticky` cookie".into()),
        _ => None,
    }
}

/// Why a setting says nothing beside it.
pub(super) fn unused_setting_reason(name: SettingName) -> Option<&'static str> {
    (name == SettingName::Proto).then_some("means nothing beside passthrough: client and upstream settle it in TLS")
}

/// Good in itself, but not to be had beside it.
pub(super) fn check_setting(setting: &Setting) -> Result<(), String> {
    match setting {
        Setting::Balance(Balance::Uri) => Err("uri: passthrough sees none".into()),
        Setting::Sticky(Sticky::Cookie) => Err("cookie: passthrough sees none".into()),
        Setting::Preview(_) => Err("passthrough sees neither a header nor whom a request is for".into()),
        _ => Ok(()),
    }
}
