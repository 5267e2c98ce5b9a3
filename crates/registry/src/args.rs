//! The etcd options, named as etcdctl names them, and the validated configuration made from them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::endpoint::Endpoint;
use crate::entry::Prefix;

/// The etcd options of every command line of the project. Names and variables are etcdctl's.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "etcd")]
pub struct Args {
    /// Where etcd listens, several by commas: any of them is asked first, the next where one fails. Without a scheme it is
    /// https when a certificate option is given
    #[arg(long, env = "ETCDCTL_ENDPOINTS", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    #[arg(value_name = "URL")]
    pub endpoints: Vec<String>,

    /// The CA that etcd's certificate must be signed by; needed for https
    #[arg(long, env = "ETCDCTL_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,

    /// The certificate shown to etcd
    #[arg(long, env = "ETCDCTL_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// The key of --cert
    #[arg(long, env = "ETCDCTL_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// The etcd user; a password here is visible to every process of the host, --password-file is not
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true, value_name = "NAME[:PASSWORD]")]
    pub user: Option<User>,

    /// A file with the user's password; read at each connect, line breaks at its end are dropped
    #[arg(long, env = "ETCDCTL_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,

    /// The prefix that all keys live below
    #[arg(long, env = "HAPROXY_DISCOVER_PREFIX", value_name = "KEY", default_value = "/haproxy-discover")]
    pub prefix: String,
}

impl Args {
    /// Checks the options against each other. Reads no file: certificates and passwords are read at each connect, so
    /// that replaced ones are picked up.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let with_tls = self.cacert.is_some() || self.cert.is_some() || self.key.is_some();
        let endpoints = self
            .endpoints
            .iter()
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
            .map(|text| {
                Endpoint::parse(text, with_tls)
                    .map_err(|reason| ConfigError::Endpoint { given: text.to_owned(), reason })
            })
            .collect::<Result<Vec<_>, _>>()?;
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
        let login = match (self.user, self.password_file) {
            (None, None) => None,
            (None, Some(_)) => return Err(ConfigError::NoUser),
            (Some(User { password: Some(_), .. }), Some(_)) => return Err(ConfigError::TwoPasswords),
            (Some(User { name, password: None }), Some(file)) => Some(Login { name, password: Password::File(file) }),
            (Some(User { name, password: Some(secret) }), None) => {
                Some(Login { name, password: Password::Plain(secret) })
            }
            (Some(User { name, password: None }), None) => return Err(ConfigError::NoPassword { user: name }),
        };
        let prefix = Prefix::new(&self.prefix).ok_or(ConfigError::Prefix { given: self.prefix })?;
        Ok(Config { first, endpoints, cacert: self.cacert, identity, login, prefix })
    }
}

/// The variables of [`Args`] that hold a secret or lead to one. A program that starts another one takes them out of its
/// environment. A certificate goes with its key: etcdctl refuses one without the other.
pub const SECRET_VARIABLES: [&str; 5] =
    ["ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_PASSWORD_FILE", "ETCDCTL_CERT", "ETCDCTL_KEY"];

/// How to reach etcd, and the prefix that keys are relative to. Made by [`Args::resolve`].
#[derive(Clone, Debug)]
pub struct Config {
    first: Endpoint,
    endpoints: Vec<Endpoint>,
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) login: Option<Login>,
    pub(crate) prefix: Prefix,
}

impl Config {
    /// The endpoints, in the order they are tried; a client begins with any of them.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The prefix without the slash at its end: `/haproxy-discover`.
    pub fn prefix(&self) -> &str {
        self.prefix.as_str()
    }

    /// The endpoint of the given turn; the turns go round.
    pub(crate) fn endpoint(&self, turn: usize) -> &Endpoint {
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

/// Who to be towards etcd.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) name: String,
    pub(crate) password: Password,
}

/// A password, or where to read it at each connect.
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

/// Options that can't work together, or not at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// An endpoint that can't be read.
    #[error("--endpoints: {given:?}: {reason}; write http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// The endpoint as given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An empty list of endpoints.
    #[error("--endpoints names no endpoint")]
    NoEndpoint,
    /// https without a CA to check the certificate against.
    #[error("{endpoint} needs --cacert FILE; the system's own CAs are /etc/ssl/certs/ca-certificates.crt on Debian")]
    NoCa {
        /// The https endpoint.
        endpoint: Endpoint,
    },
    /// A certificate without its key, or the other way round.
    #[error("{given} needs {missing} beside it")]
    HalfIdentity {
        /// The option that is given.
        given: &'static str,
        /// The option that isn't.
        missing: &'static str,
    },
    /// A password for nobody.
    #[error("--password-file needs --user NAME beside it")]
    NoUser,
    /// A user without a password.
    #[error("--user {user} needs --password-file FILE beside it, or --user {user}:PASSWORD")]
    NoPassword {
        /// The user's name.
        user: String,
    },
    /// Two passwords.
    #[error("--user NAME:PASSWORD and --password-file give two passwords; drop one")]
    TwoPasswords,
    /// A prefix that would be the whole store.
    #[error("--prefix {given:?} must name a key, as /haproxy-discover does: the whole store can't be one's own")]
    Prefix {
        /// The prefix as given.
        given: String,
    },
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

    pub(crate) fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        Cli::try_parse_from(["test"].iter().chain(args)).expect("known options").etcd.resolve()
    }

    #[test]
    fn endpoints_come_by_commas_and_a_certificate_option_makes_them_https() {
        let endpoints = |args: &[&str]| -> Vec<String> {
            resolve(args).expect("valid").endpoints().iter().map(ToString::to_string).collect()
        };
        assert_eq!(endpoints(&[]), ["http://127.0.0.1:2379"]);
        assert_eq!(endpoints(&["--endpoints", "a, [::1]:99,"]), ["http://a:2379", "http://[::1]:99"]);
        assert_eq!(endpoints(&["--endpoints", "a:1,http://b:2", "--cacert", "/ca"]), ["https://a:1", "http://b:2"]);
        assert_eq!(resolve(&["--endpoints", ","]).err(), Some(ConfigError::NoEndpoint));
    }

    #[test]
    fn the_turns_go_round() {
        let config = resolve(&["--endpoints", "a,b,c"]).expect("valid");
        let hosts: Vec<_> = [0, 1, 2, 3, usize::MAX].map(|turn| config.endpoint(turn).host().to_owned()).into();
        assert_eq!(hosts, ["a", "b", "c", "a", "a"]);
    }

    #[test]
    fn options_that_need_each_other_say_so() {
        let refused = |args: &[&str]| resolve(args).expect_err("refused").to_string();
        assert!(refused(&["--endpoints", "https://e"]).contains("--cacert"));
        assert_eq!(refused(&["--cert", "/c", "--cacert", "/ca"]), "--cert needs --key beside it");
        assert!(refused(&["--user", "eve"]).contains("--password-file"));
        assert!(refused(&["--password-file", "/p"]).contains("--user"));
        assert_eq!(resolve(&["--user", "eve:x", "--password-file", "/p"]).err(), Some(ConfigError::TwoPasswords));
        assert!(matches!(resolve(&["--prefix", "//"]), Err(ConfigError::Prefix { .. })));
    }

    #[test]
    fn a_password_is_never_printed() {
        let args = ["test", "--user", "eve:s3cret"];
        let printed = format!("{:?}", Cli::try_parse_from(args).expect("valid").etcd);
        assert!(printed.contains("eve") && !printed.contains("s3cret"), "{printed}");
        let printed = format!("{:?}", resolve(&args[1..]).expect("valid"));
        assert!(printed.contains("eve") && !printed.contains("s3cret"), "{printed}");
    }
}
