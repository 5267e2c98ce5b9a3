//! The console's pages: what each needs is fetched here, and `console` renders it off the async runtime.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use discovery::balancer_api::AppliedChange;
use registry::LeaseId;
use serde::Deserialize;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::events::get_events;
use super::{AdminState, Shared};
use crate::desired::names::parse_section;
use crate::state_dir::change_log::{ChangeQuery, read_changes};
use crate::status::Status;
use crate::status::console::assets::{Asset, SCRIPT, STYLE};
use crate::status::console::query::RawQuery;
use crate::status::console::service::Fetched;
use crate::status::console::services::Clock;
use crate::status::console::{Balancer, certificates, haproxy, list_balancers, service, services, store};
use crate::status::figures::Counted;

/// The folder of the balancers' records.
const BALANCERS: &str = "balancers/";
/// A page waits no longer for etcd, which may be slow.
const STORE_WITHIN: Duration = Duration::from_millis(300);
/// The most leases that etcd is asked about for a page.
const LEASES: usize = 32;
/// The last changes of a service's page.
const CHANGES: usize = 20;
/// The changes that are read for it. Those of balancers are among them.
const READ_CHANGES: usize = 200;
/// The newest files of the log that a page reads. The API reads all.
const LOG_FILES: usize = 2;
/// The longest haproxy.cfg that a page reads, in bytes. 100,000 upstreams have less.
const LONGEST_CONFIG: u64 = 64 << 20;

pub(super) fn build_page_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/", get(get_services))
        .route("/services/{id}", get(get_service))
        .route("/certificates", get(get_certificates))
        .route("/store", get(get_store))
        .route("/haproxy", get(get_haproxy))
        .route("/events", get(get_events))
        .route("/console.js", get(async |headers: HeaderMap| send_asset(&SCRIPT, &headers)))
        .route("/console.css", get(async |headers: HeaderMap| send_asset(&STYLE, &headers)))
}

fn clock() -> Clock {
    Clock { now: SystemTime::now(), instant: Instant::now() }
}

fn send_page(page: askama::Result<String>) -> Response {
    match page {
        Ok(page) => Html(page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A browser asks whether its copy is still the newest. Another release of confgen has other files at the same place.
fn send_asset(asset: &Asset, headers: &HeaderMap) -> Response {
    let tag = asset.tag();
    let head = [(CACHE_CONTROL, "no-cache".to_owned()), (ETAG, tag.clone())];
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    if known.flat_map(|value| value.split(',')).any(|value| value.trim().trim_start_matches("W/") == tag) {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    (head, [(CONTENT_TYPE, asset.kind)], asset.text).into_response()
}

async fn get_services(State(shown): Shared, Query(query): Query<RawQuery>) -> Result<Response, StatusCode> {
    let page = shown
        .respond_off_runtime(move |status, figures| services::render_page(status, figures, query.read(), clock()))
        .await?;
    Ok(send_page(page))
}

async fn get_certificates(State(shown): Shared) -> Result<Response, StatusCode> {
    let status = shown.current_status();
    let page = spawn_blocking(move || certificates::render_page(&status, clock())).await;
    page.map(send_page).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn get_haproxy(State(shown): Shared) -> Result<Response, StatusCode> {
    let status = shown.current_status();
    let page = spawn_blocking(move || haproxy::render_page(&status, SystemTime::now())).await;
    page.map(send_page).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn get_store(State(shown): Shared) -> Result<Response, StatusCode> {
    let balancers = shown.fetch_balancers().await;
    let status = shown.current_status();
    let page = spawn_blocking(move || store::render_page(&status, balancers.as_deref())).await;
    page.map(send_page).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// The query of a service's page.
#[derive(Deserialize)]
struct PageQuery {
    page: Option<String>,
}

async fn get_service(
    State(shown): Shared,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Response, StatusCode> {
    // Before HAProxy's figures, which are the newest facts of the page.
    let fetched = shown.fetch_for_service(&id).await?;
    let page = query.page.and_then(|page| page.parse().ok()).unwrap_or(1);
    let render =
        move |status: &Status, figures: &Counted| service::render_page(status, figures, &id, page, &fetched, clock());
    match shown.respond_off_runtime(render).await? {
        Some(page) => Ok(send_page(page)),
        None => Ok((StatusCode::NOT_FOUND, "no such service; / lists them all\n").into_response()),
    }
}

impl AdminState {
    /// The balancers' records. `None` if etcd doesn't answer.
    async fn fetch_balancers(&self) -> Option<Vec<Balancer>> {
        // While etcd is away, the question would take its whole time.
        if self.status.borrow().store_error.is_some() {
            return None;
        }
        let listing = timeout(STORE_WITHIN, self.sources.client.read_snapshot(BALANCERS)).await.ok()?.ok()?;
        // Off the runtime: each record may have a megabyte.
        spawn_blocking(move || list_balancers(&listing.entries)).await.ok()
    }

    async fn fetch_for_service(&self, id: &str) -> Result<Fetched, StatusCode> {
        let Some(service) = parse_section(id) else { return Ok(Fetched::default()) };
        let (state_dir, config) = (self.sources.state_dir.clone(), self.sources.haproxy_cfg.clone());
        let status = self.current_status();
        let id = id.to_owned();
        let read = spawn_blocking(move || {
            let query = ChangeQuery {
                service: Some(service),
                limit: READ_CHANGES,
                files: Some(LOG_FILES),
                ..ChangeQuery::default()
            };
            let changes =
                read_changes(&state_dir, &query).map_err(|error| format!("can't read the log of changes: {error}"));
            let leases = service::list_leases(&status, &id, LEASES);
            (changes.map(|found| select_own(found.changes)), read_config(&config), leases, status.store_error.is_some())
        });
        let (read, balancers) = tokio::join!(read, self.fetch_balancers());
        let (changes, config, leases, is_away) = read.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        // While etcd is away, every question would take its whole time.
        let leases = if is_away { BTreeMap::new() } else { self.fetch_leases(leases).await };
        Ok(Fetched { changes: Some(changes), config: Some(config), balancers, leases })
    }

    /// The time that is left of each lease. A lease that etcd doesn't answer for in time is missing.
    async fn fetch_leases(&self, leases: Vec<i64>) -> BTreeMap<i64, Option<Duration>> {
        let mut questions = JoinSet::new();
        for lease in leases {
            let client = self.sources.client.clone();
            questions.spawn(async move { (lease, client.time_to_live(LeaseId::from(lease)).await) });
        }
        let mut left = BTreeMap::new();
        let answers = async {
            while let Some(answer) = questions.join_next().await {
                if let Ok((lease, Ok(time))) = answer {
                    left.insert(lease, time);
                }
            }
        };
        // The questions that are open then end with the set.
        let _ = timeout(STORE_WITHIN, answers).await;
        left
    }
}

/// The last changes without those of balancers that come and go, which the log gives to every service.
fn select_own(changes: Vec<AppliedChange>) -> Vec<AppliedChange> {
    let mut own: Vec<AppliedChange> =
        changes.into_iter().filter(|change| !change.key.starts_with("balancers/")).collect();
    own.drain(..own.len().saturating_sub(CHANGES));
    own
}

fn read_config(path: &FilePath) -> Result<String, String> {
    match regular_file::read(path, LONGEST_CONFIG) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(format!("can't read {}: {error}", path.display())),
    }
}
