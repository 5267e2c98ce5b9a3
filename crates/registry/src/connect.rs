//! One connection to one endpoint. Several endpoints in one `etcd_client::Client` are no failover: it goes on sending
//! a share of the requests to the dead ones.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, KvClient, LeaseClient, TlsOptions, WatchClient};

use crate::args::{Config, Login, Password};
use crate::classification::{Context, Failure, code};
use crate::endpoint::Endpoint;
use crate::error::{Error, Operation};

/// TCP, TLS, login and the first answer. A black-holed connect would hang for 20 s and more.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// HTTP/2 pings, also while idle, so that a dead connection ends by itself. Below 5 s etcd cuts the connection
/// (its `--grpc-keepalive-min-time`).
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// The largest message taken from etcd. gRPC's 4 MiB is less than one page of ordinary keys can have; a single event
/// with its previous value is at most twice etcd's `--max-request-bytes` (1.5 MiB).
pub(crate) const LARGEST_MESSAGE: usize = 64 << 20;

/// The clients of one connection. Cheap to clone; dropping the last clone closes it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
}

/// Connects, logs in, and waits for a first answer, so that what is returned was alive a moment ago.
/// Files are read each time.
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
                // As etcdctl does: a user is no error where nobody has to be one.
                Err(error) if is_auth_off(&error) => etcd_client::Client::connect([&url], Some(options)).await,
                other => other,
            }
        }
    };
    let mut client = client.map_err(|error| context.classify_error(&error))?;
    // Connecting is lazy. Any answer will do, a refusal too: it shows a member that is alive and has a leader.
    if let Err(error) = client.status().await {
        let failure = context.classify_error(&error);
        if failure.ends_connection {
            return Err(failure);
        }
    }
    Ok(Connection {
        kv: client.kv_client().max_decoding_message_size(LARGEST_MESSAGE),
        lease: client.lease_client(),
        watch: client.watch_client().max_decoding_message_size(LARGEST_MESSAGE),
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

async fn read_file(path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || regular_file::read(&file, regular_file::SMALL)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|source| Error::File { path: path.to_owned(), what, source })
}

fn is_auth_off(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if i32::from(status.code()) == code::FAILED_PRECONDITION && status.message().contains("not enabled"))
}
