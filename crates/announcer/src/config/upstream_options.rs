//! Options of one upstream as typed, on the command line, in the environment or in a file. `config` decides their
//! meaning.

mod reading;

use std::{num::NonZeroU32, path::PathBuf};

use clap::{ValueEnum, builder::FalseyValueParser};
use discovery::{Color, Kind, ServiceName, StatusRange, UpstreamAddress, UpstreamId, Weight};
use serde::Deserialize;

use self::reading::{Time, one_or_several, pairs, parsed};
use crate::health::check::Checks;

/// An upstream, its service and its checks. A file has the options' names as keys.
#[derive(Clone, Debug, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Announce {
    /// The service's name [default: the first domain, which then must be no wildcard]
    #[arg(long, env = "ANNOUNCER_SERVICE", value_name = "NAME", help_heading = "Service")]
    pub(crate) service: Option<ServiceName>,
    /// HTTP is routed by host and path, TCP has ports of its own
    #[arg(long = "type", env = "ANNOUNCER_TYPE", value_name = "TYPE", default_value = "http")]
    #[arg(help_heading = "Service")]
    #[serde(rename = "type")]
    pub(crate) kind: ServiceType,
    /// Host names it answers for, several by commas; `*.example.com` is one label
    #[arg(long, env = "ANNOUNCER_DOMAIN", value_name = "HOST", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    pub(crate) domain: Vec<String>,
    /// Path prefixes it answers for, several by commas [default: all]
    #[arg(long, env = "ANNOUNCER_PATH", value_name = "PATH", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    pub(crate) path: Vec<String>,
    /// both, terminate, off, passthrough, reencrypt
    #[arg(long, env = "ANNOUNCER_TLS", value_name = "MODE", help_heading = "Service")]
    pub(crate) tls: Option<String>,
    /// What balancers bind for a TCP service: 3306, *:3306, 10.0.0.5:3306, several by commas
    #[arg(long, env = "ANNOUNCER_PORTS", value_name = "BIND", help_heading = "Service")]
    #[serde(deserialize_with = "one_or_several")]
    pub(crate) ports: Vec<String>,
    /// Any setting of the service: `--set balance=leastconn --set maxconn=100`; by semicolons in the variable
    #[arg(long = "set", env = "ANNOUNCER_SET", value_name = "KEY=VALUE", value_delimiter = ';')]
    #[arg(help_heading = "Service")]
    #[serde(rename = "set", deserialize_with = "pairs")]
    pub(crate) settings: Vec<String>,
    /// Overwrite settings that say otherwise, instead of only logging the difference
    #[arg(long, env = "ANNOUNCER_UPDATE", value_parser = FalseyValueParser::new(), help_heading = "Service")]
    pub(crate) update: bool,

    /// Where balancers reach the app. With --port and a command, --port is where it listens on this host
    #[arg(long, env = "ANNOUNCER_UPSTREAM", value_name = "IP:PORT", help_heading = "Upstream")]
    pub(crate) upstream: Option<UpstreamAddress>,
    /// The app's port; the address is --interface's, else COREOS_PRIVATE_IPV4, else the one used towards etcd
    #[arg(long, env = "ANNOUNCER_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    #[arg(help_heading = "Upstream")]
    pub(crate) port: Option<u16>,
    /// The network interface whose address is announced
    #[arg(long, env = "ANNOUNCER_INTERFACE", value_name = "NAME", help_heading = "Upstream")]
    pub(crate) interface: Option<String>,
    /// The upstream's name within the service [default: HOSTNAME-PORT]
    #[arg(long, env = "ANNOUNCER_ID", value_name = "NAME", help_heading = "Upstream")]
    pub(crate) id: Option<UpstreamId>,
    /// Its share among the upstreams of its color, 0 to 256
    #[arg(long, env = "ANNOUNCER_WEIGHT", value_name = "N", default_value_t, help_heading = "Upstream")]
    pub(crate) weight: Weight,
    /// Which deployment it belongs to: blue, green
    #[arg(long, env = "ANNOUNCER_COLOR", value_name = "NAME", help_heading = "Upstream")]
    pub(crate) color: Option<Color>,
    /// Take the id over at once from another address, instead of waiting until its lease ends
    #[arg(long, env = "ANNOUNCER_TAKEOVER", value_parser = FalseyValueParser::new(), help_heading = "Upstream")]
    pub(crate) takeover: bool,

    /// What shows that the app works: `http://127.0.0.1:8000/health`, `https://…`, `tcp`, `exec:COMMAND`
    ///
    /// Several have to pass all; by semicolons in the variable. The record is written when they first pass, says
    /// `down` while they fail, and `ready` when they pass again. `tcp` connects to where the app is announced, or to
    /// --port on this host where that stands beside --upstream. No shell reads COMMAND; it passes with status 0 and its
    /// output is dropped. Without a check, an app that announcer runs has to accept one connection, and one that
    /// something else runs is taken to work.
    #[arg(long, env = "ANNOUNCER_CHECK", value_name = "CHECK", help_heading = "Checks")]
    #[serde(deserialize_with = "one_or_several")]
    pub(crate) check: Vec<String>,
    /// The time from one check to the next; until the app first works it is at most 200ms
    #[arg(long, env = "ANNOUNCER_CHECK_INTERVAL", value_name = "TIME", default_value_t = Self::CHECKS.0)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_interval: Time,
    /// How long a check may take; a command's process group is killed then
    #[arg(long, env = "ANNOUNCER_CHECK_TIMEOUT", value_name = "TIME", default_value_t = Self::CHECKS.1)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_timeout: Time,
    /// Checks in a row that pass before the app is taken to work
    #[arg(long, env = "ANNOUNCER_CHECK_RISE", value_name = "N", default_value_t = Checks::THRESHOLDS.rise)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_rise: NonZeroU32,
    /// Checks in a row that fail before it is taken to be down
    #[arg(long, env = "ANNOUNCER_CHECK_FALL", value_name = "N", default_value_t = Checks::THRESHOLDS.fall)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_fall: NonZeroU32,
    /// How long the app may take to work before the log says so
    #[arg(long, env = "ANNOUNCER_CHECK_GRACE", value_name = "TIME", default_value_t = Self::CHECKS.2)]
    #[arg(help_heading = "Checks")]
    pub(crate) check_grace: Time,
    /// The method of HTTP checks [default: GET]
    #[arg(long, env = "ANNOUNCER_CHECK_METHOD", value_name = "METHOD", help_heading = "Checks")]
    pub(crate) check_method: Option<String>,
    /// The statuses that pass: 200, 200-299
    #[arg(long, env = "ANNOUNCER_CHECK_STATUS", value_name = "STATUS", default_value_t, help_heading = "Checks")]
    #[serde(deserialize_with = "parsed")]
    pub(crate) check_status: StatusRange,
    /// A header of HTTP checks; may be repeated
    #[arg(long, env = "ANNOUNCER_CHECK_HEADER", value_name = "'NAME: VALUE'", help_heading = "Checks")]
    #[arg(hide_env_values = true)]
    #[serde(deserialize_with = "one_or_several")]
    pub(crate) check_header: Vec<String>,
    /// The Host of HTTP checks, and the name in an https certificate [default: the URL's]
    #[arg(long, env = "ANNOUNCER_CHECK_HOST", value_name = "HOST", help_heading = "Checks")]
    pub(crate) check_host: Option<String>,
    /// The CA that the certificate of an https check must be signed by
    #[arg(long, env = "ANNOUNCER_CHECK_CA", value_name = "FILE", help_heading = "Checks")]
    pub(crate) check_ca: Option<PathBuf>,
    /// Take any certificate of an https check
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
