//! A small web app that says who it is: what the demo shows and the tests put load on.
#![allow(clippy::expect_used, reason = "test code: it may die with the place and the cause")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::id;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::body::Body;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use clap::Parser;
use futures_util::stream::unfold;
use lab::report_stop;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// What a balancer adds or changes on the way here.
const SHOWN: [&str; 7] = [
    "host",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-host",
    "x-request-id",
    "x-discover-color",
];

/// Answers every path with its name, version, color, pid and the request's headers of interest.
#[derive(Parser)]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// The name it gives itself
    #[arg(long, default_value = "webapp")]
    name: String,
    /// The version it gives itself
    #[arg(long = "app-version", default_value = "1")]
    version: String,
    /// The color of its page, as CSS knows it
    #[arg(long, default_value = "steelblue")]
    color: String,
    /// Milliseconds to wait before it listens
    #[arg(long, default_value_t = 0)]
    start_delay: u64,
    /// Milliseconds that requests in flight get after SIGTERM
    #[arg(long, default_value_t = 10_000)]
    grace: u64,
    /// Of so many requests one is answered 500; 0 is none
    #[arg(long, default_value_t = 0)]
    failing: u64,
    #[arg(skip)]
    asked: AtomicU64,
}

impl Args {
    /// Whether this request is one of those that fail.
    fn fails(&self) -> bool {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.failing > 0 && number.is_multiple_of(self.failing)
    }
}

// One thread: it shares two cores with HAProxy, etcd and the load.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (stop, reported) = on_signal(args.listen)?;
    if stop.run_until_cancelled(sleep(Duration::from_millis(args.start_delay))).await.is_none() {
        return Ok(());
    }
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    let grace = Duration::from_millis(args.grace);
    let app = Router::new()
        .route("/slow", get(slow))
        .route("/health", get(|| async { "ok\n" }))
        .route("/echo", get(echo))
        .route("/drip", get(drip))
        .route("/ws", get(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(chat)))
        .fallback(hello)
        .with_state(Arc::new(args));
    let served = serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let cut = async {
        stop.cancelled().await;
        sleep(grace).await;
    };
    let is_cut = tokio::select! {
        ended = served.into_future() => ended.map(|()| false)?,
        () = cut => true,
    };
    reported.await?;
    if is_cut {
        bail!("requests in flight were cut after {grace:?}");
    }
    Ok(())
}

/// What SIGTERM and SIGINT cancel. The task ends once the test's recorder has noted the stop.
fn on_signal(listen: SocketAddr) -> std::io::Result<(CancellationToken, JoinHandle<()>)> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    let reported = tokio::spawn(async move {
        tokio::select! { _ = terminated.recv() => (), _ = interrupted.recv() => () }
        // The app takes no new connection from now on, as it would without a recorder.
        cancelled.cancel();
        report_stop(listen).await;
    });
    Ok((stop, reported))
}

async fn hello(State(args): State<Arc<Args>>, uri: Uri, headers: HeaderMap) -> Response {
    let facts = facts(&args, &uri, &headers);
    if args.fails() {
        return (StatusCode::INTERNAL_SERVER_ERROR, text(&args.name, &facts)).into_response();
    }
    let wants_page = headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/html"));
    if wants_page { Html(page(&args, &facts)).into_response() } else { text(&args.name, &facts).into_response() }
}

async fn slow(State(args): State<Arc<Args>>, Query(query): Query<HashMap<String, u64>>, uri: Uri) -> Response {
    sleep(Duration::from_millis(query.get("ms").copied().unwrap_or(1000))).await;
    text(&args.name, &[("url", uri.to_string())]).into_response()
}

async fn echo(headers: HeaderMap) -> Response {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in &headers {
        all.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let json = serde_json::to_string_pretty(&all).expect("strings are JSON");
    ([(CONTENT_TYPE, "application/json")], json + "\n").into_response()
}

/// A long download: so many numbered lines, with so many milliseconds before each.
async fn drip(Query(query): Query<HashMap<String, u64>>) -> Body {
    let of = |name, default| query.get(name).copied().unwrap_or(default);
    let (lines, pause) = (of("lines", 10), Duration::from_millis(of("ms", 1000)));
    Body::from_stream(unfold(0, move |number| async move {
        if number == lines {
            return None;
        }
        sleep(pause).await;
        Some((Ok::<_, Infallible>(format!("line {number}\n")), number + 1))
    }))
}

/// Says back what it is told, until it is told nothing more.
async fn chat(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// What the app says of itself and of the request, in the order it is shown.
fn facts(args: &Args, uri: &Uri, headers: &HeaderMap) -> Vec<(&'static str, String)> {
    let itself = [
        ("version", args.version.clone()),
        ("color", args.color.clone()),
        ("pid", id().to_string()),
        ("url", uri.to_string()),
    ];
    let shown = SHOWN.into_iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
    let shown = shown.map(|(name, value)| (name, String::from_utf8_lossy(value.as_bytes()).into_owned()));
    itself.into_iter().chain(shown).collect()
}

fn text(name: &str, facts: &[(&str, String)]) -> String {
    let lines: String = facts.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    format!("{name}\n{lines}")
}

fn page(args: &Args, facts: &[(&str, String)]) -> String {
    let row = |(name, value): &(&str, String)| format!("<tr><th>{name}<td>{}", escaped(value));
    include_str!("webapp.html")
        .replace("{name}", &escaped(&args.name))
        .replace("{color}", &escaped(&args.color))
        .replace("{rows}", &facts.iter().map(row).collect::<Vec<_>>().join("\n"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
