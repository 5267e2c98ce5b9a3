//! Decides if a request is answered. Pure except for the token's file.
//!
//! The Host header is checked against DNS rebinding: a page may point its own name at 127.0.0.1 and have a browser on
//! this host ask the admin port. The browser would let the page read the answer.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::http::header::{ALLOW, AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::admin::reloaded_file::ReloadedFile;

/// A shorter token can be guessed. `openssl rand -hex 8` prints 16 characters.
const SHORTEST_TOKEN: usize = 16;

/// Secret of the `Authorization` header. It is never printed.
#[derive(Clone)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads the only line of a token's file.
    ///
    /// # Errors
    /// In words, if the file can't be read or the token is too short.
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

    /// Compares in constant time, so that the time tells nothing about the token.
    fn equals_bytes(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

/// Conditions that a request must meet.
pub struct AccessRules {
    pub(super) token: Option<ReloadedFile<Token>>,
    /// Host names of this daemon, in lower case.
    pub(super) hosts: Vec<String>,
}

/// Reason for a refused request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The Host isn't a name of this daemon.
    Host(String),
    /// The method is neither GET nor HEAD.
    Method,
    /// The token is missing or wrong.
    Token,
}

impl AccessRules {
    /// Checks a request that came to our address `local`. Blocks, since the token's file may have changed.
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
        let has_token = headers.get(AUTHORIZATION).is_some_and(|value| bears_token(value.as_bytes(), &token.get()));
        if has_token { Ok(()) } else { Err(Refusal::Token) }
    }

    /// Checks every name in the request: all Host headers, and the authority of an absolute target.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap, local: IpAddr) -> Result<(), Refusal> {
        let mut named = headers.get_all(HOST).iter().map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        let first = named.next().ok_or_else(|| Refusal::Host("no Host at all".into()))?;
        let authority = uri.authority().map(ToString::to_string);
        match [first].into_iter().chain(named).chain(authority).find(|name| !self.is_own_name(name, local)) {
            None => Ok(()),
            // The client chose the name, at any length.
            Some(name) => Err(Refusal::Host(name.chars().take(100).collect())),
        }
    }

    fn is_own_name(&self, authority: &str, local: IpAddr) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        // An address can't be rebound, so our own address and loopback are allowed.
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = literal.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip.is_loopback() || ip == local.to_canonical();
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || self.hosts.contains(&name)
    }
}

/// True for `Bearer TOKEN`. The scheme's case doesn't matter (RFC 9110, section 11.1).
fn bears_token(authorization: &[u8], token: &Token) -> bool {
    let split = authorization.split_at_checked(b"Bearer ".len());
    split.is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case(b"Bearer ") && token.equals_bytes(given))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Host(name) => {
                let text =
                    format!("421: asked by the name {name:?}, which is not known here; --admin-host makes it known\n");
                (StatusCode::MISDIRECTED_REQUEST, text).into_response()
            }
            Self::Method => {
                let text = "405: nothing can be changed here; GET and HEAD only\n";
                (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], text).into_response()
            }
            Self::Token => {
                let text =
                    "401: the header \"Authorization: Bearer TOKEN\" is missing or wrong; see --admin-token-file\n";
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response()
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
