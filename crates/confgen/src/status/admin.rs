//! The admin port: the status and HAProxy's own figures. It changes nothing, and no reconcile waits for it.

mod events;
mod pages;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use daemon::admin::{Config, Error, Probes, Pulse, Server, respond_metrics};
use discovery::balancer_api::{Changes, Identity};
use haproxy::runtime::Socket;
use prometheus_client::registry::Registry;
use registry::Client;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::local_files::expiry;
use crate::state_dir::change_log::{LogEnd, read_changes};
use crate::status::api;
use crate::status::api::Counted;
use crate::status::balancer_record::to_balancer_record;
use crate::status::problems::show_problems;
use crate::status::upstream_info::register_upstreams;
use crate::status::{HistoryEntry, Status};

/// All requests within this get the same figures, unless an action ended meanwhile. HAProxy's answer for 10,000 servers has some
/// 3 MB.
const FIGURES_LAST: Duration = Duration::from_millis(500);
/// A request to the admin port waits no longer than this for HAProxy.
const FIGURES_WITHIN: Duration = Duration::from_secs(2);

/// The description of the API, which a test of `discovery` generates from the answers' types.
const OPENAPI: &str = include_str!("../../../../docs/openapi.json");

/// The sources of the answers besides the status and HAProxy.
pub struct Sources {
    /// The directory with the log of changes.
    pub state_dir: PathBuf,
    pub log_end: Arc<LogEnd>,
    /// The file that confgen writes.
    pub haproxy_cfg: PathBuf,
    /// Tells the other balancers' records, which the replica doesn't follow, and the time that is left of leases.
    pub client: Client,
}

/// An admin port that listens, and its address to call.
pub struct Port {
    server: Server,
    url: Option<String>,
}

impl Port {
    /// Binds the configured address. `None` without a configuration, because the admin port is optional.
    pub async fn bind(config: Option<Config>) -> Result<Option<Self>, Error> {
        let Some(config) = config else { return Ok(None) };
        let url = config.public_url();
        Ok(Some(Self { server: Server::bind(config).await?, url }))
    }

    /// Answers requests until `ended`.
    pub fn serve(
        self,
        status: &watch::Sender<Status>,
        pulse: Pulse,
        socket: Socket,
        sources: Sources,
        ended: CancellationToken,
    ) {
        status.send_modify(|status| {
            status.url = self.url;
            status.series.keep_samples();
        });
        let figures = Mutex::new(None);
        let shown = Arc::new(AdminState {
            status: status.subscribe(),
            socket: socket.with_timeout(FIGURES_WITHIN),
            figures,
            sources,
            listeners: events::new_permits(),
            ended: ended.clone(),
        });
        let probes = Arc::clone(&shown);
        let routes = daemon::admin::build_routes(pulse, probes).merge(build_routes(shown));
        tokio::spawn(self.server.serve(routes, ended));
    }
}

/// The sources of all answers.
struct AdminState {
    status: watch::Receiver<Status>,
    socket: Socket,
    figures: Mutex<Option<CachedFigures>>,
    sources: Sources,
    /// The room for listeners of events.
    listeners: Arc<Semaphore>,
    /// The end of the admin port. Streams of events end with it.
    ended: CancellationToken,
}

/// HAProxy's figures, with the time of the question and the last action before it.
struct CachedFigures {
    at: Instant,
    after_action: Option<Arc<HistoryEntry>>,
    counted: Arc<Counted>,
}

impl AdminState {
    fn current_status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Answers from the status alone.
    fn respond_from_status<T: Serialize>(&self, make: impl FnOnce(&Status) -> T) -> Response {
        let status = self.current_status();
        respond_json(&status, &make(&status))
    }

    /// HAProxy's figures, never older than the last action: a client that saw a change applied gets no figures from before it.
    async fn fetch_figures(&self, acted: Option<&Arc<HistoryEntry>>) -> Arc<Counted> {
        // The lock is held over the question, so that requests that come meanwhile share its answer.
        let mut last = self.figures.lock().await;
        if let Some(figures) = &*last
            && figures.at.elapsed() < FIGURES_LAST
            && figures.after_action.as_ref() == acted
        {
            return Arc::clone(&figures.counted);
        }
        let socket = self.socket.clone();
        let asked = tokio::task::spawn_blocking(move || socket.show_stat().map_err(|error| error.to_string())).await;
        let counted = Arc::new(asked.unwrap_or_else(|error| Err(error.to_string())));
        *last = Some(CachedFigures { at: Instant::now(), after_action: acted.cloned(), counted: Arc::clone(&counted) });
        counted
    }

    /// Answers from status and figures, off the async runtime: the answer may have ten thousand upstreams.
    async fn respond_off_runtime<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Status, &Counted) -> T + Send + 'static,
    ) -> Result<T, StatusCode> {
        let status = self.current_status();
        let figures = self.fetch_figures(status.history.front()).await;
        let made = tokio::task::spawn_blocking(move || make(&status, &figures)).await;
        made.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Probes for AdminState {
    fn check_ready(&self) -> Result<String, String> {
        // Not from HAProxy's figures: a HAProxy that hangs must not delay the answer to a probe.
        self.status.borrow().check_in_sync()
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let status = self.current_status();
        // The caller is off the async runtime, and may block.
        let figures = Handle::current().block_on(self.fetch_figures(status.history.front()));
        crate::status::metrics::register_all(&status, &figures, registry);
    }
}

/// The query of `/api/v1/upstreams`.
#[derive(Deserialize)]
struct UpstreamQuery {
    service: Option<String>,
}

/// The query of `/api/v1/changes`.
#[derive(Deserialize)]
struct ChangesQuery {
    service: Option<String>,
    since: Option<String>,
    keys: Option<String>,
    limit: Option<usize>,
}

fn build_routes(shown: Arc<AdminState>) -> Router {
    let api = Router::new()
        .route("/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], OPENAPI)))
        .route("/status", get(async |State(shown): Shared| shown.respond_from_status(api::show_status)))
        .route("/quarantine", get(async |State(shown): Shared| shown.respond_from_status(api::show_quarantine)))
        .route("/history", get(async |State(shown): Shared| shown.respond_from_status(api::show_history)))
        .route("/changes", get(get_changes))
        .route("/balancer", get(async |State(shown): Shared| shown.respond_from_status(to_balancer_record)))
        .route(
            "/certificates",
            get(async |State(shown): Shared| {
                shown.respond_from_status(|status| api::show_certificates(status, expiry::unix_now()))
            }),
        )
        .route("/problems", get(get_problems))
        .route("/services", get(get_services))
        .route("/services/{id}", get(get_service))
        .route("/upstreams", get(get_upstreams))
        .fallback(async |State(shown): Shared| {
            (StatusCode::NOT_FOUND, shown.respond_from_status(|_| error_body("no such path")))
        });
    pages::build_page_routes()
        .route("/metrics/upstreams", get(get_upstream_metrics))
        .nest("/api/v1", api)
        .with_state(shown)
}

type Shared = State<Arc<AdminState>>;

async fn get_services(State(shown): Shared) -> Result<Response, StatusCode> {
    shown.respond_off_runtime(|status, figures| respond_json(status, &api::show_services(status, figures))).await
}

async fn get_problems(State(shown): Shared) -> Result<Response, StatusCode> {
    let answer =
        |status: &Status, figures: &Counted| respond_json(status, &show_problems(status, figures, SystemTime::now()));
    shown.respond_off_runtime(answer).await
}

async fn get_upstreams(State(shown): Shared, Query(which): Query<UpstreamQuery>) -> Result<Response, StatusCode> {
    let answer = move |status: &Status, figures: &Counted| {
        respond_json(status, &api::show_upstreams(status, figures, which.service.as_deref()))
    };
    shown.respond_off_runtime(answer).await
}

async fn get_changes(State(shown): Shared, Query(which): Query<ChangesQuery>) -> Result<Response, StatusCode> {
    let status = shown.current_status();
    let ChangesQuery { service, since, keys, limit } = which;
    let query = match api::parse_change_query(service.as_deref(), since.as_deref(), keys.as_deref(), limit) {
        Ok(query) => query,
        Err(words) => return Ok((StatusCode::BAD_REQUEST, respond_json(&status, &error_body(&words))).into_response()),
    };
    let (state_dir, log_end) = (shown.sources.state_dir.clone(), Arc::clone(&shown.sources.log_end));
    // Off the async runtime: the files may have some ten megabytes.
    let read = tokio::task::spawn_blocking(move || {
        // Before the files are read: they have every change up to there.
        let until_revision = log_end.await_until();
        read_changes(&state_dir, &query).map(|changes| Changes { until_revision, ..changes })
    })
    .await;
    match read.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)? {
        Ok(changes) => Ok(respond_json(&status, &changes)),
        Err(error) => {
            let words = format!("can't read the log of changes: {error}");
            Ok((StatusCode::INTERNAL_SERVER_ERROR, respond_json(&status, &error_body(&words))).into_response())
        }
    }
}

async fn get_service(State(shown): Shared, Path(id): Path<String>) -> Result<Response, StatusCode> {
    let answer = move |status: &Status, figures: &Counted| match api::find_service(status, figures, &id) {
        Some(service) => respond_json(status, &service),
        None => {
            let words = format!("no service is called {id}; http-shop is the HTTP service shop");
            (StatusCode::NOT_FOUND, respond_json(status, &error_body(&words))).into_response()
        }
    };
    shown.respond_off_runtime(answer).await
}

async fn get_upstream_metrics(State(shown): Shared, headers: HeaderMap) -> Response {
    let reconcile = Arc::clone(&shown.status.borrow().reconcile);
    respond_metrics(&headers, move |registry| register_upstreams(&reconcile.desired, registry)).await
}

/// An answer with the identity of its balancer and store.
#[derive(Serialize)]
struct Identified<'a, T> {
    identity: Identity,
    #[serde(flatten)]
    answer: &'a T,
}

fn error_body(words: &str) -> serde_json::Value {
    serde_json::json!({ "error": words })
}

/// Writes an answer. Every answer of the API comes through here, so that each has the identity.
fn respond_json(status: &Status, answer: &impl Serialize) -> Response {
    match serde_json::to_vec(&Identified { identity: api::show_identity(status), answer }) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
