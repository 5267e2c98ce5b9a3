//! A correct client of HTTP/2 over TLS.
//!
//! A GOAWAY names the last stream that the server may have processed: requests above it, and streams refused with
//! REFUSED_STREAM, are safe to send again (RFC 9113, 6.8 and 8.7), so they are, over a new connection, and counted. Any
//! other end of a request without its answer is a failure.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use h2::client::{SendRequest, handshake};
use h2::{Error, Reason};
use http::Request;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Failure, Fault, Kind, Plan, Reply, Tally};
use crate::{runtime, tls};

/// Workers that share a connection: enough that a GOAWAY meets requests under way, few enough that a load has several
/// connections.
const STREAMS: u32 = 8;

/// How often one request is sent at most: every restart could refuse it once, and no test restarts faster than that.
const ATTEMPTS: usize = 4;

/// One connection at a time, shared by some workers.
pub(super) struct Pool {
    plan: Plan,
    current: tokio::sync::Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Grows with each connection, so that a worker ends none but the one it saw fail.
    generation: u64,
    sender: Option<SendRequest<Bytes>>,
}

/// The pools of a load; none for HTTP/1.1.
pub(super) fn pools(plan: &Plan) -> Vec<Arc<Pool>> {
    let count = if plan.kind == Kind::Http2 { plan.workers.div_ceil(STREAMS) } else { 0 };
    (0..count).map(|_| Arc::new(Pool { plan: plan.clone(), current: Default::default() })).collect()
}

/// One worker's share of a pool.
pub(super) struct Client {
    pool: Arc<Pool>,
}

/// Why a request has no answer.
enum Unanswered {
    /// It was never sent: a GOAWAY had come already. (h2load 1.52 counts such a request as errored, and opens no other
    /// connection.)
    Unsent,
    /// The server says that it has not processed it.
    Unprocessed,
    Failed(Failure),
}

impl Client {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool) }
    }

    /// Sends the request of this number, again where the server says that it may be, and reads the whole answer.
    pub(super) async fn exchange(&mut self, number: u64, tally: &Mutex<Tally>) -> Result<Reply, Failure> {
        for _ in 0..ATTEMPTS {
            let (generation, sender) = self.pool.sender(tally).await?;
            match self.attempt(sender, number).await {
                Ok(reply) => return Ok(reply),
                Err(Unanswered::Failed(failure)) => {
                    self.pool.leave(generation).await;
                    return Err(failure);
                }
                Err(Unanswered::Unprocessed) => tally.lock().expect("the tally").retried(),
                Err(Unanswered::Unsent) => (),
            }
            self.pool.leave(generation).await;
        }
        Err(Failure::new(Fault::Protocol, format!("refused {ATTEMPTS} times on as many connections")))
    }

    async fn attempt(&self, sender: SendRequest<Bytes>, number: u64) -> Result<Reply, Unanswered> {
        let plan = &self.pool.plan;
        let url = format!("https://{}{}", plan.host, plan.target_of(number));
        let request = Request::get(url).body(()).expect("a request");
        let mut sender = sender.ready().await.map_err(|_| Unanswered::Unsent)?;
        let (answer, _) = sender.send_request(request, true).map_err(|_| Unanswered::Unsent)?;
        let stream = answer.stream_id();
        let answer = answer.await.map_err(|error| judge(&error, &format!("stream {stream:?}, no answer yet")))?;
        let status = answer.status().as_u16();
        let mut stream_body = answer.into_body();
        let mut body = Vec::new();
        while let Some(data) = stream_body.data().await {
            let data = data.map_err(|error| failed(&error, Fault::ClosedMidAnswer, "in the body"))?;
            body.extend_from_slice(&data);
            // Errors only when the stream has ended, which the next round tells.
            let _ = stream_body.flow_control().release_capacity(data.len());
        }
        Ok(Reply { status, body })
    }
}

impl Pool {
    /// The connection that requests go over now, opened where there is none.
    async fn sender(&self, tally: &Mutex<Tally>) -> Result<(u64, SendRequest<Bytes>), Failure> {
        let mut current = self.current.lock().await;
        if let Some(sender) = &current.sender {
            return Ok((current.generation, sender.clone()));
        }
        tally.lock().expect("the tally").connected();
        let sender = self.connect().await?;
        current.generation += 1;
        current.sender = Some(sender.clone());
        Ok((current.generation, sender))
    }

    /// Sends nothing more over that connection; what is under way there goes on.
    async fn leave(&self, generation: u64) {
        let mut current = self.current.lock().await;
        if current.generation == generation {
            current.sender = None;
        }
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Failure> {
        let stream = TcpStream::connect(self.plan.target).await;
        let stream = stream.map_err(|error| Failure::of_socket(&error, "connecting"))?;
        // Small frames of several streams, else held back for the acknowledgement of the one before: 40 ms each.
        stream.set_nodelay(true).map_err(|error| Failure::of_socket(&error, "connecting"))?;
        let name = ServerName::try_from(self.plan.host.clone()).expect("a host name");
        let connector = TlsConnector::from(tls::client(&["h2"]));
        let stream = connector.connect(name, stream).await;
        let stream = stream.map_err(|error| Failure::of_socket(&error, "the TLS handshake"))?;
        let shaken = handshake(stream).await;
        let (sender, connection) =
            shaken.map_err(|error| Failure::new(Fault::Protocol, format!("the HTTP/2 handshake: {error}")))?;
        // Its error is every stream's error, which is where it is counted.
        runtime::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// What the end of a stream before its answer means. The h2 crate gives a remote GOAWAY as the error of exactly those
/// streams that are above its last stream id.
fn judge(error: &Error, place: &str) -> Unanswered {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && (error.is_go_away() || refused) {
        return Unanswered::Unprocessed;
    }
    failed(error, Fault::ClosedBeforeAnswer, place)
}

fn failed(error: &Error, closed: Fault, place: &str) -> Unanswered {
    let fault = match error.get_io() {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionReset => Fault::Reset,
        Some(_) => closed,
        None if error.is_reset() => Fault::Reset,
        None => Fault::Protocol,
    };
    Unanswered::Failed(Failure::new(fault, format!("{place}: {error}")))
}
