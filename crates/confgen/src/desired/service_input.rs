//! One service's keys, each with the value that counts: its own if it is good, else its last good one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use discovery::{
    Bind, Color, Domain, Override, ParsedEntry, PathPrefix, Refusal, Service, ServiceId, Setting, SettingName, Tls,
    Upstream, UpstreamId, UrlRegex,
};

use super::{Policy, Settings, passthrough};

/// A key that names what a service claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyOrigin {
    pub(super) key: String,
    /// Its create revision.
    pub(super) since: i64,
}

/// One service, read.
#[derive(Clone, Debug)]
pub(super) struct ServiceInput {
    /// The settings that don't claim anything.
    pub(super) settings: Settings,
    /// The hosts it names, and by which key.
    pub(super) domains: Vec<Domain>,
    pub(super) domains_origin: KeyOrigin,
    /// The path prefixes it names; the root where none is set, nothing where the key can't be read.
    pub(super) paths: Vec<PathPrefix>,
    /// The ports it names, and by which key.
    pub(super) ports: Vec<Bind>,
    pub(super) ports_origin: KeyOrigin,
    /// The old layout's expression, with the create revision of its key.
    pub(super) url_reg: Option<(i64, UrlRegex)>,
    /// Which key asks for HSTS.
    pub(super) hsts_origin: KeyOrigin,
    /// The colors that can be previewed, with the hosts that lead to them, and by which key.
    pub(super) previews: BTreeMap<Color, Vec<Domain>>,
    pub(super) previews_origin: KeyOrigin,
    /// The upstreams and what is imposed on them, by id.
    pub(super) upstreams: BTreeMap<UpstreamId, Upstream>,
    pub(super) overrides: BTreeMap<UpstreamId, Override>,
    /// The upstreams that HAProxy has no room for.
    pub(super) without_room: BTreeSet<UpstreamId>,
    /// How many upstreams it may have, retained ones included. `None` if all have room.
    pub(super) max_upstreams: Option<usize>,
    /// A key without any good value decides who may come in or how upstreams are spoken to: no upstream gets a request.
    pub(super) upstreams_withheld: bool,
    /// The values that count, by key.
    pub(super) good_values: BTreeMap<String, String>,
    /// Keys whose own value doesn't count, and why.
    pub(super) refusals: BTreeMap<String, String>,
}

/// More than a service needs that lists a thousand hosts, and a few megabytes in HAProxy.
pub(crate) const MAX_ROUTES: usize = 10_000;

/// Settings without which a request might go where it must not, or be spoken in a way the upstream doesn't read.
pub(super) const GATES: [SettingName; 6] = [
    SettingName::Tls,
    SettingName::Sslpass,
    SettingName::Allow,
    SettingName::ProxyProtocol,
    SettingName::Proto,
    SettingName::Active,
];

/// In how many sections an upstream may have a server with a check of its own: a previewed color has one more.
pub(super) fn count_sections(service: &Service) -> usize {
    if service.setting(SettingName::Preview).is_some() { 2 } else { 1 }
}

/// Reads a service. `remembered` are its last good values by key.
pub(super) fn read_input(
    id: &ServiceId,
    service: &Service,
    remembered: Option<&BTreeMap<String, String>>,
    limits: &Policy,
) -> ServiceInput {
    let mut picker = ValuePicker { remembered, good_values: BTreeMap::new(), refusals: BTreeMap::new() };
    let kind = service.kind();
    let mut without = BTreeSet::new();
    let mut settings = Vec::new();
    let mut case =
        Context { id, limits, passthrough_conflict: passthrough::conflict_reason(id, service), passes_through: false };
    // In the order of the table: `tls` comes before what has to go with it.
    for (name, field) in service.settings() {
        if name == SettingName::Sslpass && service.setting(SettingName::Tls).is_some() {
            continue;
        }
        if let Some(reason) = passthrough::unused_setting_reason(name).filter(|_| case.passes_through) {
            picker.refusals.insert(field.entry.key.clone(), reason.into());
            continue;
        }
        let reread = |value: &[u8]| Setting::parse_stored(kind, name, value).value;
        match picker.pick_value(field, reread, |setting| check_setting(&case, setting)) {
            Some(setting) => {
                case.passes_through |= passthrough::is_requested_by(&setting);
                let setting = picker.drop_disallowed_hosts(&field.entry.key, setting, &case);
                settings.push((key_origin(field), setting));
            }
            None => _ = without.insert(name),
        }
    }
    let pick_upstream = |(id, field): (&UpstreamId, &Arc<ParsedEntry<Upstream>>)| {
        Some((id.clone(), picker.pick_value(field, Upstream::parse, |upstream| check_reachable(upstream, limits))?))
    };
    let mut upstreams: BTreeMap<UpstreamId, Upstream> = service.upstreams().filter_map(pick_upstream).collect();
    let bound = limits.upstream_bound.as_ref();
    let most_upstreams = bound.map(|bound| {
        let most = (bound.max_per_service / count_sections(service)).max(1);
        most.max(bound.served.count_upstreams(id))
    });
    let mut without_room = BTreeSet::new();
    if let (Some(bound), Some(most)) = (bound, most_upstreams.filter(|most| upstreams.len() > *most)) {
        // Upstreams that serve go on. Of the others, those that came last have no room.
        let mut ids: Vec<UpstreamId> = upstreams.keys().cloned().collect();
        ids.sort_by_cached_key(|upstream| {
            let since = service.upstream(upstream).map(|field| field.entry.create_revision);
            (!bound.served.has_upstream(id, upstream), since)
        });
        without_room.extend(ids.split_off(most));
        upstreams.retain(|id, _| !without_room.contains(id));
        let keys = without_room.iter().filter_map(|id| service.upstream(id));
        picker.refusals.extend(keys.map(|field| (field.entry.key.clone(), bound.exceeded_reason())));
    }
    let pick_override = |(id, field): (&UpstreamId, &Arc<ParsedEntry<Override>>)| {
        Some((id.clone(), picker.pick_value(field, Override::parse, |_| Ok(()))?))
    };
    let overrides = service.overrides().filter_map(pick_override).collect();
    let mut reading = ServiceInput {
        settings: Settings::defaults_for(kind),
        domains: Vec::new(),
        domains_origin: KeyOrigin::default(),
        paths: if without.contains(&SettingName::Path) { Vec::new() } else { vec![PathPrefix::root()] },
        ports: Vec::new(),
        ports_origin: KeyOrigin::default(),
        url_reg: None,
        hsts_origin: KeyOrigin::default(),
        previews: BTreeMap::new(),
        previews_origin: KeyOrigin::default(),
        upstreams,
        overrides,
        without_room,
        max_upstreams: most_upstreams,
        upstreams_withheld: GATES.iter().any(|gate| without.contains(gate)),
        good_values: picker.good_values,
        refusals: picker.refusals,
    };
    for (by, setting) in settings {
        if let Setting::Verify(verify) = &setting {
            reading.refusals.extend(limits.ca_files.outdated_reason(verify).map(|reason| (by.key.clone(), reason)));
        }
        reading.apply_setting(by, setting, limits);
    }
    reading.check_upstream_tls(service, &without);
    reading.limit_routes(service);
    reading.name_previews(id, limits);
    reading
}

impl ServiceInput {
    /// Whether all that other services could be touched by is the same.
    pub(super) fn has_same_claims(&self, other: &Self) -> bool {
        let tls = |reading: &Self| (reading.settings.tls == Tls::Off, reading.settings.passes_through());
        (&self.domains, &self.domains_origin, &self.paths) == (&other.domains, &other.domains_origin, &other.paths)
            && (&self.ports, &self.ports_origin, tls(self)) == (&other.ports, &other.ports_origin, tls(other))
            && (&self.previews, &self.previews_origin) == (&other.previews, &other.previews_origin)
    }

    /// Each host goes with each path: two values of a few kilobytes can ask for millions of routes.
    fn limit_routes(&mut self, service: &Service) {
        let (hosts, paths) = (self.domains.len(), self.paths.len());
        if let Some(field) = service.setting(SettingName::Path).filter(|_| hosts.saturating_mul(paths) > MAX_ROUTES) {
            let reason =
                format!("{hosts} hosts with {paths} paths each; {MAX_ROUTES} routes are the most; none is served");
            self.refusals.insert(field.entry.key.clone(), reason);
            self.paths.clear();
        }
    }

    fn apply_setting(&mut self, by: KeyOrigin, setting: Setting, limits: &Policy) {
        let settings = &mut self.settings;
        match setting {
            Setting::Domain(domains) => (self.domains, self.domains_origin) = (domains, by),
            Setting::Path(paths) => self.paths = paths,
            Setting::UrlReg(regex) => self.url_reg = Some((by.since, regex)),
            Setting::Ports(ports) => (self.ports, self.ports_origin) = (ports, by),
            Setting::Tls(tls) => settings.tls = tls,
            Setting::Balance(balance) => settings.balance = balance,
            Setting::Check(check) => settings.check = check,
            Setting::Sticky(sticky) => settings.sticky = sticky,
            Setting::Allow(networks) => settings.allow = Some(networks),
            Setting::Maxconn(most) => settings.maxconn = Some(most),
            Setting::Slowstart(span) => settings.slowstart = Some(span),
            Setting::Hsts(hsts) => (settings.hsts, self.hsts_origin) = (Some(hsts), by),
            Setting::ProxyProtocol(version) => settings.proxy_protocol = version,
            Setting::Proto(version) => settings.proto = version,
            Setting::Verify(verify) => settings.trust = limits.ca_files.resolve_trust(&verify).unwrap_or_default(),
            Setting::Sni(sni) => settings.sni = sni,
            Setting::Profile(profile) => {
                settings.fixed_servers = limits.server_profiles.contains(&profile);
                settings.profile = Some(profile);
            }
            Setting::Active(active) => settings.active = Some(active),
            Setting::Preview(networks) => (settings.preview, self.previews_origin) = (Some(networks), by),
            Setting::Sslpass(()) => settings.tls = Tls::Passthrough,
        }
    }
}

fn key_origin<T>(field: &ParsedEntry<T>) -> KeyOrigin {
    KeyOrigin { key: field.entry.key.clone(), since: field.entry.create_revision }
}

/// What a setting's value has to go with.
struct Context<'a> {
    id: &'a ServiceId,
    limits: &'a Policy,
    /// Why TLS can't be passed through.
    passthrough_conflict: Option<String>,
    /// Whether it is.
    passes_through: bool,
}

/// Good in itself, but not to be had here.
fn check_setting(case: &Context, setting: &Setting) -> Result<(), String> {
    let Context { id, limits, passthrough_conflict: hindrance, .. } = case;
    if let Some(reason) = hindrance.as_ref().filter(|_| passthrough::is_requested_by(setting)) {
        return Err(reason.clone());
    }
    match setting {
        Setting::Domain(domains) => {
            limits.domain_allowlist.as_ref().map_or(Ok(()), |it| it.check_some_domain(&id.name, domains))
        }
        Setting::UrlReg(_) => limits.domain_allowlist.as_ref().map_or(Ok(()), |it| it.check_catch_all(&id.name)),
        Setting::Verify(verify) => limits.ca_files.check_verify(verify),
        Setting::Profile(profile) if !limits.profiles.contains(profile) => {
            Err(format!("no `defaults {profile}` in the operator's files"))
        }
        setting if case.passes_through => passthrough::check_setting(setting),
        _ => Ok(()),
    }
}

/// Whether upstreams may be where this one says it is.
fn check_reachable(upstream: &Upstream, limits: &Policy) -> Result<(), String> {
    let ip = upstream.address.socket_addr().ip().to_canonical();
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
struct ValuePicker<'a> {
    remembered: Option<&'a BTreeMap<String, String>>,
    good_values: BTreeMap<String, String>,
    refusals: BTreeMap<String, String>,
}

impl ValuePicker<'_> {
    /// The key's own value if it is good, else the last good one.
    fn pick_value<T: Clone>(
        &mut self,
        field: &ParsedEntry<T>,
        reread: impl Fn(&[u8]) -> Result<T, Refusal>,
        vet: impl Fn(&T) -> Result<(), String>,
    ) -> Option<T> {
        let key = &field.entry.key;
        let own = field.value.as_ref().map_err(ToString::to_string);
        let reason = match own.and_then(|value| vet(value).map(|()| value)) {
            Ok(value) => {
                self.good_values.insert(key.clone(), String::from_utf8_lossy(&field.entry.value).into_owned());
                if let Some(unread) = &field.refused_words {
                    self.refusals.insert(key.clone(), unread.to_string());
                }
                return Some(value.clone());
            }
            Err(reason) => reason,
        };
        let last = self.remembered.and_then(|good| good.get(key));
        let value = last.and_then(|text| reread(text.as_bytes()).ok()).filter(|value| vet(value).is_ok());
        let outcome = if value.is_some() { "the last good value serves" } else { "no good value yet" };
        self.refusals.insert(key.clone(), format!("{reason}; {outcome}"));
        if let (Some(_), Some(text)) = (&value, last) {
            self.good_values.insert(key.clone(), text.clone());
        }
        value
    }

    /// The setting without the hosts that the service may not claim.
    fn drop_disallowed_hosts(&mut self, key: &str, setting: Setting, case: &Context) -> Setting {
        let (Setting::Domain(domains), Some(allowed)) = (&setting, &case.limits.domain_allowlist) else {
            return setting;
        };
        let mut reasons: Vec<String> = self.refusals.remove(key).into_iter().collect();
        let mut kept = domains.clone();
        kept.retain(|domain| match allowed.check_domain(&case.id.name, domain) {
            Ok(()) => true,
            Err(reason) => {
                reasons.push(reason);
                false
            }
        });
        if !reasons.is_empty() {
            self.refusals.insert(key.to_owned(), reasons.join("; "));
        }
        Setting::Domain(kept)
    }
}
