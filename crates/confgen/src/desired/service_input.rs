//! One service's keys, each with the value that counts: its own if that is good, else the last good one. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use discovery::{
    Bind, Color, Domain, Override, ParsedEntry, PathPrefix, Refusal, Service, ServiceId, Setting, SettingName, Tls,
    Upstream, UpstreamId, UrlRegex,
};

use super::{Policy, Settings, passthrough};
use crate::desired::good_records::GoodRecords;
use crate::desired::good_values::{GoodValues, LastGood};

/// The key that claims something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyOrigin {
    pub(super) key: String,
    /// The create revision. The lowest wins a claim without an owner.
    pub(super) since: i64,
}

/// The values of one service's keys that count.
#[derive(Clone, Debug)]
pub(super) struct ServiceInput {
    /// Settings that claim nothing.
    pub(super) settings: Settings,
    pub(super) domains: Vec<Domain>,
    pub(super) domains_origin: KeyOrigin,
    /// Path prefixes. The root if no key sets any. Empty if the key has no good value.
    pub(super) paths: Vec<PathPrefix>,
    pub(super) ports: Vec<Bind>,
    pub(super) ports_origin: KeyOrigin,
    /// The old layout's expression, with the create revision of its key.
    pub(super) url_reg: Option<(i64, UrlRegex)>,
    pub(super) hsts_origin: KeyOrigin,
    /// By color that can be previewed: the hosts that lead to it.
    pub(super) previews: BTreeMap<Color, Vec<Domain>>,
    pub(super) previews_origin: KeyOrigin,
    pub(super) upstreams: GoodRecords,
    pub(super) overrides: BTreeMap<UpstreamId, Override>,
    /// Upstreams with good records that HAProxy has no room for.
    pub(super) without_room: BTreeSet<UpstreamId>,
    /// The number of upstreams that HAProxy has room for, retained ones included. `None` if all have room.
    pub(super) max_upstreams: Option<usize>,
    /// One of [`GATES`] has no good value, so no upstream gets a request.
    pub(super) upstreams_withheld: bool,
    pub(super) good_values: GoodValues,
    /// By key, the reason why its own value, or a part of it, doesn't count.
    pub(super) refusals: BTreeMap<String, String>,
}

/// The bound on a service's routes. A service with a thousand hosts needs less, and so many take a few megabytes in HAProxy.
pub(crate) const MAX_ROUTES: usize = 10_000;

/// Settings that decide access, or the protocol to upstreams. Without a good value, a request might reach an upstream that it
/// must not reach, or in a form that the upstream doesn't read.
pub(super) const GATES: [SettingName; 6] = [
    SettingName::Tls,
    SettingName::Sslpass,
    SettingName::Allow,
    SettingName::ProxyProtocol,
    SettingName::Proto,
    SettingName::Active,
];

/// The number of sections in which an upstream may have a server with a check of its own. A previewed color has one more.
pub(super) fn count_sections(service: &Service) -> usize {
    if service.setting(SettingName::Preview).is_some() { 2 } else { 1 }
}

/// Reads a service's keys.
pub(super) fn read_input(id: &ServiceId, service: &Arc<Service>, last_good: LastGood, policy: &Policy) -> ServiceInput {
    let mut picker = ValuePicker { last_good, good_values: GoodValues::default(), refusals: BTreeMap::new() };
    let (settings, without) = pick_settings(&mut picker, id, service, policy);
    let mut input = ServiceInput::without_settings(service);
    for (id, record) in service.upstreams() {
        let upstream = picker.pick_value(record, Upstream::parse, |upstream| check_reachable(upstream, policy));
        if !matches!(upstream, Some(Cow::Borrowed(_))) {
            input.upstreams.replace(id, upstream.map(Cow::into_owned));
        }
    }
    for (id, entry) in service.overrides() {
        let imposed = picker.pick_value(entry, Override::parse, |_| Ok(()));
        input.overrides.extend(imposed.map(|imposed| (id.clone(), imposed.into_owned())));
    }
    (input.good_values, input.refusals) = (picker.good_values, picker.refusals);
    input.limit_upstreams(id, service, policy);
    input.upstreams_withheld = GATES.iter().any(|gate| without.contains(gate));
    // Not the root: the service would take requests of the host's other services.
    if without.contains(&SettingName::Path) {
        input.paths.clear();
    }
    for (origin, setting) in settings {
        if let Setting::Verify(verify) = &setting {
            input.refusals.extend(policy.ca_files.outdated_reason(verify).map(|reason| (origin.key.clone(), reason)));
        }
        input.apply_setting(origin, setting, policy);
    }
    input.check_upstream_tls(service, &without);
    input.limit_routes(service);
    input.name_previews(id, policy);
    input
}

/// Picks the values of all settings. Also returns the settings that are set and have no good value.
fn pick_settings(
    picker: &mut ValuePicker,
    id: &ServiceId,
    service: &Service,
    policy: &Policy,
) -> (Vec<(KeyOrigin, Setting)>, BTreeSet<SettingName>) {
    let (mut settings, mut without) = (Vec::new(), BTreeSet::new());
    let passthrough_conflict = passthrough::conflict_reason(id, service);
    let mut context = Context { id, policy, passthrough_conflict, passes_through: false };
    // In the order of the table: `tls` comes before the settings that depend on pass-through.
    for (name, entry) in service.settings() {
        // `sslpass` is the old layout's word for one value of `tls`.
        if name == SettingName::Sslpass && service.setting(SettingName::Tls).is_some() {
            picker.good_values.mark_unused(&entry.entry.key);
            continue;
        }
        if let Some(reason) = passthrough::unused_setting_reason(name).filter(|_| context.passes_through) {
            picker.refusals.insert(entry.entry.key.clone(), reason.into());
            picker.good_values.mark_unused(&entry.entry.key);
            continue;
        }
        let picked = picker.pick_value(
            entry,
            |value| Setting::parse_stored(service.kind(), name, value).value,
            |setting| check_setting(&context, setting),
        );
        match picked {
            Some(setting) => {
                context.passes_through |= passthrough::is_requested_by(&setting);
                let setting = picker.drop_disallowed_hosts(&entry.entry.key, setting.into_owned(), &context);
                settings.push((key_origin(entry), setting));
            }
            None => _ = without.insert(name),
        }
    }
    (settings, without)
}

impl ServiceInput {
    fn without_settings(service: &Arc<Service>) -> Self {
        Self {
            settings: Settings::defaults_for(service.kind()),
            domains: Vec::new(),
            domains_origin: KeyOrigin::default(),
            paths: vec![PathPrefix::root()],
            ports: Vec::new(),
            ports_origin: KeyOrigin::default(),
            url_reg: None,
            hsts_origin: KeyOrigin::default(),
            previews: BTreeMap::new(),
            previews_origin: KeyOrigin::default(),
            upstreams: GoodRecords::new(Arc::clone(service)),
            overrides: BTreeMap::new(),
            without_room: BTreeSet::new(),
            max_upstreams: None,
            upstreams_withheld: false,
            good_values: GoodValues::default(),
            refusals: BTreeMap::new(),
        }
    }

    /// True if nothing changed that could affect other services' claims.
    pub(super) fn has_same_claims(&self, other: &Self) -> bool {
        self.naming_parts() == other.naming_parts()
            && (&self.previews, &self.previews_origin) == (&other.previews, &other.previews_origin)
            && (self.settings.tls == Tls::Off) == (other.settings.tls == Tls::Off)
            && self.settings.passes_through() == other.settings.passes_through()
    }

    fn naming_parts(&self) -> (&[Domain], &KeyOrigin, &[PathPrefix], &[Bind], &KeyOrigin) {
        (&self.domains, &self.domains_origin, &self.paths, &self.ports, &self.ports_origin)
    }

    /// Leaves out the newest upstreams if HAProxy has no room for all. The upstreams that already serve go on.
    fn limit_upstreams(&mut self, id: &ServiceId, service: &Service, policy: &Policy) {
        let Some(bound) = &policy.upstream_bound else { return };
        // Each service keeps one upstream, however little room there is.
        let most = (bound.max_per_service / count_sections(service)).max(1).max(bound.served.count_upstreams(id));
        self.max_upstreams = Some(most);
        if self.upstreams.len() <= most {
            return;
        }
        let mut ids: Vec<UpstreamId> = self.upstreams.iter().map(|(id, _)| id.clone()).collect();
        ids.sort_by_cached_key(|upstream| {
            let since = service.upstream(upstream).map(|record| record.entry.create_revision);
            (!bound.served.has_upstream(id, upstream), since)
        });
        self.without_room.extend(ids.split_off(most));
        self.without_room.iter().for_each(|id| self.upstreams.replace(id, None));
        let records = self.without_room.iter().filter_map(|id| service.upstream(id));
        self.refusals.extend(records.map(|record| (record.entry.key.clone(), bound.exceeded_reason())));
    }

    /// Drops all paths if there are too many routes. Each host goes with each path, so two values of a few kilobytes can ask for
    /// millions.
    fn limit_routes(&mut self, service: &Service) {
        let (hosts, paths) = (self.domains.len(), self.paths.len());
        if let Some(entry) = service.setting(SettingName::Path).filter(|_| hosts.saturating_mul(paths) > MAX_ROUTES) {
            let reason =
                format!("{hosts} hosts with {paths} paths each; {MAX_ROUTES} routes are the most; none is served");
            self.refusals.insert(entry.entry.key.clone(), reason);
            self.paths.clear();
        }
    }

    fn apply_setting(&mut self, origin: KeyOrigin, setting: Setting, policy: &Policy) {
        let settings = &mut self.settings;
        match setting {
            Setting::Domain(domains) => (self.domains, self.domains_origin) = (domains, origin),
            Setting::Path(paths) => self.paths = paths,
            Setting::UrlReg(regex) => self.url_reg = Some((origin.since, regex)),
            Setting::Ports(ports) => (self.ports, self.ports_origin) = (ports, origin),
            Setting::Tls(tls) => settings.tls = tls,
            Setting::Balance(balance) => settings.balance = balance,
            Setting::Check(check) => settings.check = check,
            Setting::Sticky(sticky) => settings.sticky = sticky,
            Setting::Allow(networks) => settings.allow = Some(networks),
            Setting::Maxconn(most) => settings.maxconn = Some(most),
            Setting::Slowstart(span) => settings.slowstart = Some(span),
            Setting::Hsts(hsts) => (settings.hsts, self.hsts_origin) = (Some(hsts), origin),
            Setting::ProxyProtocol(version) => settings.proxy_protocol = version,
            Setting::Proto(version) => settings.proto = version,
            Setting::Verify(verify) => settings.trust = policy.ca_files.resolve_trust(&verify).unwrap_or_default(),
            Setting::Sni(sni) => settings.sni = sni,
            Setting::Profile(profile) => {
                settings.fixed_servers = policy.server_profiles.contains(&profile);
                settings.profile = Some(profile);
            }
            Setting::Active(active) => settings.active = Some(active),
            Setting::Preview(networks) => (settings.preview, self.previews_origin) = (Some(networks), origin),
            Setting::Sslpass(()) => settings.tls = Tls::Passthrough,
        }
    }
}

fn key_origin<T>(entry: &ParsedEntry<T>) -> KeyOrigin {
    KeyOrigin { key: entry.entry.key.clone(), since: entry.entry.create_revision }
}

/// The facts that decide whether a good value can be applied here.
struct Context<'a> {
    id: &'a ServiceId,
    policy: &'a Policy,
    /// The reason why the service can't pass TLS through. `None` if it can.
    passthrough_conflict: Option<String>,
    /// The settings that were read so far ask for pass-through.
    passes_through: bool,
}

/// Checks a good value against policy and pass-through. The error is the reason why it can't be applied.
fn check_setting(context: &Context, setting: &Setting) -> Result<(), String> {
    let Context { id, policy, passthrough_conflict, .. } = context;
    if let Some(reason) = passthrough_conflict.as_ref().filter(|_| passthrough::is_requested_by(setting)) {
        return Err(reason.clone());
    }
    match setting {
        Setting::Domain(domains) => {
            policy.domain_allowlist.as_ref().map_or(Ok(()), |it| it.check_some_domain(&id.name, domains))
        }
        Setting::UrlReg(_) => policy.domain_allowlist.as_ref().map_or(Ok(()), |it| it.check_catch_all(&id.name)),
        Setting::Verify(verify) => policy.ca_files.check_verify(verify),
        Setting::Profile(profile) if !policy.profiles.contains(profile) => {
            Err(format!("no `defaults {profile}` in the operator's files"))
        }
        setting if context.passes_through => passthrough::check_setting(setting),
        _ => Ok(()),
    }
}

/// Checks that the policy allows the upstream's address.
fn check_reachable(upstream: &Upstream, policy: &Policy) -> Result<(), String> {
    // `::ffff:127.0.0.1` is loopback too.
    let ip = upstream.address.socket_addr().ip().to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_allowed = match &policy.upstream_networks {
        Some(networks) => networks.contains(&ip),
        None => !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || is_link_local),
    };
    if is_allowed { Ok(()) } else { Err(format!("{}: --upstream-networks doesn't allow it", upstream.address)) }
}

/// Picks the value of each key. It notes good values for the next time, and the reasons against the others.
struct ValuePicker<'a> {
    last_good: LastGood<'a>,
    good_values: GoodValues,
    refusals: BTreeMap<String, String>,
}

impl ValuePicker<'_> {
    /// Returns the key's own value if it is good (borrowed), else the last good one (owned). `None` if there is neither. The last
    /// good value is parsed and checked anew, because the policy may have changed.
    fn pick_value<'a, T: Clone>(
        &mut self,
        entry: &'a ParsedEntry<T>,
        parse: impl Fn(&[u8]) -> Result<T, Refusal>,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Option<Cow<'a, T>> {
        let key = &entry.entry.key;
        let own = entry.value.as_ref().map_err(ToString::to_string);
        let reason = match own.and_then(|value| check(value).map(|()| value)) {
            Ok(value) => {
                if let Some(words) = &entry.refused_words {
                    self.refusals.insert(key.clone(), words.to_string());
                }
                return Some(Cow::Borrowed(value));
            }
            Err(reason) => reason,
        };
        // A good value may be bad by now: a CA file or a profile that it names can be gone.
        let last = self.last_good.find(key);
        let value = last.as_ref().and_then(|text| parse(text.as_bytes()).ok()).filter(|value| check(value).is_ok());
        let outcome = if value.is_some() { "the last good value serves" } else { "no good value yet" };
        self.refusals.insert(key.clone(), format!("{reason}; {outcome}"));
        self.good_values.mark_unused(key);
        if let (Some(_), Some(text)) = (&value, last) {
            self.good_values.insert_earlier(key, text.into_owned());
        }
        value.map(Cow::Owned)
    }

    /// Drops the hosts of `domain` that `--domains-file` doesn't give to the service. A rejected host costs that host only.
    fn drop_disallowed_hosts(&mut self, key: &str, setting: Setting, context: &Context) -> Setting {
        let (Setting::Domain(domains), Some(allowlist)) = (&setting, &context.policy.domain_allowlist) else {
            return setting;
        };
        let mut reasons: Vec<String> = self.refusals.remove(key).into_iter().collect();
        let mut allowed = domains.clone();
        allowed.retain(|domain| match allowlist.check_domain(&context.id.name, domain) {
            Ok(()) => true,
            Err(reason) => {
                reasons.push(reason);
                false
            }
        });
        if !reasons.is_empty() {
            self.refusals.insert(key.to_owned(), reasons.join("; "));
        }
        Setting::Domain(allowed)
    }
}
