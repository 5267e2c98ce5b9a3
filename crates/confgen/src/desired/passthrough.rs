//! The settings that can't stand beside TLS pass-through. Such a service owns whole hosts, and HAProxy reads none of its requests.
//! Pure.

use discovery::{Balance, Service, ServiceId, Setting, SettingName, Sticky, Tls};

/// Settings that read a request or write into its answer.
const INSIDE: [SettingName; 3] = [SettingName::Path, SettingName::UrlReg, SettingName::Hsts];

/// True if the setting asks for pass-through.
pub(super) fn is_requested_by(setting: &Setting) -> bool {
    matches!(setting, Setting::Tls(Tls::Passthrough) | Setting::Sslpass(()))
}

/// The reason why the service can't pass TLS through. `None` if it can.
pub(super) fn conflict_reason(id: &ServiceId, service: &Service) -> Option<String> {
    if id.is_default() {
        return Some("passthrough: `default` has no host that a client could ask for".into());
    }
    let inside = INSIDE.into_iter().find(|name| service.setting(*name).is_some()).map(|name| format!("`{name}`"));
    let sticky = service.setting(SettingName::Sticky).map(|field| &field.value);
    let cookie = matches!(sticky, Some(Ok(Setting::Sticky(Sticky::Cookie)))).then(|| "`sticky` cookie".to_owned());
    let conflict = inside.or(cookie)?;
    Some(format!("passthrough has its whole host and sees no request: not beside {conflict}"))
}

/// The reason why a setting has no effect beside pass-through. `None` if it has one.
pub(super) fn unused_setting_reason(name: SettingName) -> Option<&'static str> {
    (name == SettingName::Proto).then_some("means nothing beside passthrough: client and upstream settle it in TLS")
}

/// Checks that a setting with a good value can stand beside pass-through. The error is the reason why it can't.
pub(super) fn check_setting(setting: &Setting) -> Result<(), String> {
    match setting {
        Setting::Balance(Balance::Uri) => Err("uri: passthrough sees none".into()),
        Setting::Sticky(Sticky::Cookie) => Err("cookie: passthrough sees none".into()),
        Setting::Preview(_) => Err("passthrough sees neither a header nor whom a request is for".into()),
        _ => Ok(()),
    }
}
