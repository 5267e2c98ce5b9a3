//! Checks as configured, and their parser. Pure.

use std::{fmt, num::NonZeroU32, path::PathBuf, time::Duration};

use discovery::StatusRange;
use http::{HeaderName, HeaderValue, Method, Uri, header::HOST, uri::Scheme};

use crate::health::Thresholds;

/// Checks of one upstream, and their pace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checks {
    /// All must pass. If empty, an app that the announcer runs has to accept one connection, and any other app counts
    /// as working.
    pub(crate) all: Vec<Check>,
    pub(crate) interval: Duration,
    /// Limit of each check, not of a round.
    pub(crate) timeout: Duration,
    pub(crate) thresholds: Thresholds,
    /// Time that an app may take to work. After that the log has a warning.
    pub(crate) grace: Duration,
}

/// A check, as one `--check` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Passes if the app accepts a connection.
    Tcp,
    /// Passes on an answer with an expected status.
    Http(Box<HttpCheck>),
    /// Passes if the command ends with status 0. The program comes first, then its arguments.
    Exec(Vec<String>),
}

/// Request of an HTTP check, and the statuses that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpCheck {
    pub(crate) uri: Uri,
    /// The URL's host and port, or `--check-host`.
    pub(crate) host_header: HeaderValue,
    /// Name that the certificate must have.
    pub(crate) server_name: String,
    pub(crate) method: Method,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) status: StatusRange,
    /// `None` for plain HTTP.
    pub(crate) trust: Option<Trust>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Certificates that a CA in this file signed.
    Ca(PathBuf),
    /// `--check-insecure`.
    AnyCertificate,
}

/// Options of all HTTP checks, as typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpOptions {
    pub(crate) method: Option<String>,
    pub(crate) status: StatusRange,
    pub(crate) headers: Vec<String>,
    pub(crate) host: Option<String>,
    pub(crate) insecure: bool,
    pub(crate) ca: Option<PathBuf>,
}

/// Invalid check, or invalid option of a check.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("--check {0:?}: a check is written http://HOST:PORT/PATH, https://…, tcp or exec:COMMAND")]
    Unknown(String),
    #[error("--check {0:?}: {1}")]
    Url(String, String),
    #[error(
        "--check {0:?}: https needs --check-ca FILE, or --check-insecure to take any certificate; \
             the system's own CAs are /etc/ssl/certs/ca-certificates.crt on Debian"
    )]
    NoTrust(String),
    #[error("--check {0:?}: the command's quotes don't match, or there is none; no shell reads it: exec:sh -c '…'")]
    Command(String),
    #[error("{option} {given:?}: {reason}")]
    Option { option: &'static str, given: String, reason: &'static str },
}

impl CheckError {
    /// Option without its dashes, which is also the config file's key.
    pub(crate) fn option_name(&self) -> &'static str {
        match self {
            Self::Option { option, .. } => option.trim_start_matches('-'),
            _ => "check",
        }
    }
}

/// Splits several checks of one text, as in `ANNOUNCER_CHECK='tcp;exec:/bin/check'`. A semicolon separates only if a
/// check begins behind it. Any other semicolon belongs to the command.
pub(crate) fn split_checks(text: &str) -> Vec<String> {
    let mut checks: Vec<String> = Vec::new();
    let mut rest = text;
    loop {
        let end = rest.match_indices(';').map(|(at, _)| at).find(|at| rest.get(at + 1..).is_some_and(begins_check));
        let (first, others) = end.and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, ""));
        checks.push(first.trim().to_owned());
        match others.strip_prefix(';') {
            Some(others) => rest = others,
            None => return checks.into_iter().filter(|check| !check.is_empty()).collect(),
        }
    }
}

/// True if a check begins here. `tcp` must be alone, since a command may have that word.
fn begins_check(text: &str) -> bool {
    let text = text.trim_start();
    text.trim_end() == "tcp"
        || text.starts_with("tcp;")
        || ["http://", "https://", "exec:"].iter().any(|scheme| text.starts_with(scheme))
}

impl Check {
    /// Parses one check. `options` apply to HTTP checks only.
    pub(crate) fn parse(text: &str, options: &HttpOptions) -> Result<Self, CheckError> {
        if text == "tcp" {
            Ok(Self::Tcp)
        } else if let Some(command) = text.strip_prefix("exec:") {
            let words = shlex::split(command).filter(|words| !words.is_empty());
            words.map(Self::Exec).ok_or_else(|| CheckError::Command(text.to_owned()))
        } else if text.starts_with("http://") || text.starts_with("https://") {
            HttpCheck::parse(text, options).map(|check| Self::Http(Box::new(check)))
        } else {
            Err(CheckError::Unknown(text.to_owned()))
        }
    }
}

impl HttpCheck {
    fn parse(text: &str, options: &HttpOptions) -> Result<Self, CheckError> {
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| invalid_url(text, &error.to_string()))?;
        let authority = uri.authority().ok_or_else(|| invalid_url(text, "there is no host in it"))?;
        let port = authority.as_str().strip_prefix(authority.host());
        // A user in the URL would not be sent. It is refused here: the authority then doesn't begin with the host.
        let has_port = authority.port_u16().is_some_and(|port| port > 0);
        if authority.host().is_empty() || !(port == Some("") || port.is_some() && has_port) {
            return Err(invalid_url(text, "it needs a host and, if need be, a port: http://127.0.0.1:8000/health"));
        }
        let trust = match (uri.scheme() == Some(&Scheme::HTTPS), &options.ca) {
            (false, _) => None,
            (true, _) if options.insecure => Some(Trust::AnyCertificate),
            (true, Some(file)) => Some(Trust::Ca(file.clone())),
            (true, None) => return Err(CheckError::NoTrust(text.to_owned())),
        };
        let host = options.host.as_deref().unwrap_or(authority.as_str());
        Ok(Self {
            host_header: HeaderValue::from_str(host)
                .map_err(|_| invalid_option("--check-host", host, "it is no host name"))?,
            server_name: options.host.as_deref().map_or(authority.host(), strip_port).to_owned(),
            method: parse_method(options.method.as_deref())?,
            headers: options.headers.iter().map(|text| parse_header(text)).collect::<Result<_, _>>()?,
            status: options.status,
            trust,
            uri,
        })
    }

    /// Host to connect to. An IPv6 address has no brackets.
    pub(crate) fn connect_host(&self) -> &str {
        self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port to connect to, by default that of the scheme.
    pub(crate) fn connect_port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(if self.trust.is_some() { 443 } else { 80 })
    }
}

fn invalid_url(text: &str, reason: &str) -> CheckError {
    CheckError::Url(text.to_owned(), reason.to_owned())
}

fn invalid_option(option: &'static str, given: &str, reason: &'static str) -> CheckError {
    CheckError::Option { option, given: given.to_owned(), reason }
}

fn parse_method(given: Option<&str>) -> Result<Method, CheckError> {
    let Some(given) = given else { return Ok(Method::GET) };
    // HTTP methods are case-sensitive (RFC 9110, section 9.1): an app refuses `get`.
    let is_word = given.bytes().all(|byte| byte.is_ascii_uppercase());
    let parsed = Method::from_bytes(given.as_bytes()).ok().filter(|_| is_word);
    parsed.ok_or_else(|| invalid_option("--check-method", given, "a method is written GET, HEAD, OPTIONS"))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), CheckError> {
    match split_header(text) {
        // A server answers 400 to two Host headers (RFC 9112, section 3.2).
        Some((name, _)) if name == HOST => Err(invalid_option("--check-header", text, "--check-host says it")),
        Some(header) => Ok(header),
        None => Err(invalid_option("--check-header", text, "a header is written 'Name: value'")),
    }
}

fn split_header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
}

/// Host of `host`, `host:port` or `[v6]:port`. An IPv6 address keeps its brackets.
fn strip_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

impl Checks {
    /// Pace of HAProxy's own checks in the generated file: `inter 2s`, `timeout check 1s`.
    pub(crate) const INTERVAL: Duration = Duration::from_secs(2);
    pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
    /// Few apps take longer to start, and the only effect is a line in the log.
    pub(crate) const GRACE: Duration = Duration::from_secs(30);
    /// The first pass announces. Three failures take back, as HAProxy's default `fall 3` does.
    pub(crate) const THRESHOLDS: Thresholds =
        Thresholds { rise: NonZeroU32::MIN, fall: NonZeroU32::MIN.saturating_add(2) };
}

/// The form of the command line.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Http(check) => write!(f, "{} {}", check.method, check.uri),
            Self::Exec(words) => write!(f, "exec:{}", words.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(text: &str, options: &HttpOptions) -> HttpCheck {
        match Check::parse(text, options) {
            Ok(Check::Http(check)) => *check,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str, options: &HttpOptions) -> String {
        Check::parse(text, options).expect_err(text).to_string()
    }

    #[test]
    fn checks_are_read() {
        let none = HttpOptions::default();
        assert_eq!(Check::parse("tcp", &none), Ok(Check::Tcp));
        let words = ["pg_isready", "-h", "my host"].map(str::to_owned).to_vec();
        assert_eq!(Check::parse("exec:pg_isready -h 'my host'", &none), Ok(Check::Exec(words)));
        let check = http("http://[::1]:8000/health?deep=1", &none);
        assert_eq!(
            (check.connect_host(), check.connect_port(), check.host_header.to_str().unwrap()),
            ("::1", 8000, "[::1]:8000")
        );
        assert_eq!((check.method.as_str(), check.trust, check.uri.query()), ("GET", None, Some("deep=1")));
        assert!(check.status.contains(200) && check.status.contains(399) && !check.status.contains(404));
    }

    #[test]
    fn http_checks_say_more() {
        let options = HttpOptions {
            method: Some("HEAD".to_owned()),
            status: "204".parse().unwrap(),
            headers: vec!["X-Probe: yes: it is".to_owned()],
            host: Some("shop.example.com:8443".to_owned()),
            insecure: false,
            ca: Some("/ca".into()),
        };
        let check = http("https://127.0.0.1/", &options);
        assert_eq!(
            (check.connect_host(), check.connect_port(), check.server_name.as_str()),
            ("127.0.0.1", 443, "shop.example.com")
        );
        assert_eq!(check.headers[0].1, "yes: it is");
        assert_eq!(check.trust, Some(Trust::Ca("/ca".into())));
        let insecure = HttpOptions { insecure: true, ..options };
        assert_eq!(http("https://127.0.0.1/", &insecure).trust, Some(Trust::AnyCertificate));
        assert_eq!(http("http://127.0.0.1/", &insecure).trust, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_hint() {
        let none = HttpOptions::default();
        for (text, word) in [
            ("ping", "exec:COMMAND"),
            ("ftp://x/", "exec:COMMAND"),
            ("http://", "http://"),
            ("http:///health", "http://"),
            ("http://user@host/", "host"),
            ("http://a:0/", "port"),
            ("http://a:99999/", "http://a:99999/"),
            ("https://a/", "--check-ca"),
            ("exec:", "sh -c"),
            ("exec:a 'b", "quotes"),
        ] {
            let error = refused(text, &none);
            assert!(error.contains(word), "{text}: {error}");
        }
        let with = |change: fn(&mut HttpOptions)| {
            let mut options = HttpOptions::default();
            change(&mut options);
            refused("http://a/", &options)
        };
        assert!(with(|options| options.method = Some("GE T".to_owned())).contains("--check-method"));
        assert!(with(|options| options.headers = vec!["nonsense".to_owned()]).contains("'Name: value'"));
        assert!(with(|options| options.headers = vec!["X: a\nb: c".to_owned()]).contains("'Name: value'"));
        assert!(with(|options| options.headers = vec!["host: x".to_owned()]).contains("--check-host"));
        assert!(with(|options| options.host = Some("a\nb".to_owned())).contains("--check-host"));
    }

    #[test]
    fn a_variable_holds_several() {
        assert_eq!(split_checks("tcp"), ["tcp"]);
        assert_eq!(split_checks("tcp; exec:sh -c 'a; b';http://h/;x;"), ["tcp", "exec:sh -c 'a; b'", "http://h/;x;"]);
        assert_eq!(split_checks("exec:a;tcp;exec:tcp;"), ["exec:a", "tcp", "exec:tcp;"]);
        assert_eq!(split_checks(" ; "), [";"]);
    }
}
