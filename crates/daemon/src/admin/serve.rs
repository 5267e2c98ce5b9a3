//! The server: HTTP/1.1 on a few addresses, bounded in connections and in time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
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
use crate::admin::reloaded_file::ReloadedFile;

/// Prometheus, a probe, a person and a few discoverctls; more wait for their turn.
const CONNECTIONS: usize = 64;
/// For the TLS handshake, and for each request's head; an idle connection ends after it too.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection ends with the answer after this, so that clients who don't read can't keep all of them.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// For the last answers at the end, of a connection or of the server.
const GRACE: Duration = Duration::from_secs(2);
/// An address that can't be accepted on for want of file descriptors will not be better in the next microsecond.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the admin port can't be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that can't be bound.
    #[error("--admin {address}: {source}; is another daemon's admin port there? --admin takes another address, or off")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A token or a certificate that can't be used.
    #[error("admin port: {0}")]
    File(String),
}

/// An admin port that listens and doesn't answer yet.
pub struct Server {
    listeners: Vec<TcpListener>,
    access: Arc<AccessRules>,
    tls: Option<Arc<ReloadedFile<Arc<ServerConfig>>>>,
}

impl Server {
    /// Binds all addresses and reads all files. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When an address is taken, or a file is no good.
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
        let gate = AccessRules { token: token.transpose()?, hosts: config.hosts };
        let mut listeners = Vec::new();
        for address in config.addresses {
            let bound = TcpListener::bind(address).await;
            listeners.push(bound.map_err(|source| Error::Bind { address, source })?);
        }
        Ok(Self { listeners, access: Arc::new(gate), tls: tls.transpose()? })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers until told to end, then finishes what it has begun, for two seconds at most.
    pub async fn serve(self, routes: Router, ended: CancellationToken) {
        let routes = routes.layer(from_fn_with_state(self.access, admit_request));
        let turns = Arc::new(Semaphore::new(CONNECTIONS));
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            let address = listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string());
            tracing::info!("admin port: http{}://{address}", if self.tls.is_some() { "s" } else { "" });
            accepting.spawn(accept_connections(
                listener,
                Arc::clone(&turns),
                self.tls.clone(),
                routes.clone(),
                ended.clone(),
            ));
        }
        while accepting.join_next().await.is_some() {}
        // Connections hold a permit each.
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let _ = timeout(GRACE, turns.acquire_many(all)).await;
    }
}

type Tls = Option<Arc<ReloadedFile<Arc<ServerConfig>>>>;

async fn accept_connections(
    listener: TcpListener,
    turns: Arc<Semaphore>,
    tls: Tls,
    routes: Router,
    ended: CancellationToken,
) {
    loop {
        let next = async {
            let turn = Arc::clone(&turns).acquire_owned().await;
            (turn, listener.accept().await)
        };
        let Some((Ok(turn), accepted)) = ended.run_until_cancelled(next).await else { return };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("admin port: accept: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, routes, ended) = (tls.clone(), routes.clone(), ended.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, tls, routes, ended).await {
                tracing::debug!("admin port: {error}");
            }
            drop(turn);
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

/// The address of ours that a connection came to.
#[derive(Clone, Copy)]
struct LocalAddress(IpAddr);

/// Answers those that the gate lets in. Whatever is shown is as it is now, and is no page of anybody else's.
async fn admit_request(
    State(gate): State<Arc<AccessRules>>,
    Extension(LocalAddress(local)): Extension<LocalAddress>,
    request: Request,
    next: Next,
) -> Response {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let judged = tokio::task::spawn_blocking(move || gate.check_request(&method, &uri, &headers, local)).await;
    let mut response = match judged {
        Ok(Ok(())) => next.run(request).await,
        Ok(Err(refusal)) => refusal.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    response.headers_mut().extend(SECURITY_HEADERS);
    response
}

/// What a browser shall make of it: nothing but what it is.
const SECURITY_HEADERS: [(HeaderName, HeaderValue); 5] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY)),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// No script, no picture, nothing from anywhere; the status page has its style within it.
const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
