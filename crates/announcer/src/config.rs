//! What the command line means: pure, and checked as far as it can be without looking at the store or the network.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use discovery::{Color, Domain, Kind, Refusal, ServiceId, ServiceName, Setting, SettingName, UpstreamId, Weight};
use nix::sys::signal::Signal;

use crate::{
    address::{Finder, Whereabouts},
    args::{self, Args, OneShot},
    host::Host,
};

/// etcd grants no lease shorter than this.
const SHORTEST_TTL: Duration = Duration::from_secs(2);

/// A command line that makes sense.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) etcd: registry::Config,
    pub(crate) announcement: Announcement,
    pub(crate) whereabouts: Whereabouts,
    pub(crate) policy: Policy,
    pub(crate) form: Form,
}

/// What is announced, but for the address, which may have to be found first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) service: ServiceId,
    pub(crate) id: UpstreamId,
    pub(crate) weight: Weight,
    pub(crate) color: Option<Color>,
    /// At most one value for each name.
    pub(crate) settings: Vec<Setting>,
}

/// What may be done to keys that say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Overwrite settings.
    pub(crate) update: bool,
    /// Take the id over from another address.
    pub(crate) takeover: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Form {
    /// Announce until told to stop.
    Run(Box<Life>),
    /// Write the record, for this long if given.
    Register(Option<Duration>),
    /// Delete the record.
    Deregister,
}

/// The parameters of an announcement that lives as long as its announcer.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) ttl: Duration,
    pub(crate) drain: Duration,
    /// The app; None when something else runs it.
    pub(crate) app: Option<App>,
}

/// The app to run.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// Where it listens on this host, any of them; empty if that is where it is announced.
    pub(crate) listens: Vec<SocketAddr>,
    pub(crate) stop_signal: Signal,
    pub(crate) stop_timeout: Duration,
}

/// Options that can't work together, or not at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Etcd(#[from] registry::ConfigError),
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
    #[error("--upstream says it all; --port beside it is where a wrapped app listens, and there is no command")]
    PortBesideUpstream,
    #[error("--id is needed: {hostname}-{port} is no good one ({refusal})")]
    NoId { hostname: String, port: u16, refusal: Refusal },
    #[error("COREOS_PRIVATE_IPV4={0:?} is no IP address; correct it, or give --interface or --upstream")]
    PrivateIpv4(String),
    #[error("--ttl {} is too short: etcd grants no lease under 2s", humantime::format_duration(*.0))]
    Ttl(Duration),
}

impl Args {
    /// Checks the options against each other, with the defaults that this host gives.
    pub(crate) fn resolve(self, host: &Host) -> Result<Config, ConfigError> {
        let Self { one_shot, common, life, command } = self;
        let mut command = command.into_iter();
        match one_shot {
            Some(OneShot::Register { common, ttl }) => {
                ttl.map_or(Ok(()), check_ttl)?;
                resolve(common, host, Form::Register(ttl))
            }
            Some(OneShot::Deregister { common }) => resolve(common, host, Form::Deregister),
            None => {
                check_ttl(life.ttl)?;
                let app = command.next().map(|program| App {
                    program,
                    arguments: command.collect(),
                    listens: listens(&common.upstream),
                    stop_signal: life.stop_signal,
                    stop_timeout: life.stop_timeout,
                });
                resolve(common, host, Form::Run(Box::new(Life { ttl: life.ttl, drain: life.drain, app })))
            }
        }
    }
}

fn resolve(common: args::Common, host: &Host, form: Form) -> Result<Config, ConfigError> {
    let args::Common { service, upstream, etcd, log_level: _ } = common;
    let wraps = matches!(&form, Form::Run(life) if life.app.is_some());
    let whereabouts = whereabouts(&upstream, wraps, host)?;
    let policy = Policy { update: service.update, takeover: upstream.takeover };
    let settings = settings(&service)?;
    let announcement = Announcement {
        service: ServiceId { kind: service.kind.into(), name: service_name(&service, &settings)? },
        id: upstream.id.map_or_else(|| default_id(host, whereabouts.port()), Ok)?,
        weight: upstream.weight,
        color: upstream.color,
        settings,
    };
    Ok(Config { etcd: etcd.resolve()?, announcement, whereabouts, policy, form })
}

fn check_ttl(ttl: Duration) -> Result<(), ConfigError> {
    if ttl < SHORTEST_TTL { Err(ConfigError::Ttl(ttl)) } else { Ok(()) }
}

fn settings(service: &args::Service) -> Result<Vec<Setting>, ConfigError> {
    let kind = Kind::from(service.kind);
    let lists = [
        (SettingName::Domain, service.domain.join(" ")),
        (SettingName::Path, service.path.join(" ")),
        (SettingName::Tls, service.tls.clone().unwrap_or_default()),
        (SettingName::Ports, service.ports.join(" ")),
    ];
    let mut settings = Vec::new();
    for (name, text) in lists.into_iter().filter(|(_, text)| !text.is_empty()) {
        settings.push(setting(kind, name, &text, &format!("--{name}"))?);
    }
    for text in service.settings.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let (name, value) = text.split_once('=').ok_or_else(|| ConfigError::NoValue(text.to_owned()))?;
        let refused = |refusal| ConfigError::Value { option: "--set".to_owned(), given: text.to_owned(), refusal };
        let name: SettingName = name.trim().parse().map_err(refused)?;
        if settings.iter().any(|setting| setting.name() == name) {
            return Err(ConfigError::Twice(name));
        }
        settings.push(setting(kind, name, value, &format!("--set {name}"))?);
    }
    Ok(settings)
}

fn setting(kind: Kind, name: SettingName, text: &str, option: &str) -> Result<Setting, ConfigError> {
    Setting::parse(kind, name, text.as_bytes()).map_err(|refusal| ConfigError::Value {
        option: option.to_owned(),
        given: text.to_owned(),
        refusal,
    })
}

/// The whole first domain, so that foo.a.com and foo.b.com never meet.
fn service_name(service: &args::Service, settings: &[Setting]) -> Result<ServiceName, ConfigError> {
    if let Some(name) = &service.service {
        return Ok(name.clone());
    }
    let first = settings.iter().find_map(|setting| match setting {
        Setting::Domain(domains) => domains.first(),
        _ => None,
    });
    match (Kind::from(service.kind), first) {
        (Kind::Tcp, _) => Err(ConfigError::NoTcpService),
        (Kind::Http, None) => Err(ConfigError::NoService),
        (Kind::Http, Some(domain)) => {
            domain.to_string().parse().map_err(|_| ConfigError::NoNameFromDomain { domain: domain.clone() })
        }
    }
}

fn default_id(host: &Host, port: u16) -> Result<UpstreamId, ConfigError> {
    let hostname = host.hostname.clone();
    format!("{hostname}-{port}").parse().map_err(|refusal| ConfigError::NoId { hostname, port, refusal })
}

fn whereabouts(upstream: &args::Upstream, wraps: bool, host: &Host) -> Result<Whereabouts, ConfigError> {
    match (upstream.upstream, upstream.port) {
        (Some(_), Some(_)) if !wraps => Err(ConfigError::PortBesideUpstream),
        (Some(address), _) => Ok(Whereabouts::Given(address)),
        (None, Some(port)) => {
            let by = match (&upstream.interface, host.private_ipv4.as_deref().filter(|text| !text.is_empty())) {
                (Some(interface), _) => Finder::Interface(interface.clone()),
                (None, Some(text)) => {
                    Finder::Private(text.parse().map_err(|_| ConfigError::PrivateIpv4(text.to_owned()))?)
                }
                (None, None) => Finder::TowardsEtcd,
            };
            Ok(Whereabouts::Find { port, by })
        }
        (None, None) => Err(ConfigError::NoUpstream),
    }
}

/// With both an address and a port, the address is a way in from outside (a published port of a container), and the
/// app itself is next door.
fn listens(upstream: &args::Upstream) -> Vec<SocketAddr> {
    match (upstream.upstream, upstream.port) {
        (Some(_), Some(port)) => {
            [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| (ip, port).into()).to_vec()
        }
        _ => Vec::new(),
    }
}
