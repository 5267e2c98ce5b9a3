//! The server: HTTP/1.1 on a few addresses, bounded in connections and in time. It knows nothing of the answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::args::Config;
use super::tls;
use crate::admin::access::{AccessRules, Token};
use crate::admin::escape::escape_answer;
use crate::admin::reloaded_file::ReloadedFile;

/// Enough for Prometheus, a probe, an operator and a few discoverctls. Further connections wait.
const CONNECTIONS: usize = 64;
/// Limit of the TLS handshake and of each request's head. An idle connection ends after it.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection ends with the answer after this, so that clients that don't read can't occupy all of them.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// Limit of the last answers at the end of a connection or of the server.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept. If file descriptors are missing, the next microsecond has none either.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Failure to open the admin port.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address can't be bound.
    #[error(
        "can't listen on {address}: {source}; if another daemon's admin port is there, set --admin to another address or off"
    )]
    Bind {
        /// Address from `--admin`.
        address: SocketAddr,
        /// Error of bind.
        source: std::io::Error,
    },
    /// A token or certificate can't be used.
    #[error("admin port: {0}")]
    File(String),
}

/// A bound admin port that doesn't answer yet.
pub struct Server {
    listeners: Vec<TcpListener>,
    access: Arc<AccessRules>,
    tls: Option<Arc<ReloadedFile<Arc<ServerConfig>>>>,
}

impl Server {
    /// Binds all addresses and reads all files. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// An address is taken, or a file can't be used.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let token = config.token.map(|path| {
            let from = path.clone();
            ReloadedFile::open(vec![path], move || Token::read(&from)).map_err(Error::File)
        });
        let tls = config.tls.map(|files| {
            let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
            let paths = paths.into_iter().flatten().cloned().collect();
            ReloadedFile::open(paths, move || tls::build_server_config(&files)).map(Arc::new).map_err(Error::File)
        });
        let rules = AccessRules { token: token.transpose()?, hosts: config.hosts };
        let mut listeners = Vec::new();
        for address in config.addresses {
            let bound = TcpListener::bind(address).await;
            listeners.push(bound.map_err(|source| Error::Bind { address, source })?);
        }
        Ok(Self { listeners, access: Arc::new(rules), tls: tls.transpose()? })
    }

    /// Bound addresses. Port 0 is replaced by the port that the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers until `ended` is cancelled. Open requests then get two seconds.
    pub async fn serve(self, routes: Router, ended: CancellationToken) {
        let routes = routes.layer(from_fn_with_state(self.access, admit_request)).layer(from_fn(escape_answer));
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
            tracing::info!(address, tls = self.tls.is_some(), "admin port listens");
            accepting.spawn(accept_connections(
                listener,
                Arc::clone(&permits),
                self.tls.clone(),
                routes.clone(),
                ended.clone(),
            ));
        }
        while accepting.join_next().await.is_some() {}
        // Each connection holds a permit, so all permits are free once the last one ended.
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let _ = timeout(GRACE, permits.acquire_many(all)).await;
    }
}

type Tls = Option<Arc<ReloadedFile<Arc<ServerConfig>>>>;

async fn accept_connections(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    tls: Tls,
    routes: Router,
    ended: CancellationToken,
) {
    loop {
        let next = async {
            // Before the accept: a connection that waits stays in the kernel's queue.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let Some((Ok(permit), accepted)) = ended.run_until_cancelled(next).await else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "admin port can't accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // In a task of its own: a handshake that hangs must not keep other connections from being accepted.
        let (tls, routes, ended) = (tls.clone(), routes.clone(), ended.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, tls, routes, ended).await {
                tracing::debug!(%error, "admin port's connection failed");
            }
            drop(permit);
        });
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn serve_connection(
    stream: TcpStream,
    tls: Tls,
    routes: Router,
    ended: CancellationToken,
) -> Result<(), ConnectionError> {
    let local = stream.local_addr()?.ip();
    let Some(tls) = tls else { return serve_http(stream, local, routes, ended).await };
    // The files may have changed, and reading them blocks.
    let config = tokio::task::spawn_blocking(move || tls.get()).await?;
    let stream = timeout(HEAD_WITHIN, TlsAcceptor::from(config).accept(stream)).await??;
    serve_http(stream, local, routes, ended).await
}

async fn serve_http<S>(
    stream: S,
    local: IpAddr,
    routes: Router,
    ended: CancellationToken,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(routes.layer(Extension(LocalAddress(local))));
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        done = connection.as_mut() => return Ok(done?),
        () = ended.cancelled() => {}
        () = sleep(CONNECTION_LIMIT) => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(timeout(GRACE, connection).await??)
}

/// Our address that a connection came to.
#[derive(Clone, Copy)]
struct LocalAddress(IpAddr);

/// Runs a request that the access rules allow. Sets headers so that no cache keeps the answer and no other page shows
/// it.
async fn admit_request(
    State(rules): State<Arc<AccessRules>>,
    Extension(LocalAddress(local)): Extension<LocalAddress>,
    request: Request,
    next: Next,
) -> Response {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let judged = tokio::task::spawn_blocking(move || rules.check_request(&method, &uri, &headers, local)).await;
    let mut response = match judged {
        Ok(Ok(())) => next.run(request).await,
        Ok(Err(refusal)) => refusal.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    for (name, value) in SECURITY_HEADERS {
        // A script or a style sheet has a rule of caching of its own, with an entity tag.
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

/// Headers that keep a browser from caching, embedding or interpreting an answer.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY)),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// Scripts, styles and requests of the admin port's own, and nothing in a page itself.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                              base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
