//! The etcd options, named as etcdctl names them, and the validated configuration made from them.
//!
//! It reads no file and opens no connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::endpoint::Endpoint;
use crate::entry::Prefix;

/// The endpoint unless `--endpoints` names others.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// The etcd options of every command line of the project. Names and variables are etcdctl's.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "etcd")]
pub struct Args {
    /// Connect to etcd at these URLs, several by commas. Begin with any of them, and go to the next after a failure. Without
    /// a scheme, use https if a certificate option is given
    #[arg(long, env = "ETCDCTL_ENDPOINTS", value_delimiter = ',', default_value = DEFAULT_ENDPOINT)]
    #[arg(value_name = "URL")]
    pub endpoints: Vec<String>,

    /// Check etcd's certificate against this CA. Required for https
    #[arg(long, env = "ETCDCTL_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,

    /// Show this certificate to etcd
    #[arg(long, env = "ETCDCTL_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// Use this key with --cert
    #[arg(long, env = "ETCDCTL_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Log in to etcd as this user. A password on the command line is visible to every process of the host, --password-file
    /// is not
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true, value_name = "NAME[:PASSWORD]")]
    pub user: Option<User>,

    /// Log in with this password if --user has none. Ignored without --user
    #[arg(long, env = "ETCDCTL_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub password: Option<Secret>,

    /// Read the user's password from this file at each connect, without line breaks at its end
    #[arg(long, env = "ETCDCTL_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// Keep all keys below this prefix, which begins with a slash
    #[arg(long, env = "HAPROXY_DISCOVER_PREFIX", value_name = "KEY", default_value = "/haproxy-discover")]
    pub prefix: String,

    /// Refuse etcdctl's SRV discovery, which stands for other endpoints than the default
    #[arg(long, env = "ETCDCTL_DISCOVERY_SRV", hide = true)]
    pub discovery_srv: Option<String>,
}

impl Args {
    /// Checks the options against each other. Certificates and passwords are read at each connect, so that replaced ones
    /// are used.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        // A host with etcdctl's variables would otherwise reach another etcd than etcdctl does.
        if self.discovery_srv.is_some() && self.endpoints == [DEFAULT_ENDPOINT] {
            return Err(ConfigError::Discovery);
        }
        let with_tls = self.cacert.is_some() || self.cert.is_some() || self.key.is_some();
        let mut endpoints = Vec::new();
        for text in self.endpoints.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            let endpoint = Endpoint::parse(text, with_tls);
            endpoints.push(endpoint.map_err(|reason| ConfigError::Endpoint { given: text.to_owned(), reason })?);
        }
        let first = endpoints.first().cloned().ok_or(ConfigError::NoEndpoint)?;
        if let (Some(endpoint), None) = (endpoints.iter().find(|endpoint| endpoint.tls), &self.cacert) {
            return Err(ConfigError::NoCa { endpoint: endpoint.clone() });
        }
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(ConfigError::HalfIdentity { given: "--cert", missing: "--key" }),
            (None, Some(_)) => return Err(ConfigError::HalfIdentity { given: "--key", missing: "--cert" }),
        };
        let login = find_login(self.user, self.password, self.password_file)?;
        let prefix = Prefix::parse(&self.prefix).map_err(|(reason, right)| ConfigError::Prefix {
            given: self.prefix,
            reason,
            right,
        })?;
        Ok(Config { first, endpoints, cacert: self.cacert, identity, login, prefix })
    }
}

/// The login. Without a user there is none, whatever password is set, as with etcdctl.
fn find_login(
    user: Option<User>,
    password: Option<Secret>,
    file: Option<PathBuf>,
) -> Result<Option<Login>, ConfigError> {
    let Some(User { name, password: inline }) = user else {
        return if file.is_some() { Err(ConfigError::NoUser) } else { Ok(None) };
    };
    let password = password.map(|Secret(secret)| Password::Plain(secret));
    let given = [inline.map(Password::Plain), password, file.map(Password::File)];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(password), None) => Ok(Some(Login { name, password })),
        (None, _) => Err(ConfigError::NoPassword { user: name }),
        (Some(_), Some(_)) => Err(ConfigError::TwoPasswords),
    }
}

/// The variables of [`Args`] that hold a secret or lead to one. A program removes them from the environment of programs
/// that it starts. The certificate is among them because etcdctl refuses it without its key.
pub const SECRET_VARIABLES: [&str; 5] =
    ["ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_PASSWORD_FILE", "ETCDCTL_CERT", "ETCDCTL_KEY"];

/// The validated options: endpoints, certificates, login and prefix. [`Args::resolve`] makes it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The first of `endpoints`, so that there is always one.
    first: Endpoint,
    endpoints: Vec<Endpoint>,
    pub(crate) cacert: Option<PathBuf>,
    /// The files of the certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) login: Option<Login>,
    pub(crate) prefix: Prefix,
}

impl Config {
    /// The endpoints, at least one, in the order of the failover. A client begins with any of them.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The prefix without the slash at its end: `/haproxy-discover`.
    pub fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// The files of the CA, and of the client's certificate and its key.
    pub fn tls_files(&self) -> (Option<&Path>, Option<(&Path, &Path)>) {
        let identity = self.identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        (self.cacert.as_deref(), identity)
    }

    /// The endpoint of this turn. After the last endpoint comes the first.
    pub(crate) fn endpoint_at(&self, turn: usize) -> &Endpoint {
        self.endpoints.iter().cycle().nth(turn % self.endpoints.len().max(1)).unwrap_or(&self.first)
    }
}

/// The value of `--user`. Its password is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    name: String,
    password: Option<String>,
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, password) = match text.split_once(':') {
            Some((name, password)) => (name, Some(password.to_owned())),
            None => (text, None),
        };
        if name.is_empty() { Err("the user's name is empty") } else { Ok(Self { name: name.to_owned(), password }) }
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The value of `--password`. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The user and the password for etcd.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) name: String,
    pub(crate) password: Password,
}

/// A password, or the file that has it at each connect.
#[derive(Clone)]
pub(crate) enum Password {
    Plain(String),
    File(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("Plain(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Options that contradict each other, or that can't work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// An endpoint is no URL of the form that etcdctl takes.
    #[error("--endpoints: {given:?}: {reason}; write http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// The endpoint as given.
        given: String,
        /// The fault.
        reason: &'static str,
    },
    /// The list of endpoints is empty.
    #[error("--endpoints names no endpoint")]
    NoEndpoint,
    /// An https endpoint without a CA to check its certificate against.
    #[error("{endpoint} needs --cacert FILE; the system's own CAs are /etc/ssl/certs/ca-certificates.crt on Debian")]
    NoCa {
        /// The first https endpoint.
        endpoint: Endpoint,
    },
    /// A certificate without its key, or the other way round.
    #[error("{given} needs {missing} beside it")]
    HalfIdentity {
        /// The given option.
        given: &'static str,
        /// The missing option.
        missing: &'static str,
    },
    /// A password file without a user.
    #[error("--password-file needs --user NAME beside it")]
    NoUser,
    /// A user without a password.
    #[error(
        "--user {user} needs a password: ETCDCTL_PASSWORD, --password-file FILE, or --user {user}:PASSWORD (etcdctl would \
         ask for it, no program here does)"
    )]
    NoPassword {
        /// The user's name, without a password.
        user: String,
    },
    /// Passwords from two sources. One of them would be ignored silently.
    #[error(
        "two passwords are given, by --user NAME:PASSWORD (ETCDCTL_USER), --password (ETCDCTL_PASSWORD) or \
         --password-file (ETCDCTL_PASSWORD_FILE); leave one"
    )]
    TwoPasswords,
    /// A prefix in another spelling than the one that all programs use.
    #[error("--prefix {given:?}: {reason}; write {right}")]
    Prefix {
        /// The prefix as given.
        given: String,
        /// The fault.
        reason: &'static str,
        /// A right prefix, the nearest one if there is any.
        right: String,
    },
    /// Endpoints from SRV records, which are not looked up here.
    #[error("ETCDCTL_DISCOVERY_SRV isn't followed here: name etcd's endpoints, by --endpoints or ETCDCTL_ENDPOINTS")]
    Discovery,
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        etcd: Args,
    }

    pub(crate) fn resolve_args(args: &[&str]) -> Result<Config, ConfigError> {
        Cli::try_parse_from(["test"].iter().chain(args)).expect("known options").etcd.resolve()
    }

    #[test]
    fn endpoints_come_by_commas_and_a_certificate_option_makes_them_https() {
        let endpoints = |args: &[&str]| -> Vec<String> {
            resolve_args(args).expect("valid").endpoints().iter().map(ToString::to_string).collect()
        };
        assert_eq!(endpoints(&[]), ["http://127.0.0.1:2379"]);
        assert_eq!(endpoints(&["--endpoints", "a, [::1]:99,"]), ["http://a:2379", "http://[::1]:99"]);
        assert_eq!(endpoints(&["--endpoints", "a:1,http://b:2", "--cacert", "/ca"]), ["https://a:1", "http://b:2"]);
        assert_eq!(resolve_args(&["--endpoints", ","]).err(), Some(ConfigError::NoEndpoint));
    }

    #[test]
    fn the_turns_go_round() {
        let config = resolve_args(&["--endpoints", "a,b,c"]).expect("valid");
        let hosts: Vec<_> = [0, 1, 2, 3, usize::MAX].map(|turn| config.endpoint_at(turn).host().to_owned()).into();
        assert_eq!(hosts, ["a", "b", "c", "a", "a"]);
    }

    #[test]
    fn options_that_need_each_other_say_so() {
        let refused = |args: &[&str]| resolve_args(args).expect_err("refused").to_string();
        assert!(refused(&["--endpoints", "https://e"]).contains("--cacert"));
        assert_eq!(refused(&["--cert", "/c", "--cacert", "/ca"]), "--cert needs --key beside it");
        assert!(refused(&["--user", "eve"]).contains("ETCDCTL_PASSWORD, --password-file"));
        assert!(refused(&["--password-file", "/p"]).contains("--user"));
        assert_eq!(resolve_args(&["--user", "eve:x", "--password-file", "/p"]).err(), Some(ConfigError::TwoPasswords));
        let twice = ["--user", "eve:x", "--password", "x"];
        assert_eq!(resolve_args(&twice).err(), Some(ConfigError::TwoPasswords));
        let twice = ["--user", "eve", "--password", "x", "--password-file", "/p"];
        assert_eq!(resolve_args(&twice).err(), Some(ConfigError::TwoPasswords));
        assert_eq!(resolve_args(&["--discovery-srv", "example.com"]).err(), Some(ConfigError::Discovery));
        assert!(resolve_args(&["--discovery-srv", "example.com", "--endpoints", "http://e:1"]).is_ok());
    }

    #[test]
    fn a_password_is_taken_as_etcdctl_takes_it() {
        let login = |args: &[&str]| {
            let login = resolve_args(args).expect("valid").login?;
            let Password::Plain(password) = login.password else { panic!("a file") };
            Some((login.name, password))
        };
        let app = Some(("app".to_owned(), "s3:cret".to_owned()));
        assert_eq!(login(&["--user", "app", "--password", "s3:cret"]), app);
        assert_eq!(login(&["--user", "app:s3:cret"]), app);
        assert_eq!(login(&["--password", "s3:cret"]), None, "etcdctl drops a password without a user");
    }

    #[test]
    fn a_prefix_below_which_nobody_looks_is_refused_with_the_right_form() {
        for (given, right) in [
            ("haproxy-discover", "/haproxy-discover"),
            ("haproxy-discover/", "/haproxy-discover"),
            ("//haproxy-discover", "/haproxy-discover"),
            ("/a//b", "/a/b"),
            (" /haproxy-discover", "/haproxy-discover"),
            ("/haproxy-discover\n", "/haproxy-discover"),
            ("/a b", "/ab"),
            ("/a\u{202e}b", "/ab"),
            ("a\\b", "/a\\b"),
            ("/", "/haproxy-discover"),
            ("//", "/haproxy-discover"),
        ] {
            let refused = resolve_args(&["--prefix", given]).expect_err(given).to_string();
            assert!(refused.contains("--prefix") && refused.ends_with(&format!("; write {right}")), "{refused}");
            assert!(!refused.chars().any(char::is_control), "{refused:?}");
        }
        for (given, kept) in [("/haproxy-discover", "/haproxy-discover"), ("/a/b/", "/a/b"), ("/prod///", "/prod")] {
            assert_eq!(resolve_args(&["--prefix", given]).expect("valid").prefix(), kept);
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let args = ["test", "--user", "eve", "--password", "s3cret"];
        let printed = format!("{:?}", Cli::try_parse_from(args).expect("valid").etcd);
        assert!(printed.contains("eve") && !printed.contains("s3cret"), "{printed}");
        let printed = format!("{:?}", resolve_args(&args[1..]).expect("valid"));
        assert!(printed.contains("eve") && !printed.contains("s3cret"), "{printed}");
    }
}
