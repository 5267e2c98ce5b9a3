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
    args::{self, Cli, OneShot},
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

impl Cli {
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn resolve(line: &str) -> Result<Config, String> {
        resolve_on(line, &Host { hostname: "web1.example.com".to_owned(), private_ipv4: None })
    }

    fn resolve_on(line: &str, host: &Host) -> Result<Config, String> {
        let words = std::iter::once("announcer").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        cli.resolve(host).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(line: &str, word: &str) {
        let error = resolve(line).expect_err(line);
        assert!(error.contains(word), "{line}: {error}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrapped_app() {
        let config =
            resolve("--domain Shop.a.com,b.com --port 8000 --drain 3s --stop-signal int -- node --port 1 x").unwrap();
        let Announcement { service, id, weight, color, settings } = config.announcement;
        assert_eq!(service.to_string(), "http-shop.a.com");
        assert_eq!((id.as_str(), weight, color), ("web1.example.com-8000", Weight::DEFAULT, None));
        assert_eq!(settings.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop.a.com b.com"]);
        assert_eq!(config.whereabouts, Whereabouts::Find { port: 8000, by: Finder::TowardsEtcd });
        let Form::Run(life) = config.form else { panic!() };
        let app = life.app.unwrap();
        assert_eq!((app.program.to_str(), app.arguments.len()), (Some("node"), 3));
        assert_eq!((life.ttl.as_secs(), life.drain.as_secs(), app.stop_timeout.as_secs()), (10, 3, 10));
        assert_eq!(app.stop_signal, Signal::SIGINT);
        assert!(app.listens.is_empty());
    }

    #[test]
    fn beside_an_app_and_one_shot() {
        let config = resolve("--domain a.com --upstream 10.0.0.1:80 --id x --weight 7 --color blue").unwrap();
        assert!(matches!(config.form, Form::Run(life) if life.app.is_none()));
        assert_eq!(config.announcement.color.unwrap().as_str(), "blue");
        let config = resolve("register --domain a.com --upstream 10.0.0.1:80 --ttl 1m").unwrap();
        assert!(matches!(config.form, Form::Register(Some(ttl)) if ttl.as_secs() == 60));
        let config = resolve("deregister --domain a.com --upstream 10.0.0.1:80").unwrap();
        assert!(matches!(config.form, Form::Deregister));
        refused("deregister --domain a.com --upstream 10.0.0.1:80 -- node", "unexpected argument");
    }

    #[test]
    fn the_service_has_a_name() {
        let name =
            |line: &str| resolve(&format!("{line} --upstream 10.0.0.1:80")).map(|c| c.announcement.service.to_string());
        assert_eq!(name("--domain *.a.com --service shop"), Ok("http-shop".to_owned()));
        assert_eq!(name("--service default"), Ok("http-default".to_owned()));
        assert_eq!(name("--type tcp --service db --ports 3306"), Ok("tcp-db".to_owned()));
        refused("--upstream 10.0.0.1:80", "--domain");
        refused("--domain *.a.com --upstream 10.0.0.1:80", "--service");
        refused("--type tcp --ports 3306 --upstream 10.0.0.1:80", "--service");
        refused("--service a/b --upstream 10.0.0.1:80", "a/b");
    }

    #[test]
    fn settings_are_checked_here_not_by_balancers() {
        let line = "--service a --upstream 10.0.0.1:80";
        let config =
            resolve(&format!("{line} --tls terminate --set balance=leastconn --set maxconn=9;sticky=cookie")).unwrap();
        let text: Vec<_> = config.announcement.settings.iter().map(|s| format!("{}={s}", s.name())).collect();
        assert_eq!(text, ["tls=terminate", "balance=leastconn", "maxconn=9", "sticky=cookie"]);
        for (options, word) in [
            ("--tls maybe", "--tls \"maybe\""),
            ("--set balance", "KEY=VALUE"),
            ("--set colour=blue", "colour"),
            ("--set balance=fastest", "--set balance"),
            ("--tls off --set tls=both", "twice"),
            ("--ports 80", "http services"),
            ("--type tcp --domain a.com", "tcp services"),
            ("--weight 257", "257"),
            ("--ttl 1s", "2s"),
            ("--stop-signal NOPE", "SIGTERM"),
            ("--endpoints ftp://x", "ftp"),
        ] {
            refused(&format!("{line} {options}"), word);
        }
    }

    #[test]
    fn an_address_that_is_given_beats_one_that_is_found() {
        let host = |private: &str| Host { hostname: "h".to_owned(), private_ipv4: Some(private.to_owned()) };
        let on = |line: &str, private: &str| {
            resolve_on(&format!("--service a {line}"), &host(private)).map(|config| config.whereabouts)
        };
        let found = |by| Ok(Whereabouts::Find { port: 80, by });
        assert_eq!(on("--upstream 10.0.0.1:80", "10.9.9.9"), Ok(Whereabouts::Given("10.0.0.1:80".parse().unwrap())));
        assert_eq!(on("--port 80 --interface eth0", "10.9.9.9"), found(Finder::Interface("eth0".to_owned())));
        assert_eq!(on("--port 80", "10.9.9.9"), found(Finder::Private("10.9.9.9".parse().unwrap())));
        assert_eq!(on("--port 80", ""), found(Finder::TowardsEtcd));
        assert!(on("--port 80", "eth0").unwrap_err().contains("COREOS_PRIVATE_IPV4"));
        refused("--service a", "--upstream");
        refused("--service a --port 0", "0");
        refused("--service a --upstream 10.0.0.1:80 --interface eth0", "--interface");
        refused("--service a --upstream example.com:80", "example.com");
    }

    #[test]
    fn a_published_port_is_not_where_the_app_listens() {
        let config = resolve("--service a --upstream 10.0.0.1:8000 --port 3000 -- node").unwrap();
        assert_eq!(config.announcement.id.as_str(), "web1.example.com-8000");
        let Form::Run(life) = config.form else { panic!() };
        let listens: Vec<_> = life.app.unwrap().listens.iter().map(ToString::to_string).collect();
        assert_eq!(listens, ["127.0.0.1:3000", "[::1]:3000"]);
        refused("--service a --upstream 10.0.0.1:8000 --port 3000", "--port");
    }

    #[test]
    fn an_odd_hostname_asks_for_an_id() {
        let host = Host { hostname: "_x".to_owned(), private_ipv4: None };
        let error = resolve_on("--service a --port 80", &host).unwrap_err();
        assert!(error.contains("--id") && error.contains("_x-80"), "{error}");
    }
}
