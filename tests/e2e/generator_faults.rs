//! What the load generator calls each way in which a server can fail, and what it rightly forgives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::spawn;
use std::time::Duration;

use h2::server::{SendResponse, handshake};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use lab::load::{Fault, Kind, Plan, Report};
use lab::{Certificate, free_address, light, runtime};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// One worker, so that the order of requests is known.
fn few(kind: Kind, target: SocketAddr) -> Report {
    let mut plan = Plan::new(kind, target, "shop.test").rate(100).workers(1);
    plan.timeout = Duration::from_secs(1);
    plan.run(Duration::from_millis(200))
}

fn faults(report: &Report) -> Vec<Fault> {
    report.failures.iter().map(|failure| failure.fault).collect()
}

/// A server of HTTP/1.1, one connection after the other, that does `act` with the request of each number, from 0.
fn http1(act: impl Fn(usize, &mut TcpStream, &str) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    spawn(move || {
        let mut number = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(target) = read_request(&mut stream) {
                act(number, &mut stream, &target);
                number += 1;
            }
        }
    });
    address
}

fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        request.extend(byte);
    }
    String::from_utf8(request).unwrap().split(' ').nth(1).map(str::to_owned)
}

fn answer(stream: &mut TcpStream, status: u16, target: &str) {
    let body = format!("shop-1\nurl: {target}\n");
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
}

fn close(stream: &TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_connection_closed_while_idle_is_no_loss() {
    let _turn = light();
    let target = http1(|_, stream, target| {
        answer(stream, 200, target);
        // Unannounced: the client has to look at the socket before it sends.
        close(stream);
    });
    let report = few(Kind::KeepAlive, target);
    assert_eq!(faults(&report), [], "{report}");
    assert!(report.good > 10 && report.connections == report.good, "{report}");
}

#[test]
fn a_connection_that_is_kept_is_used_again() {
    let _turn = light();
    let target = http1(|_, stream, target| answer(stream, 200, target));
    let report = few(Kind::KeepAlive, target);
    assert_eq!((faults(&report).len(), report.connections), (0, 1), "{report}");
}

#[test]
fn each_failure_is_called_by_its_name() {
    let _turn = light();
    let closed_before = http1(|number, stream, target| match number {
        3 => close(stream),
        _ => answer(stream, 200, target),
    });
    let cut = http1(|number, stream, target| match number {
        3 => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshop-1").unwrap();
            close(stream);
        }
        _ => answer(stream, 200, target),
    });
    let wrong_status = http1(|number, stream, target| answer(stream, if number == 3 { 503 } else { 200 }, target));
    let wrong_body = http1(|number, stream, target| answer(stream, 200, if number == 3 { "/?n=0" } else { target }));
    let silent = http1(|number, stream, target| {
        if number != 3 {
            answer(stream, 200, target);
        }
    });
    let noise = http1(|number, stream, target| match number {
        3 => stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").unwrap(),
        _ => answer(stream, 200, target),
    });
    for (target, fault) in [
        (closed_before, Fault::ClosedBeforeAnswer),
        (cut, Fault::ClosedMidAnswer),
        (wrong_status, Fault::WrongStatus),
        (wrong_body, Fault::WrongBody),
        (silent, Fault::Timeout),
        (noise, Fault::Protocol),
    ] {
        let report = few(Kind::KeepAlive, target);
        assert_eq!(faults(&report), [fault], "{report}");
    }
    let nobody = free_address();
    let report = few(Kind::PerRequest, nobody);
    assert!(report.sent > 10 && faults(&report).iter().all(|fault| *fault == Fault::Refused), "{report}");
    assert_eq!(report.sent, report.failures.len() as u64);
}

type Stream = (Request<RecvStream>, SendResponse<axum::body::Bytes>);

/// A server of HTTP/2 that answers each request, but for the one of this number, which it leaves to `act`. What that
/// says is the error to end the whole connection with.
fn http2(
    odd: usize,
    act: impl Fn(&mut SendResponse<axum::body::Bytes>) -> Option<Reason> + Send + 'static,
) -> SocketAddr {
    let certificate = Certificate::of(&["shop.test"]);
    let chain = vec![CertificateDer::from(certificate.der)];
    let key = PrivateKeyDer::from_pem_slice(certificate.pem.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = runtime::run(async { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap() });
    let address = listener.local_addr().unwrap();
    runtime::spawn(async move {
        let mut number = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = handshake(acceptor.accept(stream).await.unwrap()).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if number == odd {
                    if let Some(reason) = act(&mut respond) {
                        connection.abrupt_shutdown(reason);
                    }
                } else {
                    reply((request, respond));
                }
                number += 1;
            }
        }
    });
    address
}

fn reply((request, mut respond): Stream) {
    let target = request.uri().path_and_query().unwrap().as_str();
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data(format!("shop-1\nurl: {target}\n").into(), true).unwrap();
}

#[test]
fn a_refused_stream_is_sent_again_and_counted() {
    let _turn = light();
    let target = http2(3, |respond| {
        respond.send_reset(Reason::REFUSED_STREAM);
        None
    });
    let report = few(Kind::Http2, target);
    assert_eq!((faults(&report).len(), report.retried), (0, 1), "{report}");
    assert!(report.good > 10, "{report}");
}

#[test]
fn any_other_reset_is_a_failure() {
    let _turn = light();
    let target = http2(3, |respond| {
        respond.send_reset(Reason::INTERNAL_ERROR);
        None
    });
    let report = few(Kind::Http2, target);
    assert_eq!((faults(&report), report.retried), (vec![Fault::Reset], 0), "{report}");
}

#[test]
fn a_stream_that_goaway_counts_as_processed_is_a_failure() {
    let _turn = light();
    // Its last stream id is that of this very request.
    let target = http2(3, |_| Some(Reason::NO_ERROR));
    let report = few(Kind::Http2, target);
    assert_eq!((faults(&report).len(), report.retried), (1, 0), "{report}");
    assert!(report.good > 10, "it goes on over a new connection:\n{report}");
}
