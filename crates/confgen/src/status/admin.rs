//! The admin port: the report and HAProxy's own figures, shown. Nothing here can change anything, or keep a round waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use daemon::admin::{Config, Error, Probes, Pulse, Server};
use haproxy::runtime::Socket;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::local_files::expiry;
use crate::status::api;
use crate::status::api::Counted;
use crate::status::balancer_record::said;
use crate::status::page::page;
use crate::status::{Done, Status};

/// HAProxy's figures serve everybody who asks within this, until the next act's end: its answer for 10,000 servers has some
/// 3 MB.
const FIGURES_LAST: Duration = Duration::from_millis(500);
/// A HAProxy that is slower than this has other worries.
const FIGURES_WITHIN: Duration = Duration::from_secs(2);

/// An admin port that listens, and its address to call.
pub struct Port {
    server: Server,
    url: Option<String>,
}

impl Port {
    /// Binds it, where there is to be one.
    pub async fn bind(config: Option<Config>) -> Result<Option<Self>, Error> {
        let Some(config) = config else { return Ok(None) };
        let url = config.url();
        Ok(Some(Self { server: Server::bind(config).await?, url }))
    }

    /// Answers from now on, beside the daemon.
    pub fn open(self, report: &watch::Sender<Status>, pulse: Pulse, socket: Socket, ended: CancellationToken) {
        report.send_modify(|report| report.url = self.url);
        let figures = Mutex::new(None);
        let shown =
            Arc::new(Shown { report: report.subscribe(), socket: socket.with_timeout(FIGURES_WITHIN), figures });
        let probes = Arc::clone(&shown);
        let routes = daemon::admin::routes(pulse, probes).merge(routes(shown));
        tokio::spawn(self.server.serve(routes, ended));
    }
}

/// What is shown.
struct Shown {
    report: watch::Receiver<Status>,
    socket: Socket,
    figures: Mutex<Option<Figures>>,
}

/// What HAProxy counted, when it was asked, and after which act.
struct Figures {
    at: Instant,
    after: Option<Arc<Done>>,
    counted: Arc<Counted>,
}

impl Shown {
    fn report(&self) -> Status {
        self.report.borrow().clone()
    }

    /// Makes an answer of the report alone.
    fn answer<T: Serialize>(&self, make: impl FnOnce(&Status) -> T) -> Response {
        let report = self.report();
        json(&report, &make(&report))
    }

    /// HAProxy's figures, asked for once however many want them. They are never from before the last act: who has heard that
    /// HAProxy follows a change isn't shown what it was until then.
    async fn figures(&self, acted: Option<&Arc<Done>>) -> Arc<Counted> {
        let mut last = self.figures.lock().await;
        if let Some(figures) = &*last
            && figures.at.elapsed() < FIGURES_LAST
            && figures.after.as_ref() == acted
        {
            return Arc::clone(&figures.counted);
        }
        let socket = self.socket.clone();
        let asked = tokio::task::spawn_blocking(move || socket.stats().map_err(|error| error.to_string())).await;
        let counted = Arc::new(asked.unwrap_or_else(|error| Err(error.to_string())));
        *last = Some(Figures { at: Instant::now(), after: acted.cloned(), counted: Arc::clone(&counted) });
        counted
    }

    /// Makes an answer of report and figures, off the runtime: there may be ten thousand upstreams in it.
    async fn made<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Status, &Counted) -> T + Send + 'static,
    ) -> Result<T, StatusCode> {
        let report = self.report();
        let figures = self.figures(report.history.front()).await;
        let made = tokio::task::spawn_blocking(move || make(&report, &figures)).await;
        made.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Probes for Shown {
    fn ready(&self) -> Result<String, String> {
        self.report.borrow().in_sync()
    }

    fn metrics(&self, registry: &mut Registry) {
        let report = self.report();
        // This is called off the runtime, where waiting is allowed.
        let figures = Handle::current().block_on(self.figures(report.history.front()));
        crate::status::metrics::register(&report, &figures, registry);
    }
}

/// Which upstreams are asked for.
#[derive(Deserialize)]
struct Which {
    service: Option<String>,
}

fn routes(shown: Arc<Shown>) -> Router {
    let api = Router::new()
        .route("/status", get(async |State(shown): Shared| shown.answer(api::status)))
        .route("/quarantine", get(async |State(shown): Shared| shown.answer(api::quarantine)))
        .route("/history", get(async |State(shown): Shared| shown.answer(api::history)))
        .route("/balancer", get(async |State(shown): Shared| shown.answer(said)))
        .route(
            "/certificates",
            get(async |State(shown): Shared| shown.answer(|report| api::certificates(report, expiry::now()))),
        )
        .route("/services", get(services))
        .route("/services/{id}", get(service))
        .route("/upstreams", get(upstreams))
        .fallback(async |State(shown): Shared| (StatusCode::NOT_FOUND, shown.answer(|_| error("no such path"))));
    Router::new().route("/", get(status_page)).nest("/api/v1", api).with_state(shown)
}

type Shared = State<Arc<Shown>>;

async fn services(State(shown): Shared) -> Result<Response, StatusCode> {
    shown.made(|report, figures| json(report, &api::services(report, figures))).await
}

async fn upstreams(State(shown): Shared, Query(which): Query<Which>) -> Result<Response, StatusCode> {
    let answer = move |report: &Status, figures: &Counted| {
        json(report, &api::upstreams(report, figures, which.service.as_deref()))
    };
    shown.made(answer).await
}

async fn service(State(shown): Shared, Path(id): Path<String>) -> Result<Response, StatusCode> {
    let answer = move |report: &Status, figures: &Counted| match api::service(report, figures, &id) {
        Some(service) => json(report, &service),
        None => {
            let words = format!("no service is called {id}; http-shop is the HTTP service shop");
            (StatusCode::NOT_FOUND, json(report, &error(&words))).into_response()
        }
    };
    shown.made(answer).await
}

async fn status_page(State(shown): Shared) -> Result<Response, StatusCode> {
    let page = shown.made(page).await?;
    Ok(Html(page.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?).into_response())
}

/// An answer with the balancer and the store that it is about.
#[derive(Serialize)]
struct Identified<'a, T> {
    identity: api::IdentityShown,
    #[serde(flatten)]
    answer: &'a T,
}

fn error(words: &str) -> serde_json::Value {
    serde_json::json!({ "error": words })
}

/// Writes an answer. Every answer of the API comes through here, so that each says whose it is.
fn json(report: &Status, answer: &impl Serialize) -> Response {
    match serde_json::to_vec(&Identified { identity: api::identity(report), answer }) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
