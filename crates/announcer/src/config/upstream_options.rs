//! Options of one upstream as typed, on the command line, in the environment or in a file. `config` decides their
//! meaning.

mod reading;

use std::{num::NonZeroU32, path::PathBuf};

use clap::{ValueEnum, builder::FalseyValueParser};
use discovery::{Color, HostName, Kind, ServiceName, StatusRange, UpstreamAddress, UpstreamId, Weight};
use serde::Deserialize;

use self::reading::{Time, one_or_several, pairs, parsed};
use crate::health::check::Checks;

/// An upstream, its service and its checks. A file has the options' names as keys.
#[derive(Clone, Debug, clap::Args, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Announce {
    /// Name the service [default: the first domain, which must not be a wildcard]
    #[arg(long, env = "ANNOUNCER_SERVICE", value_name = "NAME", help_heading = "Service")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) service: Option<ServiceName>,
    /// Set the service's type: http is routed by host and path, tcp has its own ports
    #[arg(long = "type", env = "ANNOUNCER_TYPE", value_name = "TYPE", default_value = "http")]
    #[arg(help_heading = "Service")]
    #[serde(rename = "type")]
    pub(crate) kind: ServiceType,
    /// Serve these host names, several by commas; `*.example.com` stands for one label
    #[arg(long, env = "ANNOUNCER_DOMAIN", value_name = "HOST", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::OneOrSeveral"))]
    pub(crate) domain: Vec<String>,
    /// Serve these path prefixes, several by commas [default: all]
    #[arg(long, env = "ANNOUNCER_PATH", value_name = "PATH", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::OneOrSeveral"))]
    pub(crate) path: Vec<String>,
    /// Set the service's TLS mode: both, terminate, off, passthrough, reencrypt
    #[arg(long, env = "ANNOUNCER_TLS", value_name = "MODE", help_heading = "Service")]
    pub(crate) tls: Option<String>,
    /// Have balancers bind these for a TCP service: 3306, *:3306, 10.0.0.5:3306, several by commas
    #[arg(long, env = "ANNOUNCER_PORTS", value_name = "BIND", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::OneOrSeveral"))]
    pub(crate) ports: Vec<String>,
    /// Write any setting of the service: `--set balance=leastconn --set maxconn=100`; by semicolons in the variable
    #[arg(long = "set", env = "ANNOUNCER_SET", value_name = "KEY=VALUE", value_delimiter = ';')]
    #[arg(help_heading = "Service")]
    #[serde(rename = "set", deserialize_with = "pairs")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::Pairs"))]
    pub(crate) settings: Vec<String>,
    /// Overwrite settings that differ, instead of only logging the difference
    #[arg(long, env = "ANNOUNCER_UPDATE", value_parser = FalseyValueParser::new(), help_heading = "Service")]
    pub(crate) update: bool,

    /// Announce this address. With --port and a command, --port is where the app listens on this host
    #[arg(long, env = "ANNOUNCER_UPSTREAM", value_name = "IP:PORT", help_heading = "Upstream")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) upstream: Option<UpstreamAddress>,
    /// Announce this port; the address is --interface's, else COREOS_PRIVATE_IPV4, else the one used towards etcd
    #[arg(long, env = "ANNOUNCER_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(help_heading = "Upstream")]
    pub(crate) port: Option<u16>,
    /// Announce the address of this network interface
    #[arg(long, env = "ANNOUNCER_INTERFACE", value_name = "NAME", help_heading = "Upstream")]
    pub(crate) interface: Option<String>,
    /// Name the upstream within the service [default: HOSTNAME-PORT]
    #[arg(long, env = "ANNOUNCER_ID", value_name = "NAME", help_heading = "Upstream")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) id: Option<UpstreamId>,
    /// Set its share of requests among the upstreams of its color, 0 to 256
    #[arg(long, env = "ANNOUNCER_WEIGHT", value_name = "N", default_value_t, help_heading = "Upstream")]
    #[cfg_attr(test, schemars(with = "u16"))]
    pub(crate) weight: Weight,
    /// Name the deployment that it belongs to: blue, green
    #[arg(long, env = "ANNOUNCER_COLOR", value_name = "NAME", help_heading = "Upstream")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) color: Option<Color>,
    /// Name the host in the record, for `discoverctl drain --host` [default: HOSTNAME]
    #[arg(long, env = "ANNOUNCER_HOST_NAME", value_name = "NAME", help_heading = "Upstream")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub(crate) host_name: Option<HostName>,
    /// Take the id over at once from another address, instead of waiting until its lease ends
    #[arg(long, env = "ANNOUNCER_TAKEOVER", value_parser = FalseyValueParser::new(), help_heading = "Upstream")]
    pub(crate) takeover: bool,

    /// Check that the app works: `http://127.0.0.1:8000/health`, `https://…`, `tcp`, `exec:COMMAND`
    ///
    /// If there are several, all must pass; they are separated by semicolons in the variable. Write the record when
    /// they first pass. Write `down` while they fail, and `ready` when they pass again. `tcp` connects to the announced
    /// address, or to --port on this host if that is given beside --upstream. No shell reads COMMAND. It passes with
    /// status 0, and its output is dropped. Without a check, an app that the announcer runs has to accept one connection,
    /// and any other app counts as working.
    #[arg(long, env = "ANNOUNCER_CHECK", value_name = "CHECK", help_heading = "Checks")]
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::OneOrSeveral"))]
    pub(crate) check: Vec<String>,
    /// Check at this interval. Until the app first works, check at least every 200ms
    #[arg(long, env = "ANNOUNCER_CHECK_INTERVAL", value_name = "TIME", default_value_t = Self::CHECKS.0)]
    #[arg(help_heading = "Checks")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) check_interval: Time,
    /// Fail a check that takes longer; a command's process group is killed then
    #[arg(long, env = "ANNOUNCER_CHECK_TIMEOUT", value_name = "TIME", default_value_t = Self::CHECKS.1)]
    #[arg(help_heading = "Checks")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) check_timeout: Time,
    /// Count the app as working after this number of passed checks in a row
    #[arg(long, env = "ANNOUNCER_CHECK_RISE", value_name = "N", default_value_t = Checks::THRESHOLDS.rise)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_rise: NonZeroU32,
    /// Count it as down after this number of failed checks in a row
    #[arg(long, env = "ANNOUNCER_CHECK_FALL", value_name = "N", default_value_t = Checks::THRESHOLDS.fall)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_fall: NonZeroU32,
    /// Log a warning if the app doesn't work after this time
    #[arg(long, env = "ANNOUNCER_CHECK_GRACE", value_name = "TIME", default_value_t = Self::CHECKS.2)]
    #[arg(help_heading = "Checks")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) check_grace: Time,
    /// Use this method for HTTP checks [default: GET]
    #[arg(long, env = "ANNOUNCER_CHECK_METHOD", value_name = "METHOD", help_heading = "Checks")]
    pub(crate) check_method: Option<String>,
    /// Pass HTTP checks with these statuses: 200, 200-299
    #[arg(long, env = "ANNOUNCER_CHECK_STATUS", value_name = "STATUS", default_value_t, help_heading = "Checks")]
    #[serde(deserialize_with = "parsed")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub(crate) check_status: StatusRange,
    /// Send this header with HTTP checks; may be repeated
    #[arg(long, env = "ANNOUNCER_CHECK_HEADER", value_name = "'NAME: VALUE'", help_heading = "Checks")]
    #[arg(hide_env_values = true)]
    #[serde(deserialize_with = "one_or_several")]
    #[cfg_attr(test, schemars(with = "crate::config::file::schema::OneOrSeveral"))]
    pub(crate) check_header: Vec<String>,
    /// Send this Host with HTTP checks, and expect it in an https certificate [default: the URL's]
    #[arg(long, env = "ANNOUNCER_CHECK_HOST", value_name = "HOST", help_heading = "Checks")]
    pub(crate) check_host: Option<String>,
    /// Accept certificates of https checks that a CA in this file signed
    #[arg(long, env = "ANNOUNCER_CHECK_CA", value_name = "FILE", help_heading = "Checks")]
    pub(crate) check_ca: Option<PathBuf>,
    /// Accept any certificate of https checks
    #[arg(long, env = "ANNOUNCER_CHECK_INSECURE", value_parser = FalseyValueParser::new(), help_heading = "Checks")]
    pub(crate) check_insecure: bool,
}

impl Announce {
    /// Defaults of interval, timeout and grace in the form that `--help` prints.
    const CHECKS: (Time, Time, Time) = (Time(Checks::INTERVAL), Time(Checks::TIMEOUT), Time(Checks::GRACE));
}

impl Default for Announce {
    fn default() -> Self {
        Self {
            service: None,
            kind: ServiceType::Http,
            domain: Vec::new(),
            path: Vec::new(),
            tls: None,
            ports: Vec::new(),
            settings: Vec::new(),
            update: false,
            upstream: None,
            port: None,
            interface: None,
            id: None,
            weight: Weight::default(),
            color: None,
            host_name: None,
            takeover: false,
            check: Vec::new(),
            check_interval: Self::CHECKS.0,
            check_timeout: Self::CHECKS.1,
            check_rise: Checks::THRESHOLDS.rise,
            check_fall: Checks::THRESHOLDS.fall,
            check_grace: Self::CHECKS.2,
            check_method: None,
            check_status: StatusRange::default(),
            check_header: Vec::new(),
            check_host: None,
            check_ca: None,
            check_insecure: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServiceType {
    Http,
    Tcp,
}

impl From<ServiceType> for Kind {
    fn from(kind: ServiceType) -> Self {
        match kind {
            ServiceType::Http => Self::Http,
            ServiceType::Tcp => Self::Tcp,
        }
    }
}
