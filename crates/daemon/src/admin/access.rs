//! Who is answered. Pure but for the token's file.
//!
//! The Host is checked because a browser on this host may be made to ask the admin port for somebody else's page: a name
//! that its owner lets point at 127.0.0.1 (DNS rebinding) makes the answer readable for that page.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::http::header::{ALLOW, AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::admin::reloaded_file::ReloadedFile;

/// Shorter tokens can be guessed; 16 bytes are what `openssl rand -hex 8` prints.
const SHORTEST_TOKEN: usize = 16;

/// The token that requests must bear. Never printed.
#[derive(Clone)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads a token's file: its only line.
    ///
    /// # Errors
    /// In words, when it can't be read, or is too short to be a secret.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = regular_file::read_text(path, regular_file::SMALL)
            .map_err(|error| format!("read {}: {error}", path.display()))?;
        let token = text.trim();
        if token.len() < SHORTEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let advice = "openssl rand -hex 32 makes one";
            return Err(format!(
                "{}: a token is one line of at least {SHORTEST_TOKEN} letters, digits or signs; {advice}",
                path.display()
            ));
        }
        Ok(Self(token.as_bytes().into()))
    }

    /// Takes as long for a near miss as for a far one.
    fn equals_bytes(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

/// What is asked of whoever asks.
pub struct AccessRules {
    pub(super) token: Option<ReloadedFile<Token>>,
    /// Names that it may be asked by, in lower case.
    pub(super) hosts: Vec<String>,
}

/// Why somebody isn't answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Asked by a name that isn't ours.
    Host(String),
    /// Not a mere question.
    Method,
    /// Without the token.
    Token,
}

impl AccessRules {
    /// Whether a request that came to this address of ours is answered. Blocks: the token's file may have changed.
    pub(super) fn check_request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        local: IpAddr,
    ) -> Result<(), Refusal> {
        self.check_host(uri, headers, local)?;
        if method != Method::GET && method != Method::HEAD {
            return Err(Refusal::Method);
        }
        let Some(token) = &self.token else { return Ok(()) };
        let bearer = |value: &axum::http::HeaderValue| {
            let (scheme, given) = value.as_bytes().split_at_checked(b"Bearer ".len())?;
            (scheme.eq_ignore_ascii_case(b"Bearer ")).then(|| token.get().equals_bytes(given))
        };
        if headers.get(AUTHORIZATION).and_then(bearer) == Some(true) { Ok(()) } else { Err(Refusal::Token) }
    }

    /// Every name that the request says counts: the Host, and the one in an absolute target.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap, local: IpAddr) -> Result<(), Refusal> {
        let mut named = headers.get_all(HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let first = named.next().ok_or_else(|| Refusal::Host("no Host at all".into()))?;
        let authority = uri.authority().map(ToString::to_string);
        match [first].into_iter().chain(named).chain(authority).find(|name| !self.is_own_name(name, local)) {
            None => Ok(()),
            Some(name) => Err(Refusal::Host(name.chars().take(100).collect())),
        }
    }

    fn is_own_name(&self, authority: &str, local: IpAddr) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip.is_loopback() || ip == local.to_canonical();
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || self.hosts.contains(&name)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let words = |code: StatusCode, words: String| (code, words).into_response();
        match self {
            Self::Host(name) => words(
                StatusCode::MISDIRECTED_REQUEST,
                format!("421: asked by the name {name:?}, which is not known here; --admin-host makes it known\n"),
            ),
            Self::Method => {
                let words = "405: nothing can be changed here; GET and HEAD only\n";
                (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], words).into_response()
            }
            Self::Token => {
                let words =
                    "401: the header \"Authorization: Bearer TOKEN\" is missing or wrong; see --admin-token-file\n";
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], words).into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn judge(gate: &AccessRules, request: axum::http::request::Builder) -> Result<(), Refusal> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        gate.check_request(&parts.method, &parts.uri, &parts.headers, "10.0.0.5".parse().unwrap())
    }

    #[test]
    fn it_is_asked_by_its_own_names_alone() {
        let gate = AccessRules { token: None, hosts: vec!["lb1".into()] };
        let ask = |host: &str| judge(&gate, Request::get("/live").header("Host", host));
        let ours = ["localhost", "LOCALHOST.:9101", "127.0.0.1:9101", "127.8.8.8", "[::1]:9101", "10.0.0.5", "lb1:80"];
        for host in ours {
            assert_eq!(ask(host), Ok(()), "{host}");
        }
        for host in ["evil.test", "localhost.evil.test", "10.0.0.6:9101", "", "lb1:x", "127.0.0.1.evil.test", "[::2]"] {
            assert!(matches!(ask(host), Err(Refusal::Host(_))), "{host}");
        }
        assert!(judge(&gate, Request::get("/live")).is_err(), "none at all");
        assert!(judge(&gate, Request::get("http://evil.test/live").header("Host", "lb1")).is_err());
        let twice = Request::get("/live").header("Host", "lb1").header("Host", "evil.test");
        assert!(judge(&gate, twice).is_err());
    }

    #[test]
    fn nothing_can_be_changed() {
        let gate = AccessRules { token: None, hosts: Vec::new() };
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
            let request = Request::builder().method(method).uri("/live").header("Host", "localhost");
            assert_eq!(judge(&gate, request), Err(Refusal::Method), "{method}");
        }
        assert_eq!(judge(&gate, Request::head("/live").header("Host", "localhost")), Ok(()));
    }

    #[test]
    fn the_token_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let put = |text: &str| {
            std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        };
        put("short\n");
        assert!(Token::read(&path).is_err_and(|error| error.contains("openssl rand")));
        put("0123456789abcdef\n");
        let from = path.clone();
        let token = ReloadedFile::open(vec![path.clone()], move || Token::read(&from)).unwrap();
        let gate = AccessRules { token: Some(token), hosts: Vec::new() };
        let ask = |authorization: &str| {
            judge(&gate, Request::get("/").header("Host", "localhost").header("Authorization", authorization))
        };
        assert_eq!(ask("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(ask("bearer 0123456789abcdef"), Ok(()));
        for wrong in ["Bearer 0123456789abcdeg", "Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", ""] {
            assert_eq!(ask(wrong), Err(Refusal::Token), "{wrong}");
        }
        assert_eq!(judge(&gate, Request::get("/").header("Host", "localhost")), Err(Refusal::Token));
        put("fedcba9876543210\n");
        assert_eq!(ask("Bearer 0123456789abcdef"), Err(Refusal::Token), "it was changed");
        assert_eq!(ask("Bearer fedcba9876543210"), Ok(()));
    }
}
