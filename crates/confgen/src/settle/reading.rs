//! One service's keys, each with the value that counts: its own if it is good, else its last good one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use discovery::{
    Active, Balance, Bind, Check, Domain, Field, Hsts, Kind, Networks, Override, PathPrefix, Profile, Proto,
    ProxyProtocol, Refusal, Service, Setting, SettingName, Span, Sticky, Tls, Upstream, UpstreamId, UrlRegex,
};

use super::Limits;

/// What a service is set to; what is unset has the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How TLS is treated: `both` unless set; a TCP service's is `off`.
    pub tls: Tls,
    /// How requests are spread: in turns unless set.
    pub balance: Balance,
    /// How HAProxy checks: by connecting unless set.
    pub check: Check,
    /// How a client stays: not unless set.
    pub sticky: Sticky,
    /// Who may come in; none is everybody.
    pub allow: Option<Networks>,
    /// Connections to one upstream.
    pub maxconn: Option<NonZeroU32>,
    /// How long a recovering upstream takes to its whole weight.
    pub slowstart: Option<Span>,
    /// `Strict-Transport-Security`.
    pub hsts: Option<Hsts>,
    /// The PROXY protocol towards upstreams.
    pub proxy_protocol: ProxyProtocol,
    /// The HTTP version towards upstreams.
    pub proto: Option<Proto>,
    /// The operator's `defaults` section.
    pub profile: Option<Profile>,
    /// The active colors.
    pub active: Option<Active>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(Kind::Http)
    }
}

impl Settings {
    fn of(kind: Kind) -> Self {
        Self {
            tls: if kind == Kind::Http { Tls::Both } else { Tls::Off },
            balance: Balance::RoundRobin,
            check: Check::Tcp,
            sticky: Sticky::Off,
            allow: None,
            maxconn: None,
            slowstart: None,
            hsts: None,
            proxy_protocol: ProxyProtocol::Off,
            proto: None,
            profile: None,
            active: None,
        }
    }
}

/// A key that names what a service claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Naming {
    pub(super) key: String,
    /// Its create revision.
    pub(super) since: i64,
}

/// One service, read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The settings that don't claim anything.
    pub(super) settings: Settings,
    /// The hosts it names, and by which key.
    pub(super) domains: Vec<Domain>,
    pub(super) domains_by: Naming,
    /// The path prefixes it names; the root where none is set, nothing where the key can't be read.
    pub(super) paths: Vec<PathPrefix>,
    /// The ports it names, and by which key.
    pub(super) ports: Vec<Bind>,
    pub(super) ports_by: Naming,
    /// The old layout's expression, with the create revision of its key.
    pub(super) url_reg: Option<(i64, UrlRegex)>,
    /// Which key asks for HSTS.
    pub(super) hsts_by: Naming,
    /// The upstreams and what is imposed on them, by id.
    pub(super) upstreams: BTreeMap<UpstreamId, Upstream>,
    pub(super) overrides: BTreeMap<UpstreamId, Override>,
    /// A key without any good value decides who may come in or how upstreams are spoken to: no upstream gets a request.
    pub(super) held_back: bool,
    /// The values that count, by key.
    pub(super) good: BTreeMap<String, String>,
    /// Keys whose own value doesn't count, and why.
    pub(super) refused: BTreeMap<String, String>,
}

/// Settings without which a request might go where it must not, or be spoken in a way the upstream doesn't read.
const GATES: [SettingName; 7] = [
    SettingName::Tls,
    SettingName::Sslpass,
    SettingName::Allow,
    SettingName::ProxyProtocol,
    SettingName::Proto,
    SettingName::Active,
    SettingName::Verify,
];

/// Reads a service. `remembered` are its last good values by key.
pub(super) fn read(service: &Service, remembered: Option<&BTreeMap<String, String>>, limits: &Limits) -> Reading {
    let mut picker = Picker { remembered, good: BTreeMap::new(), refused: BTreeMap::new() };
    let kind = service.kind();
    let mut without = BTreeSet::new();
    let mut settings = Vec::new();
    for (name, field) in service.settings() {
        if name == SettingName::Sslpass && service.setting(SettingName::Tls).is_some() {
            continue;
        }
        let reread = |value: &[u8]| Setting::parse(kind, name, value);
        match picker.pick(field, reread, |setting| vet(setting, limits)) {
            Some(setting) => settings.push((naming(field), setting)),
            None => _ = without.insert(name),
        }
    }
    let pick_upstream = |(id, field): (&UpstreamId, &Arc<Field<Upstream>>)| {
        Some((id.clone(), picker.pick(field, Upstream::parse, |upstream| reachable(upstream, limits))?))
    };
    let upstreams = service.upstreams().filter_map(pick_upstream).collect();
    let pick_override = |(id, field): (&UpstreamId, &Arc<Field<Override>>)| {
        Some((id.clone(), picker.pick(field, Override::parse, |_| Ok(()))?))
    };
    let overrides = service.overrides().filter_map(pick_override).collect();
    let mut reading = Reading {
        settings: Settings::of(kind),
        domains: Vec::new(),
        domains_by: Naming::default(),
        paths: if without.contains(&SettingName::Path) { Vec::new() } else { vec![PathPrefix::root()] },
        ports: Vec::new(),
        ports_by: Naming::default(),
        url_reg: None,
        hsts_by: Naming::default(),
        upstreams,
        overrides,
        held_back: GATES.iter().any(|gate| without.contains(gate)),
        good: picker.good,
        refused: picker.refused,
    };
    settings.into_iter().for_each(|(by, setting)| reading.take(by, setting));
    reading
}

impl Reading {
    /// Whether all that other services could be touched by is the same.
    pub(super) fn claims_like(&self, other: &Self) -> bool {
        let plain = |reading: &Self| reading.settings.tls == Tls::Off;
        (&self.domains, &self.domains_by, &self.paths) == (&other.domains, &other.domains_by, &other.paths)
            && (&self.ports, &self.ports_by, plain(self)) == (&other.ports, &other.ports_by, plain(other))
    }

    fn take(&mut self, by: Naming, setting: Setting) {
        let settings = &mut self.settings;
        match setting {
            Setting::Domain(domains) => (self.domains, self.domains_by) = (domains, by),
            Setting::Path(paths) => self.paths = paths,
            Setting::UrlReg(regex) => self.url_reg = Some((by.since, regex)),
            Setting::Ports(ports) => (self.ports, self.ports_by) = (ports, by),
            Setting::Tls(tls) => settings.tls = tls,
            Setting::Balance(balance) => settings.balance = balance,
            Setting::Check(check) => settings.check = check,
            Setting::Sticky(sticky) => settings.sticky = sticky,
            Setting::Allow(networks) => settings.allow = Some(networks),
            Setting::Maxconn(most) => settings.maxconn = Some(most),
            Setting::Slowstart(span) => settings.slowstart = Some(span),
            Setting::Hsts(hsts) => (settings.hsts, self.hsts_by) = (Some(hsts), by),
            Setting::ProxyProtocol(version) => settings.proxy_protocol = version,
            Setting::Proto(version) => settings.proto = Some(version),
            Setting::Profile(profile) => settings.profile = Some(profile),
            Setting::Active(active) => settings.active = Some(active),
            // Vetted away, or without a meaning of their own while what they belong to is.
            Setting::Sslpass(()) | Setting::Verify(_) | Setting::Sni(_) | Setting::Preview(_) => {}
        }
    }
}

fn naming<T>(field: &Field<T>) -> Naming {
    Naming { key: field.entry.key.clone(), since: field.entry.create_revision }
}

/// Good in itself, but not to be had here.
fn vet(setting: &Setting, limits: &Limits) -> Result<(), String> {
    match setting {
        Setting::Tls(tls @ (Tls::Passthrough | Tls::Reencrypt)) => Err(format!("{tls}: not served by this version")),
        Setting::Sslpass(()) => Err("passthrough: not served by this version; `tls` beats this key".into()),
        Setting::Preview(_) => Err("not served by this version".into()),
        Setting::Profile(profile) if !limits.profiles.contains(profile) => {
            Err(format!("no `defaults {profile}` in the operator's files"))
        }
        _ => Ok(()),
    }
}

/// Whether upstreams may be where this one says it is.
fn reachable(upstream: &Upstream, limits: &Limits) -> Result<(), String> {
    let ip = upstream.address.socket().ip().to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let allowed = match &limits.upstream_networks {
        Some(networks) => networks.contains(&ip),
        None => !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local),
    };
    if allowed { Ok(()) } else { Err(format!("{}: --upstream-networks doesn't allow it", upstream.address)) }
}

/// Picks each key's value, and keeps the books.
struct Picker<'a> {
    remembered: Option<&'a BTreeMap<String, String>>,
    good: BTreeMap<String, String>,
    refused: BTreeMap<String, String>,
}

impl Picker<'_> {
    /// The key's own value if it is good, else the last good one.
    fn pick<T: Clone>(
        &mut self,
        field: &Field<T>,
        reread: impl Fn(&[u8]) -> Result<T, Refusal>,
        vet: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        let key = &field.entry.key;
        let own = field.value.as_ref().map_err(ToString::to_string);
        let reason = match own.and_then(|value| vet(value).map(|()| value)) {
            Ok(value) => {
                self.good.insert(key.clone(), String::from_utf8_lossy(&field.entry.value).into_owned());
                return Some(value.clone());
            }
            Err(reason) => reason,
        };
        let last = self.remembered.and_then(|good| good.get(key));
        let value = last.and_then(|text| reread(text.as_bytes()).ok()).filter(|value| vet(value).is_ok());
        let outcome = if value.is_some() { "the last good value serves" } else { "no good value yet" };
        self.refused.insert(key.clone(), format!("{reason}; {outcome}"));
        if let (Some(_), Some(text)) = (&value, last) {
            self.good.insert(key.clone(), text.clone());
        }
        value
    }
}
