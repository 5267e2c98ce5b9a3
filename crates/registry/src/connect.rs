//! One connection to one endpoint.
//!
//! It never fails over. Several endpoints in one `etcd_client::Client` go on sending a share of the requests to the dead
//! ones: with one of two dead, 35 % of the calls failed (etcd-client 0.21.1).

use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, ConnectOptions, Identity, KvClient, LeaseClient, MaintenanceClient, TlsOptions, WatchClient,
};

use crate::args::{Config, Login, Password};
use crate::classification::{Context, Failure, code};
use crate::endpoint::Endpoint;
use crate::error::{Error, Operation};
use crate::stream::shared::SharedStream;

/// TCP, TLS, login and the first answer together. A black-holed connect would hang for 20 s and more.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval and the timeout of HTTP/2 pings, also while idle, so that a dead connection ends by itself. Below 5 s etcd
/// cuts the connection (its `--grpc-keepalive-min-time`).
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// The largest message from etcd, in bytes. gRPC's default of 4 MiB is less than a page of ordinary keys can have. A single
/// event with its previous value is at most twice etcd's `--max-request-bytes` (1.5 MiB).
pub(crate) const LARGEST_MESSAGE: usize = 64 << 20;

/// The clients of one connection. They are cheap to clone. Dropping the last clone closes the connection.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) maintenance: MaintenanceClient,
    pub(crate) watch: WatchClient,
    pub(crate) shared_stream: SharedStream,
}

/// Connects, logs in, and waits for a first answer, so that the member was alive a moment ago.
///
/// Certificates and passwords are read each time, so that renewed ones are used.
pub(crate) async fn open_connection(config: &Config, endpoint: &Endpoint) -> Result<Connection, Failure> {
    let url = endpoint.to_string();
    let user = config.login.as_ref().map(|login| login.name.as_str());
    let context = Context { endpoint: &url, operation: &Operation::Connect, user };
    let options = connect_options(config, endpoint).await.map_err(Failure::before_sending)?;
    let login = match &config.login {
        Some(login) => Some((login.name.clone(), read_password(login).await.map_err(Failure::before_sending)?)),
        None => None,
    };
    let client = match login {
        None => etcd_client::Client::connect([&url], Some(options)).await,
        Some((name, password)) => {
            let with_user = options.clone().with_user(name, password).with_auto_token_refresh(true);
            match etcd_client::Client::connect([&url], Some(with_user)).await {
                // etcdctl does so too: one set of options then serves an etcd before and after `etcdctl auth enable`.
                Err(error) if is_auth_off(&error) => etcd_client::Client::connect([&url], Some(options)).await,
                other => other,
            }
        }
    };
    let mut client = client.map_err(|error| context.classify_error(&error))?;
    // Connecting is lazy without a user. Any answer will do, a refusal too: it shows a member that is alive and has a leader.
    if let Err(error) = client.status().await {
        let failure = context.classify_error(&error);
        if failure.ends_connection {
            return Err(failure);
        }
    }
    let watch = client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
    Ok(Connection {
        kv: client.kv_client().max_decoding_message_size(LARGEST_MESSAGE),
        lease: client.lease_client(),
        maintenance: client.maintenance_client(),
        shared_stream: SharedStream::new(watch.clone()),
        watch,
    })
}

async fn connect_options(config: &Config, endpoint: &Endpoint) -> Result<ConnectOptions, Error> {
    // Without "require leader" a watch on a member that lost its quorum is silent for ever.
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    Ok(if endpoint.tls { options.with_tls(tls_options(config).await?) } else { options })
}

async fn tls_options(config: &Config) -> Result<TlsOptions, Error> {
    let mut tls = TlsOptions::new();
    if let Some(path) = &config.cacert {
        tls = tls.ca_certificate(Certificate::from_pem(read_file(path, "--cacert").await?));
    }
    if let Some((cert, key)) = &config.identity {
        tls = tls.identity(Identity::from_pem(read_file(cert, "--cert").await?, read_file(key, "--key").await?));
    }
    Ok(tls)
}

async fn read_password(login: &Login) -> Result<String, Error> {
    match &login.password {
        Password::Plain(password) => Ok(password.clone()),
        Password::File(path) => {
            let text = read_file(path, "--password-file").await?;
            Ok(String::from_utf8_lossy(&text).trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

/// Reads a file that `option` names.
async fn read_file(path: &Path, option: &'static str) -> Result<Vec<u8>, Error> {
    let file = path.to_owned();
    // A file on a dead network mount may block for minutes. It blocks its own thread then.
    let read = tokio::task::spawn_blocking(move || regular_file::read(&file, regular_file::SMALL)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|source| Error::File { path: path.to_owned(), option, source })
}

fn is_auth_off(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if i32::from(status.code()) == code::FAILED_PRECONDITION && status.message().contains("not enabled"))
}
