//! The client of the balancers' admin ports.
//!
//! Asks all balancers at once, and accepts an answer only from the balancer that it asked. Decides nothing about an
//! answer.

mod clock;
mod identity;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use discovery::{BalancerRecords, Node};
use futures_util::future::join_all;
use reqwest::{Certificate, Identity};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;

pub(crate) use discovery::balancer_api::{
    Certificates, Changes, Problem, Problems, Quarantine, ServedBy, Service, ServiceInFull, Services, Status, Traffic,
    Upstream, Upstreams,
};

pub(crate) use clock::{ClockOffset, ClockReading};
pub(crate) use identity::is_loopback;

use crate::error::Error;
use crate::file;
use crate::shared_options::Api;
use identity::AskedBalancer;

/// Limits a request with its whole answer. confgen answers from memory, so a slower balancer is as good as unreachable.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read. One of 20,000 upstreams has some 30 MB.
const LONGEST_ANSWER: usize = 128 << 20;

/// The advice in the error for a balancer with a URL on loopback.
const LOOPBACK_HINT: &str = "a loopback address is every host's own: ask on its host, or give its confgen an --admin address that \
                        other hosts reach, with --admin-token-file; docs/deploy.md says how";

/// The answer of each balancer, or the reason why there is none.
pub(crate) type Answers<T> = BTreeMap<Node, Result<T, String>>;

/// A type of answer that the API may give.
pub(crate) trait ApiAnswer: DeserializeOwned {
    /// The value to use if the balancer answers 404; None if that is an error.
    fn answer_if_unknown() -> Option<Self> {
        None
    }
}

impl ApiAnswer for Certificates {}
impl ApiAnswer for Changes {}
impl ApiAnswer for Problems {}
impl ApiAnswer for Quarantine {}
impl ApiAnswer for Services {}
impl ApiAnswer for Status {}
impl ApiAnswer for Upstreams {}

impl ApiAnswer for ServiceInFull {
    fn answer_if_unknown() -> Option<Self> {
        // A new service is in the store before the balancer has heard of it. It has no upstream there yet.
        Some(Self::default())
    }
}

/// The live balancers, with what a request to them needs.
pub(crate) struct BalancerApi {
    http: reqwest::Client,
    token: Option<String>,
    /// Sorted by the names of the nodes.
    balancers: Vec<AskedBalancer>,
}

impl BalancerApi {
    /// Reads the token and the certificates, and sends nothing yet. `prefix` is the one below which the balancers' keys
    /// were read.
    pub(crate) fn new(api: &Api, balancers: &BalancerRecords, prefix: &str) -> Result<Self, Error> {
        let token = api.api_token_file.as_deref().map(read_token).transpose()?;
        // The balancers' certificates are the operator's own, so public authorities must not vouch for them. Without
        // --api-cacert no HTTPS certificate is trusted.
        let authorities = api.api_cacert.as_deref().map(|path| ("--api-cacert", path));
        let identity = match (&api.api_cert, &api.api_key) {
            (Some(cert), Some(key)) => {
                Some(read_client_identity(("--api-cert", cert.as_path()), ("--api-key", key.as_path()))?)
            }
            (None, None) => None,
            (Some(_), None) => return Err(Error::Usage("--api-cert needs --api-key beside it".into())),
            (None, Some(_)) => return Err(Error::Usage("--api-key needs --api-cert beside it".into())),
        };
        let http = build_http_client(authorities, identity)?;
        Ok(Self { http, token, balancers: list_balancers(balancers, prefix) })
    }

    /// Sends `GET /api/v1/<path>` to all balancers at once, for example with `services/http-shop`.
    pub(crate) async fn ask_all<T: ApiAnswer>(&self, path: &str) -> Answers<T> {
        let answers =
            self.balancers.iter().map(|asked| async move { (asked.node.clone(), self.ask_one(asked, path).await) });
        join_all(answers).await.into_iter().collect()
    }

    /// Reads the clocks of all balancers at once. A balancer without an answer of its own has none.
    pub(crate) async fn read_clocks(&self) -> BTreeMap<Node, ClockReading> {
        let readings = self.balancers.iter().map(|asked| async move {
            let url = asked.url.as_deref().ok()?;
            let answer = self.send_request(url, "status").await.ok()?;
            asked.check_origin(&answer.body).ok()?;
            Some((asked.node.clone(), answer.clock?))
        });
        join_all(readings).await.into_iter().flatten().collect()
    }

    /// This client asks exactly these balancers, at the URLs that their keys name now.
    pub(crate) fn matches_balancers(&self, balancers: &BalancerRecords, prefix: &str) -> bool {
        self.balancers == list_balancers(balancers, prefix)
    }

    async fn ask_one<T: ApiAnswer>(&self, asked: &AskedBalancer, path: &str) -> Result<T, String> {
        let url = asked.url.as_deref().map_err(ToString::to_string)?;
        let answer = self.request_answer(asked, url, path).await;
        answer.map_err(|why| match is_loopback(url) {
            true => format!("{url}: {why} ({LOOPBACK_HINT})"),
            false => format!("{url}: {why}"),
        })
    }

    /// Sends one request. An answer is parsed only after its origin is checked, whatever its status is.
    async fn request_answer<T: ApiAnswer>(&self, asked: &AskedBalancer, url: &str, path: &str) -> Result<T, String> {
        let answer = self.send_request(url, path).await?;
        asked.check_origin(&answer.body)?;
        match answer.status {
            200 => serde_json::from_slice(&answer.body).map_err(|error| format!("its answer to {path}: {error}")),
            _ => T::answer_if_unknown().ok_or_else(|| format!("it doesn't know {path}")),
        }
    }

    /// Sends one request, and reads the answer. Nothing is known about its origin.
    async fn send_request(&self, url: &str, path: &str) -> Result<RawAnswer, String> {
        let mut request = self.http.get(format!("{url}/api/v1/{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let sent_at = SystemTime::now();
        let response = request.send().await.map_err(|error| join_causes(&error))?;
        let clock = ClockReading::from_headers(response.headers(), sent_at, SystemTime::now());
        let status = response.status().as_u16();
        match status {
            // confgen's 404 names its origin, too.
            200 | 404 => {}
            401 if self.token.is_some() => return Err("it has another token than --api-token-file".into()),
            401 => return Err("it asks for a token: --api-token-file".into()),
            code => return Err(format!("it answers {code} to {path}")),
        }
        let body = read_body(response, LONGEST_ANSWER).await.map_err(|why| format!("its answer to {path}: {why}"))?;
        Ok(RawAnswer { status, body, clock })
    }
}

/// An answer of unknown origin.
struct RawAnswer {
    status: u16,
    body: Vec<u8>,
    /// None without a `Date` that makes sense.
    clock: Option<ClockReading>,
}

/// Reads the clock of an HTTP server. None if it doesn't answer, or says no date.
pub(crate) async fn read_server_clock(http: &reqwest::Client, url: &str) -> Option<ClockReading> {
    let sent_at = SystemTime::now();
    let response = http.get(url).send().await.ok()?;
    ClockReading::from_headers(response.headers(), sent_at, SystemTime::now())
}

/// A client that trusts only the CA in this file, and shows this certificate. The option that names the file is in errors.
pub(crate) fn build_http_client(
    authorities: Option<(&str, &Path)>,
    identity: Option<Identity>,
) -> Result<reqwest::Client, Error> {
    // The call fails if a provider is installed already. Any provider will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).no_proxy();
    client = client.redirect(reqwest::redirect::Policy::none());
    let mut trusted = Vec::new();
    if let Some((option, path)) = authorities {
        let bundle = Certificate::from_pem_bundle(&file::read_option_file(option, path)?);
        trusted = bundle.map_err(|error| Error::Usage(format!("{option} {}: {error}", path.display())))?;
    }
    client = client.tls_certs_only(trusted);
    if let Some(identity) = identity {
        client = client.identity(identity);
    }
    client.build().map_err(|error| Error::Usage(format!("the options of TLS: {}", join_causes(&error))))
}

/// Reads a body of at most `longest` bytes.
async fn read_body(mut response: reqwest::Response, longest: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| join_causes(&error))? {
        if body.len() + chunk.len() > longest {
            return Err(format!("it is longer than {} MiB", longest >> 20));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The live balancers, as their keys describe them.
fn list_balancers(balancers: &BalancerRecords, prefix: &str) -> Vec<AskedBalancer> {
    balancers
        .records_by_node()
        .map(|(node, said)| AskedBalancer::from_key(node, said, balancers.cluster_id(), prefix))
        .collect()
}

/// Joins an error and its causes. reqwest's outermost error alone says little more than "error sending request".
fn join_causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

/// Reads a certificate and its key, each with the option that names the file.
pub(crate) fn read_client_identity(cert: (&str, &Path), key: (&str, &Path)) -> Result<Identity, Error> {
    // reqwest takes both as one PEM, and the first file may lack a line feed at its end.
    let cert_pem = file::read_option_file(cert.0, cert.1)?;
    let key_pem = file::read_option_file(key.0, key.1)?;
    Identity::from_pem(&[&*cert_pem, &*key_pem].join(&b'\n')).map_err(|error| {
        // reqwest doesn't say in which half it found the fault.
        match PrivateKeyDer::from_pem_slice(&key_pem) {
            Ok(_) => Error::Usage(format!("{} {}: {error}", cert.0, cert.1.display())),
            Err(error) => Error::Usage(format!("{} {}: {error}", key.0, key.1.display())),
        }
    })
}

fn read_token(path: &Path) -> Result<String, Error> {
    // Editors end the file with a line feed, which is no part of the token.
    let text = String::from_utf8_lossy(&file::read_option_file("--api-token-file", path)?).trim().to_owned();
    // The token goes into a header, which can't hold other bytes.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let words = "a token is one line of letters, digits and signs, that of confgen's --admin-token-file";
        return Err(Error::Usage(format!("--api-token-file {}: {words}", path.display())));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::spawn;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_an_end_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let response = client.get(url).send().await.unwrap();
        assert_eq!(read_body(response, 1 << 20).await, Err("it is longer than 1 MiB".to_owned()));
    }
}
