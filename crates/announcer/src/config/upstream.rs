//! Resolves one upstream's options. Pure: no store, no network, no file.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use discovery::{
    Color, Domain, HostName, Key, Kind, Refusal, ServiceId, ServiceName, Setting, SettingName, UpstreamId, Weight,
};

use crate::config::address::{AddressFinder, AddressSource};
use crate::config::host::Host;
use crate::config::upstream_options::Announce;
use crate::health::check::{Check, CheckError, Checks, HttpOptions};
use crate::health::{Thresholds, check};

/// Checked options of one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub announcement: Announcement,
    pub address_source: AddressSource,
    pub overwrite_rules: OverwriteRules,
    pub checks: Checks,
    /// Addresses on this host, one of which the app must accept on. Empty if the announced address is checked.
    pub listen_addresses: Vec<SocketAddr>,
}

/// Announced values without the address, which may have to be found first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The service.
    pub service: ServiceId,
    /// The upstream's id in it.
    pub id: UpstreamId,
    /// 0 to 256.
    pub weight: Weight,
    /// `None` without a color.
    pub color: Option<Color>,
    /// `None` if neither `--host-name` nor the system gives a valid one.
    pub host: Option<HostName>,
    /// At most one value for each name.
    pub settings: Vec<Setting>,
}

/// Permissions to overwrite keys in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverwriteRules {
    /// `--update`: overwrite settings that differ.
    pub update: bool,
    /// `--takeover`: take the id over from another address.
    pub takeover: bool,
    /// Take the id over from another address of this host. The agent of a host is the only one that has its ids.
    pub takeover_on_host: bool,
}

/// Options of one upstream that contradict each other, or are invalid.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("{option} {given:?}: {refusal}")]
    Value { option: String, given: String, refusal: Refusal },
    #[error("--set {0:?}: a setting is written KEY=VALUE, as in --set balance=leastconn")]
    NoValue(String),
    #[error("the setting {0} is given twice")]
    Twice(SettingName),
    #[error("no service: give --domain HOST, or --service NAME")]
    NoService,
    #[error("a TCP service needs --service NAME")]
    NoTcpService,
    #[error("--domain {domain} names no service by itself: give --service NAME beside it")]
    NoNameFromDomain { domain: Domain },
    #[error("no upstream: give --upstream IP:PORT, or --port PORT to have the address found")]
    NoUpstream,
    #[error("--port 0 is no port: give the one that the app listens on")]
    NoPort,
    #[error("--upstream says it all; --port beside it is where a wrapped app listens, and there is no command")]
    PortBesideUpstream,
    #[error("--upstream says it all; --interface beside it would have the address found")]
    InterfaceBesideUpstream,
    #[error("--id is needed: {hostname}-{port} is no good one ({refusal})")]
    NoId { hostname: String, port: u16, refusal: Refusal },
    #[error("COREOS_PRIVATE_IPV4={0:?} is no IP address; correct it, or give --interface or --upstream")]
    PrivateIpv4(String),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("{option} must be longer than no time at all")]
    NoTime { option: &'static str },
}

impl UpstreamError {
    /// Key of the config file that the error is about. Empty if it is about the upstream as a whole.
    pub fn file_key(&self) -> &str {
        match self {
            Self::Value { option, .. } => option.trim_start_matches('-').split(' ').next().unwrap_or_default(),
            Self::NoValue(_) | Self::Twice(_) => "set",
            Self::NoNameFromDomain { .. } => "domain",
            Self::PortBesideUpstream | Self::NoPort => "port",
            Self::InterfaceBesideUpstream => "interface",
            Self::Check(error) => error.option_name(),
            Self::NoTime { option } => option.trim_start_matches('-'),
            Self::NoService | Self::NoTcpService | Self::NoUpstream | Self::NoId { .. } | Self::PrivateIpv4(_) => "",
        }
    }
}

impl Upstream {
    /// Service and id, the two parts of its key.
    pub fn service_and_id(&self) -> (ServiceId, UpstreamId) {
        (self.announcement.service.clone(), self.announcement.id.clone())
    }

    /// Checks the options and adds this host's defaults. `runs_app` is true if the announcer starts the app.
    pub fn resolve(announce: Announce, host: &Host, runs_app: bool) -> Result<Self, UpstreamError> {
        let address_source = resolve_address_source(&announce, runs_app, host)?;
        let settings = parse_settings(&announce)?;
        let name = choose_service_name(&announce, &settings)?;
        let id = announce.id.clone().map_or_else(|| default_id(host, address_source.port()), Ok)?;
        Ok(Self {
            overwrite_rules: OverwriteRules {
                update: announce.update,
                takeover: announce.takeover,
                takeover_on_host: false,
            },
            checks: parse_checks(&announce)?,
            listen_addresses: find_listen_addresses(&announce),
            address_source,
            announcement: Announcement {
                service: ServiceId { kind: announce.kind.into(), name },
                id,
                weight: announce.weight,
                color: announce.color,
                host: announce.host_name.or_else(|| host.name()),
                settings,
            },
        })
    }
}

/// Key, port and checks in one line.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Announcement { service, id, .. } = &self.announcement;
        write!(f, "{} port {}", Key::for_upstream(service, id), self.address_source.port())?;
        self.checks.all.iter().try_for_each(|check| write!(f, ", {check}"))
    }
}

fn parse_settings(announce: &Announce) -> Result<Vec<Setting>, UpstreamError> {
    let kind = Kind::from(announce.kind);
    let lists = [
        (SettingName::Domain, announce.domain.join(" ")),
        (SettingName::Path, announce.path.join(" ")),
        (SettingName::Tls, announce.tls.clone().unwrap_or_default()),
        (SettingName::Ports, announce.ports.join(" ")),
    ];
    let mut settings = Vec::new();
    for (name, text) in lists.into_iter().filter(|(_, text)| !text.is_empty()) {
        settings.push(parse_setting(kind, name, &text, &format!("--{name}"))?);
    }
    // A trailing semicolon in ANNOUNCER_SET leaves an empty text.
    for text in announce.settings.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let (name, value) = text.split_once('=').ok_or_else(|| UpstreamError::NoValue(text.to_owned()))?;
        let name: SettingName = name.trim().parse().map_err(|refusal| UpstreamError::Value {
            option: "--set".to_owned(),
            given: text.to_owned(),
            refusal,
        })?;
        if settings.iter().any(|setting| setting.name() == name) {
            return Err(UpstreamError::Twice(name));
        }
        settings.push(parse_setting(kind, name, value, &format!("--set {name}"))?);
    }
    Ok(settings)
}

fn parse_setting(kind: Kind, name: SettingName, text: &str, option: &str) -> Result<Setting, UpstreamError> {
    Setting::parse(kind, name, text.as_bytes()).map_err(|refusal| UpstreamError::Value {
        option: option.to_owned(),
        given: text.to_owned(),
        refusal,
    })
}

/// The service's name, by default the whole first domain: foo.a.com and foo.b.com must not become one service.
fn choose_service_name(announce: &Announce, settings: &[Setting]) -> Result<ServiceName, UpstreamError> {
    if let Some(name) = &announce.service {
        return Ok(name.clone());
    }
    let first = settings.iter().find_map(|setting| match setting {
        Setting::Domain(domains) => domains.first(),
        _ => None,
    });
    match (Kind::from(announce.kind), first) {
        (Kind::Tcp, _) => Err(UpstreamError::NoTcpService),
        (Kind::Http, None) => Err(UpstreamError::NoService),
        (Kind::Http, Some(domain)) => {
            domain.to_string().parse().map_err(|_| UpstreamError::NoNameFromDomain { domain: domain.clone() })
        }
    }
}

// The id has the port, so that two apps of one host have different ids.
fn default_id(host: &Host, port: u16) -> Result<UpstreamId, UpstreamError> {
    let hostname = host.hostname.clone();
    format!("{hostname}-{port}").parse().map_err(|refusal| UpstreamError::NoId { hostname, port, refusal })
}

fn resolve_address_source(announce: &Announce, runs_app: bool, host: &Host) -> Result<AddressSource, UpstreamError> {
    if announce.upstream.is_some() && announce.interface.is_some() {
        return Err(UpstreamError::InterfaceBesideUpstream);
    }
    match (announce.upstream, announce.port) {
        (Some(_), Some(_)) if !runs_app => Err(UpstreamError::PortBesideUpstream),
        (Some(address), _) => Ok(AddressSource::Given(address)),
        (None, Some(0)) => Err(UpstreamError::NoPort),
        (None, Some(port)) => {
            let by = match (&announce.interface, host.private_ipv4.as_deref().filter(|text| !text.is_empty())) {
                (Some(interface), _) => AddressFinder::Interface(interface.clone()),
                (None, Some(text)) => {
                    AddressFinder::Private(text.parse().map_err(|_| UpstreamError::PrivateIpv4(text.to_owned()))?)
                }
                (None, None) => AddressFinder::TowardsEtcd,
            };
            Ok(AddressSource::Find { port, by })
        }
        (None, None) => Err(UpstreamError::NoUpstream),
    }
}

/// Local addresses of the app. `--upstream` beside `--port` is a published port of a container, and the app itself
/// listens on this host's loopback.
fn find_listen_addresses(announce: &Announce) -> Vec<SocketAddr> {
    match (announce.upstream, announce.port) {
        (Some(_), Some(port)) => {
            [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| (ip, port).into()).to_vec()
        }
        _ => Vec::new(),
    }
}

fn parse_checks(announce: &Announce) -> Result<Checks, UpstreamError> {
    let options = HttpOptions {
        method: announce.check_method.clone(),
        status: announce.check_status,
        headers: announce.check_header.clone(),
        host: announce.check_host.clone(),
        insecure: announce.check_insecure,
        ca: announce.check_ca.clone(),
    };
    let times = [("--check-interval", announce.check_interval), ("--check-timeout", announce.check_timeout)];
    if let Some((option, _)) = times.into_iter().find(|(_, time)| time.0.is_zero()) {
        return Err(UpstreamError::NoTime { option });
    }
    let all =
        announce.check.iter().flat_map(|text| check::split_checks(text)).map(|text| Check::parse(&text, &options));
    Ok(Checks {
        all: all.collect::<Result<_, _>>()?,
        interval: announce.check_interval.0,
        timeout: announce.check_timeout.0,
        thresholds: Thresholds { rise: announce.check_rise, fall: announce.check_fall },
        grace: announce.check_grace.0,
    })
}
