//! The admin port's options, and the validated configuration made from them. Reads no file.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A daemon's part of the options.
pub trait Daemon: Clone + Debug + Send + Sync + 'static {
    /// Prefix of the variables, such as `CONFGEN`.
    const PREFIX: &'static str;
    /// Default of `--admin`. `off` is no admin port.
    const ADMIN: &'static str;
    /// Contents of the port, for `--help`.
    const SHOWN: &'static str;
}

fn variable_name<D: Daemon>(name: &str) -> String {
    format!("{}_{name}", D::PREFIX)
}

/// The admin port's options, to be flattened into a daemon's own.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Admin port")]
pub struct AdminArgs<D: Daemon> {
    /// Replaced by the `help` below, which knows what the daemon serves.
    #[arg(long, env = variable_name::<D>("ADMIN"), default_value = D::ADMIN, value_delimiter = ',', value_name = "IP:PORT")]
    #[arg(help = format!("Serve {} on this address; several by commas, off serves nothing", D::SHOWN))]
    pub admin: Vec<Listen>,
    /// Require the token in this file ("Authorization: Bearer …"). An address beyond loopback needs this or
    /// --admin-client-ca. The file is read again when it changes
    #[arg(long, env = variable_name::<D>("ADMIN_TOKEN_FILE"), value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Serve HTTPS with this certificate, a PEM file with its chain. The file is read again when it changes
    #[arg(long, env = variable_name::<D>("ADMIN_CERT"), value_name = "FILE")]
    pub admin_cert: Option<PathBuf>,
    /// Use this key of --admin-cert, a PEM file
    #[arg(long, env = variable_name::<D>("ADMIN_KEY"), value_name = "FILE")]
    pub admin_key: Option<PathBuf>,
    /// Require client certificates that this CA signed, a PEM file
    #[arg(long, env = variable_name::<D>("ADMIN_CLIENT_CA"), value_name = "FILE")]
    pub admin_client_ca: Option<PathBuf>,
    /// Answer requests for this host name, in addition to localhost and this host's addresses; several by commas
    #[arg(long, env = variable_name::<D>("ADMIN_HOST"), value_delimiter = ',', value_name = "NAME", value_parser = parse_host)]
    pub admin_host: Vec<String>,
    #[arg(skip)]
    daemon: PhantomData<D>,
}

/// Address of `--admin`, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `off`: no admin port.
    Off,
    /// Address and port to listen on.
    At(SocketAddr),
}

impl Listen {
    fn address(self) -> Option<SocketAddr> {
        if let Self::At(address) = self { Some(address) } else { None }
    }
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|_| "an IP address and a port, or off: 127.0.0.1:9101, [::1]:9101")
    }
}

fn parse_host(text: &str) -> Result<String, String> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !text.is_empty() && is_name {
        Ok(text.trim_end_matches('.').to_ascii_lowercase())
    } else {
        Err("a host's name without a port: lb1.example.com".into())
    }
}

/// Addresses and access rules. Made by [`AdminArgs::resolve`].
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) token: Option<PathBuf>,
    pub(super) tls: Option<TlsFiles>,
    /// Names in lower case, without a port.
    pub(super) hosts: Vec<String>,
}

/// Files of TLS, as paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: Option<PathBuf>,
}

/// Options that contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// The port would answer every host in reach.
    #[error(
        "other hosts can reach --admin {address}: give --admin-token-file or --admin-client-ca, or an address of loopback"
    )]
    Open {
        /// First address that isn't loopback.
        address: SocketAddr,
    },
    /// `off` beside an address.
    #[error("--admin off excludes every other address: remove one of them")]
    OffAndOn,
    /// An option without another that it needs.
    #[error("{given} needs {missing}")]
    Lacks {
        /// Option that was given.
        given: &'static str,
        /// Option that is missing.
        missing: &'static str,
    },
}

fn lacks(given: &'static str, missing: &'static str) -> ArgsError {
    ArgsError::Lacks { given, missing }
}

impl<D: Daemon> AdminArgs<D> {
    /// Checks the options against each other. `None` is no admin port. Reads no file.
    pub fn resolve(self) -> Result<Option<Config>, ArgsError> {
        let addresses: Vec<SocketAddr> = self.admin.iter().filter_map(|listen| listen.address()).collect();
        if addresses.is_empty() {
            return Ok(None);
        }
        if addresses.len() < self.admin.len() {
            return Err(ArgsError::OffAndOn);
        }
        let tls = match (self.admin_cert, self.admin_key, self.admin_client_ca) {
            (Some(cert), Some(key), client_ca) => Some(TlsFiles { cert, key, client_ca }),
            (Some(_), None, _) => return Err(lacks("--admin-cert", "--admin-key")),
            (None, Some(_), _) => return Err(lacks("--admin-key", "--admin-cert")),
            (None, None, Some(_)) => return Err(lacks("--admin-client-ca", "--admin-cert")),
            (None, None, None) => None,
        };
        // A certificate without a client CA encrypts, and keeps no client out.
        let closed = self.admin_token_file.is_some() || tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        // `::ffff:127.0.0.1` is loopback too.
        if let Some(address) = addresses.iter().find(|address| !closed && !address.ip().to_canonical().is_loopback()) {
            return Err(ArgsError::Open { address: *address });
        }
        Ok(Some(Config { addresses, token: self.admin_token_file, tls, hosts: self.admin_host }))
    }
}

impl Config {
    /// URL under which other hosts find the port. An address that other hosts reach comes before loopback, in any order
    /// of the options. An unspecified address (`0.0.0.0`) is replaced by the first `--admin-host`. `None` if that is
    /// missing.
    pub fn public_url(&self) -> Option<String> {
        let (wide, narrow): (Vec<_>, Vec<_>) =
            self.addresses.iter().partition(|address| !address.ip().to_canonical().is_loopback());
        // Other hosts would take loopback beside 0.0.0.0 for their own.
        let candidates = if wide.is_empty() { narrow } else { wide };
        candidates.into_iter().find_map(|address| self.url_of(address))
    }

    fn url_of(&self, address: &SocketAddr) -> Option<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        if !address.ip().is_unspecified() {
            return Some(format!("{scheme}://{address}"));
        }
        self.hosts.first().map(|host| format!("{scheme}://{host}:{}", address.port()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Clone, Debug)]
    struct Test;

    impl Daemon for Test {
        const PREFIX: &'static str = "ADMIN_ARGS_TEST";
        const ADMIN: &'static str = "127.0.0.1:9101";
        const SHOWN: &'static str = "/live and /ready";
    }

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        admin: AdminArgs<Test>,
    }

    fn resolve(flags: &[&str]) -> Result<Option<Config>, String> {
        let cli = Cli::try_parse_from([&["test"], flags].concat()).map_err(|error| error.to_string())?;
        cli.admin.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn loopback_is_open_and_anything_wider_is_not() {
        assert_eq!(resolve(&[]).unwrap().unwrap().addresses, ["127.0.0.1:9101".parse().unwrap()]);
        assert!(resolve(&["--admin", "off"]).unwrap().is_none());
        assert!(resolve(&["--admin", "127.8.8.8:1,[::1]:1,[::ffff:127.0.0.1]:1"]).is_ok());
        for wide in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "127.0.0.1:1,[fd00::1]:1"] {
            assert!(resolve(&["--admin", wide]).unwrap_err().contains("--admin-token-file"), "{wide}");
            assert!(resolve(&["--admin", wide, "--admin-token-file", "/t"]).is_ok());
            let tls = ["--admin", wide, "--admin-cert", "/c", "--admin-key", "/k"];
            assert!(resolve(&tls).is_err(), "a certificate alone shuts nobody out");
            assert!(resolve(&[&tls[..], &["--admin-client-ca", "/ca"]].concat()).is_ok());
        }
    }

    #[test]
    fn what_can_not_work_is_refused() {
        for (flags, word) in [
            (&["--admin", "off,127.0.0.1:1"][..], "off"),
            (&["--admin", "localhost:1"], "IP address"),
            (&["--admin", "127.0.0.1"], "IP address"),
            (&["--admin-cert", "/c"], "--admin-key"),
            (&["--admin-key", "/k"], "--admin-cert"),
            (&["--admin-client-ca", "/k"], "--admin-cert"),
            (&["--admin-host", "lb1:9101"], "without a port"),
            (&["--admin-host", ""], "without a port"),
        ] {
            let error = resolve(flags).unwrap_err();
            assert!(error.contains(word), "{flags:?}: {error}");
        }
    }

    #[test]
    fn others_are_told_where_it_is() {
        let url =
            |flags: &[&str]| resolve(&[flags, &["--admin-token-file", "/t"]].concat()).unwrap().unwrap().public_url();
        assert_eq!(url(&["--admin", "10.0.0.5:9101,127.0.0.1:9101"]).unwrap(), "http://10.0.0.5:9101");
        assert_eq!(
            url(&["--admin", "[::1]:9101", "--admin-cert", "/c", "--admin-key", "/k"]).unwrap(),
            "https://[::1]:9101"
        );
        assert_eq!(url(&["--admin", "127.0.0.1:9101,10.0.0.5:9101"]).unwrap(), "http://10.0.0.5:9101");
        assert_eq!(url(&["--admin", "127.0.0.1:9101"]).unwrap(), "http://127.0.0.1:9101");
        assert_eq!(url(&["--admin", "127.0.0.1:9101,0.0.0.0:9102"]), None, "loopback is every host's own");
        assert_eq!(url(&["--admin", "0.0.0.0:9101,10.0.0.5:9102"]).unwrap(), "http://10.0.0.5:9102");
        assert_eq!(url(&["--admin", "0.0.0.0:9101"]), None);
        assert_eq!(url(&["--admin", "[::]:9101", "--admin-host", "LB1."]).unwrap(), "http://lb1:9101");
    }

    #[test]
    fn variables_bear_the_daemons_prefix() {
        let command = <Cli as clap::CommandFactory>::command();
        let variables: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
        assert!(variables.contains(&"ADMIN_ARGS_TEST_ADMIN_TOKEN_FILE"), "{variables:?}");
    }
}
