//! The balancers' API: what each HAProxy makes of the store.

mod api;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use discovery::{Balancers, Node};
use futures_util::future::join_all;
use reqwest::{Certificate, Identity};
use serde::de::DeserializeOwned;

pub(crate) use api::{Quarantine, Service, ServiceInFull, Services, Status, Traffic, Upstream, Upstreams};

use crate::args::Api;
use crate::error::Error;

/// One request and its whole answer; the API answers from memory.
const REQUEST: Duration = Duration::from_secs(3);

/// What each balancer answered, or why it didn't.
pub(crate) type Answers<T> = BTreeMap<Node, Result<T, String>>;

/// What the API may answer.
pub(crate) trait Answer: DeserializeOwned {
    /// What stands for an answer where the balancer doesn't know what it is asked about.
    fn unknown() -> Option<Self> {
        None
    }
}

/// The balancers that live, and how they are asked.
pub(crate) struct Fleet {
    http: reqwest::Client,
    token: Option<String>,
    /// By node, where its API is; none where it doesn't say.
    urls: BTreeMap<Node, Option<String>>,
}

impl Fleet {
    /// Nothing is asked yet.
    pub(crate) fn new(api: &Api, balancers: &Balancers) -> Result<Self, Error> {
        // A second call finds it installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = api.api_token_file.as_deref().map(read).transpose()?;
        let token = token.map(|token| String::from_utf8_lossy(&token).trim().to_owned());
        let mut client = reqwest::Client::builder().timeout(REQUEST).no_proxy();
        client = client.redirect(reqwest::redirect::Policy::none());
        // With no CA of one's own nobody is trusted: the balancers' certificates are the operator's.
        let mut authorities = Vec::new();
        if let Some(path) = &api.api_cacert {
            let bundle = Certificate::from_pem_bundle(&read(path)?);
            authorities = bundle.map_err(|error| Error::Usage(format!("--api-cacert {}: {error}", path.display())))?;
        }
        client = client.tls_certs_only(authorities);
        if let (Some(cert), Some(key)) = (&api.api_cert, &api.api_key) {
            client = client.identity(identity(cert, key)?);
        }
        let http = client.build().map_err(|error| Error::Usage(format!("the API's options: {}", chain(&error))))?;
        let urls = balancers.nodes().map(|(node, said)| (node.clone(), said.and_then(|it| it.url.clone())));
        Ok(Self { http, token, urls: urls.collect() })
    }

    /// Asks all of them at once: `services/http-shop`.
    pub(crate) async fn ask<T: Answer>(&self, path: &str) -> Answers<T> {
        let asked = self.urls.iter().map(|(node, url)| async move {
            let answer = match url {
                Some(url) => self.ask_one(url, path).await,
                None => Err("it doesn't say where its API is: --admin and --admin-host of its confgen".to_owned()),
            };
            (node.clone(), answer)
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Whether these are the balancers that it asks, and where they are.
    pub(crate) fn is_of(&self, balancers: &Balancers) -> bool {
        let urls = balancers.nodes().map(|(node, said)| (node, said.and_then(|it| it.url.as_ref())));
        urls.eq(self.urls.iter().map(|(node, url)| (node, url.as_ref())))
    }

    async fn ask_one<T: Answer>(&self, url: &str, path: &str) -> Result<T, String> {
        let mut request = self.http.get(format!("{url}/api/v1/{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| chain(&error))?;
        let status = response.status();
        match status.as_u16() {
            200 => response.json().await.map_err(|error| chain(&error)),
            404 => T::unknown().ok_or_else(|| format!("{url} doesn't know {path}")),
            401 => Err(format!("{url} asks for a token: --api-token-file")),
            code => Err(format!("{url} answers {code} to {path}")),
        }
    }
}

/// An error with its causes: the outermost alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

fn identity(cert: &PathBuf, key: &PathBuf) -> Result<Identity, Error> {
    let both = [read(cert)?, read(key)?].join(&b'\n');
    Identity::from_pem(&both).map_err(|error| Error::Usage(format!("--api-cert {}: {error}", cert.display())))
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|error| Error::Usage(format!("{} can't be read: {error}", path.display())))
}
