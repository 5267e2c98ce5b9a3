//! An HTTP check: one request on its own connection. It reads no body and follows no redirect.

use std::{error::Error, sync::Arc};

use http::{
    Request,
    header::{CONNECTION, HOST, USER_AGENT},
};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::tls;
use crate::health::check::HttpCheck;

/// Sends the request. An error if the status is not an expected one.
pub(super) async fn expect_status(check: &HttpCheck, tls: &mut Option<Arc<ClientConfig>>) -> Result<(), String> {
    let stream =
        TcpStream::connect((check.connect_host(), check.connect_port())).await.map_err(|error| error.to_string())?;
    let status = match &check.trust {
        None => request_status(check, stream).await?,
        Some(trust) => {
            let config = match tls {
                Some(config) => config.clone(),
                None => tls.insert(tls::build_client_config(trust).await?).clone(),
            };
            // rustls takes an IPv6 address without the brackets that it has in a URL.
            let name = check.server_name.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
            let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
            request_status(check, stream).await?
        }
    };
    if check.status.contains(status) { Ok(()) } else { Err(format!("status {status}, expected {}", check.status)) }
}

async fn request_status(
    check: &HttpCheck,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<u16, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(innermost_cause)?;
    // Dropping the set aborts the connection's task, so a timeout leaves none behind.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let target = check.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder()
        .method(&check.method)
        .uri(target)
        .header(HOST, &check.host_header)
        // No second request follows on this connection.
        .header(CONNECTION, "close")
        .header(USER_AGENT, concat!("announcer/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &check.headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(innermost_cause)?;
    Ok(response.status().as_u16())
}

/// The innermost cause: "Connection reset by peer" says more than "error shutting down connection".
#[expect(clippy::needless_pass_by_value, reason = "taken by `map_err`")]
fn innermost_cause(error: hyper::Error) -> String {
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
