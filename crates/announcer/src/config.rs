//! The resolved command line. Pure: no store, no network, no file.

pub(crate) mod address;
pub(crate) mod cli;
pub(crate) mod container_options;
pub(crate) mod file;
pub(crate) mod host;
pub(crate) mod upstream;
mod upstream_options;

use std::{ffi::OsString, time::Duration};

use discovery::{Key, SettingName};
use nix::sys::signal::Signal;

use crate::config::cli::{Cli, Common, OneShot};
use crate::config::file::{ConfigFile, FilePosition};
use crate::config::host::Host;
use crate::config::upstream::{Upstream, UpstreamError};
use crate::processes::stop_signal;

/// etcd's shortest lease: 1.5 times its election timeout of 1 s, in whole seconds.
pub(crate) const SHORTEST_TTL: Duration = Duration::from_secs(2);

/// Checked options of all modes.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) etcd: registry::Config,
    /// At least one entry. No two have the same key.
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) mode: Mode,
}

#[derive(Debug)]
pub(crate) enum Mode {
    /// Announce until a stop signal.
    Run(Box<RunParameters>),
    /// Write the records and exit. `None` writes them without a lease.
    Register(Option<Duration>),
    /// Delete the records that have our addresses, and exit.
    Deregister,
}

/// Options of [`Mode::Run`].
#[derive(Debug)]
pub(crate) struct RunParameters {
    pub(crate) ttl: Duration,
    pub(crate) drain: Duration,
    /// Numbers, since real-time signals have no name in `nix`.
    pub(crate) stop_on: Vec<i32>,
    /// READY waits for every live balancer, and for at least one.
    pub(crate) wait_balancers: bool,
    /// `None` if `--admin` is off.
    pub(crate) admin: Option<daemon::admin::Config>,
    /// `None` if something else runs the app.
    pub(crate) app: Option<App>,
}

/// Command line and stop options of the app.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    stop_signal: Option<Signal>,
    pub(crate) stop_timeout: Duration,
}

impl App {
    /// Stop signal for the app. `asked` is the signal that the announcer got.
    pub(crate) fn stop_signal(&self, asked: Option<i32>) -> Signal {
        self.stop_signal.unwrap_or_else(|| stop_signal::signal_for_app(asked))
    }
}

/// Options that contradict each other, or are invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Etcd(#[from] registry::ConfigError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("{place}: {source}")]
    InFile { place: Box<FilePosition>, source: UpstreamError },
    #[error("{place}: {key} is announced twice; give each upstream of a service an id of its own")]
    SameKey { place: Box<FilePosition>, key: Key },
    #[error("{place}: {name} of {key} is {other:?} here and {one:?} before: a setting is the whole service's")]
    Disagree { place: Box<FilePosition>, name: SettingName, key: Key, one: String, other: String },
    #[error(transparent)]
    Admin(#[from] daemon::admin::ArgsError),
    #[error("--ttl {} is too short: etcd grants no lease under 2s", humantime::format_duration(*.0))]
    Ttl(Duration),
}

impl Cli {
    /// Signals that ask for a stop, without duplicates. SIGTERM and SIGINT are always among them.
    pub(crate) fn stop_signals(&self) -> Vec<i32> {
        stop_signal::list_stop_signals(&self.life.stop_on)
    }

    /// Checks the options and adds this host's defaults. `file` is the content of `--config`.
    pub(crate) fn into_config(self, host: &Host, file: Option<ConfigFile>) -> Result<Config, ConfigError> {
        let stop_on = self.stop_signals();
        let Self { one_shot, common, life, admin, command } = self;
        let mut command = command.into_iter();
        match one_shot {
            Some(OneShot::Register { common, ttl }) => {
                ttl.map_or(Ok(()), check_ttl)?;
                build_config(*common, host, file, Mode::Register(ttl))
            }
            Some(OneShot::Deregister { common }) => build_config(*common, host, file, Mode::Deregister),
            Some(OneShot::CheckConfig { .. } | OneShot::Containers(_)) | None => {
                check_ttl(life.ttl)?;
                let app = command.next().map(|program| App {
                    program,
                    arguments: command.collect(),
                    stop_signal: life.stop_signal,
                    stop_timeout: life.stop_timeout,
                });
                let (ttl, drain, wait_balancers) = (life.ttl, life.drain, life.wait_balancers);
                let life = RunParameters { ttl, drain, stop_on, wait_balancers, admin: admin.resolve()?, app };
                build_config(common, host, file, Mode::Run(Box::new(life)))
            }
        }
    }
}

fn build_config(common: Common, host: &Host, file: Option<ConfigFile>, form: Mode) -> Result<Config, ConfigError> {
    let runs_app = matches!(&form, Mode::Run(life) if life.app.is_some());
    let upstreams = match file {
        Some(file) => resolve_file(file, host, runs_app)?,
        None => vec![Upstream::resolve(common.announce, host, runs_app)?],
    };
    Ok(Config { etcd: common.etcd.resolve()?, upstreams, mode: form })
}

fn check_ttl(ttl: Duration) -> Result<(), ConfigError> {
    if ttl < SHORTEST_TTL { Err(ConfigError::Ttl(ttl)) } else { Ok(()) }
}

/// Resolves all upstreams of a file. No key may occur twice, and upstreams of one service must have equal settings.
pub(crate) fn resolve_file(file: ConfigFile, host: &Host, runs_app: bool) -> Result<Vec<Upstream>, ConfigError> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    for (announce, place) in file.announces {
        let next = Upstream::resolve(announce, host, runs_app).map_err(|source| ConfigError::InFile {
            place: Box::new(place.clone().at_key(source.file_key())),
            source,
        })?;
        for before in &upstreams {
            check_agreement(before, &next, &place)?;
        }
        upstreams.push(next);
    }
    Ok(upstreams)
}

fn check_agreement(before: &Upstream, next: &Upstream, place: &FilePosition) -> Result<(), ConfigError> {
    let (one, other) = (&before.announcement, &next.announcement);
    if one.service != other.service {
        return Ok(());
    }
    if one.id == other.id {
        let key = Key::for_upstream(&other.service, &other.id);
        return Err(ConfigError::SameKey { place: Box::new(place.clone().at_key("id")), key });
    }
    // A setting belongs to the service. Two values would overwrite each other at every start.
    let differs = other.settings.iter().find_map(|setting| {
        let before = one.settings.iter().find(|before| before.name() == setting.name() && *before != setting)?;
        Some((before, setting))
    });
    match differs {
        None => Ok(()),
        Some((one, setting)) => Err(ConfigError::Disagree {
            place: Box::new(place.clone().at_key(setting.name().as_str())),
            name: setting.name(),
            key: Key::for_setting(&other.service, setting.name()),
            one: one.to_string(),
            other: setting.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use std::path::Path;

    use discovery::Weight;

    use super::*;
    use crate::config::address::{AddressFinder, AddressSource};
    use crate::config::upstream::Announcement;
    use crate::health::check::Check;

    fn resolve(line: &str) -> Result<Config, String> {
        resolve_on(line, &Host { hostname: "web1.example.com".to_owned(), private_ipv4: None })
    }

    fn resolve_on(line: &str, host: &Host) -> Result<Config, String> {
        let words = std::iter::once("announcer").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        cli.into_config(host, None).map_err(|error| error.to_string())
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
    fn the_page_of_options_is_the_code() {
        expect_test::expect_file!["../../../docs/flags-announcer.md"]
            .assert_eq(&manual::render_options_page(&Cli::command()));
    }

    #[test]
    fn a_wrapped_app() {
        let config =
            resolve("--domain Shop.a.com,b.com --port 8000 --drain 3s --stop-signal int -- node --port 1 x").unwrap();
        let Announcement { service, id, weight, color, host, settings } = config.upstreams[0].announcement.clone();
        assert_eq!(service.to_string(), "http-shop.a.com");
        assert_eq!((id.as_str(), weight, color), ("web1.example.com-8000", Weight::DEFAULT, None));
        assert_eq!(host.unwrap().as_str(), "web1.example.com");
        assert_eq!(settings.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop.a.com b.com"]);
        assert_eq!(
            config.upstreams[0].address_source,
            AddressSource::Find { port: 8000, by: AddressFinder::TowardsEtcd }
        );
        let Mode::Run(life) = config.mode else { panic!() };
        let app = life.app.unwrap();
        assert_eq!((app.program.to_str(), app.arguments.len()), (Some("node"), 3));
        assert_eq!((life.ttl.as_secs(), life.drain.as_secs(), app.stop_timeout.as_secs()), (10, 3, 10));
        assert_eq!(app.stop_signal(Some(3)), Signal::SIGINT, "what is given counts");
        assert!(life.admin.is_none(), "off by default");
        assert!(config.upstreams[0].listen_addresses.is_empty());
    }

    #[test]
    fn beside_an_app_and_one_shot() {
        let config = resolve("--domain a.com --upstream 10.0.0.1:80 --id x --weight 7 --color blue").unwrap();
        assert!(matches!(config.mode, Mode::Run(life) if life.app.is_none()));
        assert_eq!(config.upstreams[0].announcement.color.as_ref().unwrap().as_str(), "blue");
        let config = resolve("register --domain a.com --upstream 10.0.0.1:80 --ttl 1m").unwrap();
        assert!(matches!(config.mode, Mode::Register(Some(ttl)) if ttl.as_secs() == 60));
        let config = resolve("deregister --domain a.com --upstream 10.0.0.1:80").unwrap();
        assert!(matches!(config.mode, Mode::Deregister));
        refused("deregister --domain a.com --upstream 10.0.0.1:80 -- node", "unexpected argument");
    }

    #[test]
    fn the_service_has_a_name() {
        let name = |line: &str| {
            resolve(&format!("{line} --upstream 10.0.0.1:80")).map(|c| c.upstreams[0].announcement.service.to_string())
        };
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
        let text: Vec<_> =
            config.upstreams[0].announcement.settings.iter().map(|s| format!("{}={s}", s.name())).collect();
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
            ("--admin 10.0.0.1:9102", "--admin-token-file"),
            ("--stop-signal NOPE", "SIGTERM"),
            ("--stop-on QUIT,KILL", "SIGKILL can't ask for a stop"),
            ("--endpoints ftp://x", "ftp"),
        ] {
            refused(&format!("{line} {options}"), word);
        }
    }

    #[test]
    fn an_address_that_is_given_beats_one_that_is_found() {
        let host = |private: &str| Host { hostname: "h".to_owned(), private_ipv4: Some(private.to_owned()) };
        let on = |line: &str, private: &str| {
            resolve_on(&format!("--service a {line}"), &host(private))
                .map(|config| config.upstreams[0].address_source.clone())
        };
        let found = |by| Ok(AddressSource::Find { port: 80, by });
        assert_eq!(on("--upstream 10.0.0.1:80", "10.9.9.9"), Ok(AddressSource::Given("10.0.0.1:80".parse().unwrap())));
        assert_eq!(on("--port 80 --interface eth0", "10.9.9.9"), found(AddressFinder::Interface("eth0".to_owned())));
        assert_eq!(on("--port 80", "10.9.9.9"), found(AddressFinder::Private("10.9.9.9".parse().unwrap())));
        assert_eq!(on("--port 80", ""), found(AddressFinder::TowardsEtcd));
        assert!(on("--port 80", "eth0").unwrap_err().contains("COREOS_PRIVATE_IPV4"));
        refused("--service a", "--upstream");
        refused("--service a --port 0", "0");
        refused("--service a --upstream 10.0.0.1:80 --interface eth0", "--interface");
        refused("--service a --upstream example.com:80", "example.com");
    }

    #[test]
    fn a_published_port_is_not_where_the_app_listens() {
        let config = resolve("--service a --upstream 10.0.0.1:8000 --port 3000 -- node").unwrap();
        assert_eq!(config.upstreams[0].announcement.id.as_str(), "web1.example.com-8000");
        let listens: Vec<_> = config.upstreams[0].listen_addresses.iter().map(ToString::to_string).collect();
        assert_eq!(listens, ["127.0.0.1:3000", "[::1]:3000"]);
        refused("--service a --upstream 10.0.0.1:8000 --port 3000", "--port");
    }

    #[test]
    fn an_odd_hostname_asks_for_an_id() {
        let host = Host { hostname: "_x".to_owned(), private_ipv4: None };
        let error = resolve_on("--service a --port 80", &host).unwrap_err();
        assert!(error.contains("--id") && error.contains("_x-80"), "{error}");
    }

    #[test]
    fn a_record_names_its_host_if_that_has_a_good_name() {
        let host = |line: &str, hostname: &str| {
            let system = Host { hostname: hostname.to_owned(), private_ipv4: None };
            let config = resolve_on(&format!("--service a --upstream 10.0.0.1:80 --id x {line}"), &system).unwrap();
            config.upstreams[0].announcement.host.as_ref().map(ToString::to_string)
        };
        assert_eq!(host("", "web1").as_deref(), Some("web1"));
        assert_eq!(host("--host-name rack-7.example.com", "web1").as_deref(), Some("rack-7.example.com"));
        assert_eq!(host("", "_x"), None);
        assert_eq!(host("", ""), None);
        refused("--service a --upstream 10.0.0.1:80 --host-name a;b", "a;b");
    }

    #[test]
    fn checks_of_an_app() {
        let line = "--service a --upstream 10.0.0.1:80";
        let config = resolve(&format!(
            "{line} --check tcp --check http://127.0.0.1:80/health --check-rise 2 --check-interval 500ms"
        ))
        .unwrap();
        let checks = &config.upstreams[0].checks;
        assert!(matches!(&*checks.all, [Check::Tcp, Check::Http(_)]), "{checks:?}");
        assert_eq!((checks.thresholds.rise.get(), checks.thresholds.fall.get()), (2, 3));
        assert_eq!((checks.interval.as_millis(), checks.timeout.as_millis()), (500, 1000));
        for (options, word) in [
            ("--check ping", "exec:COMMAND"),
            ("--check https://a/", "--check-ca"),
            ("--check-rise 0", "--check-rise"),
            ("--check-interval 0s", "--check-interval"),
            ("--check-interval soon", "--check-interval"),
            ("--check-status 600", "600"),
        ] {
            refused(&format!("{line} {options}"), word);
        }
    }

    fn in_file(text: &str) -> Result<Vec<Upstream>, String> {
        let folder = lab::Scratch::new();
        lab::write(folder.join("announcer.toml"), text);
        let file = ConfigFile::read(&folder.join("announcer.toml")).map_err(|error| error.to_string())?;
        let host = Host { hostname: "web1".to_owned(), private_ipv4: None };
        let name = folder.display().to_string();
        resolve_file(file, &host, true).map_err(|error| error.to_string().replace(&name, ""))
    }

    #[test]
    fn a_file_is_several_command_lines() {
        let all = in_file("[[announce]]\ndomain='a.com'\nport=1\n[[announce]]\ndomain='a.com'\nport=2").unwrap();
        let ids: Vec<_> = all.iter().map(|one| one.announcement.id.as_str()).collect();
        assert_eq!(ids, ["web1-1", "web1-2"]);
        let refused = |text: &str| in_file(text).unwrap_err();
        assert_eq!(
            refused("[[announce]]\nservice='a'\nport=1\n[[announce]]\nport=1\nservice='a'"),
            "/announcer.toml line 4: http-services/a/upstreams/web1-1 is announced twice; \
             give each upstream of a service an id of its own"
        );
        let error =
            refused("[[announce]]\nservice='a'\ntls='off'\nport=1\n[[announce]]\nport=2\nservice='a'\ntls='both'");
        assert!(error.starts_with("/announcer.toml line 8: tls of http-services/a/tls is \"both\""), "{error}");
        let error = refused("[[announce]]\nservice='a'\nport=1\n\nset={balance='fastest'}");
        assert!(error.starts_with("/announcer.toml line 5: --set balance \"fastest\""), "{error}");
        let error = refused("[[announce]]\nservice='a'\nport=0");
        assert!(error.starts_with("/announcer.toml line 3: --port 0"), "{error}");
        let error = refused("[[announce]]\nport=1");
        assert!(error.starts_with("/announcer.toml line 1: no service"), "{error}");
    }

    #[test]
    fn a_file_is_instead_of_the_options_for_one() {
        let words = ["announcer", "--config", "/a.toml", "--domain", "a.com"];
        let error = Cli::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("--config") && error.contains("cannot be used with"), "{error}");
        let cli = Cli::try_parse_from(["announcer", "--config", "/a.toml", "--", "app"]).unwrap();
        assert_eq!(cli.config_file(), Some(Path::new("/a.toml")));
    }
}
