//! What every daemon's admin port has: `/live`, `/ready`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use super::process;

/// A loop that has not turned for so long hangs: its slowest step takes milliseconds.
const LIVE_WITHIN: Duration = Duration::from_secs(10);

/// What OpenMetrics text is called; Prometheus asks for it and curl shows it as it is.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a daemon says of itself. Called beside its loop; must not wait for it.
pub trait Probes: Send + Sync + 'static {
    /// Whether it does what it is for, in words either way.
    ///
    /// # Errors
    /// Why it doesn't.
    fn check_ready(&self) -> Result<String, String>;

    /// Adds its own metrics. Called off the runtime: it may block.
    fn register_metrics(&self, registry: &mut Registry);
}

/// The sign of life of a daemon's loop. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the last beat.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// The loop has turned. To be said every second or two.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Since the last beat, or since this was made.
    pub fn time_since_beat(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// The routes of every admin port, for a daemon to add its own to.
pub fn build_routes(pulse: Pulse, probes: Arc<dyn Probes>) -> Router {
    Router::new()
        .route("/live", get(move || std::future::ready(answer_live(pulse.time_since_beat()))))
        .route("/ready", get(answer_ready))
        .route("/metrics", get(answer_metrics))
        .with_state(probes)
}

fn answer_live(silence: Duration) -> Response {
    if silence <= LIVE_WITHIN {
        return "live\n".into_response();
    }
    let words = format!("the daemon's loop has not turned for {} s\n", silence.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
}

async fn answer_ready(State(probes): State<Arc<dyn Probes>>) -> Response {
    match probes.check_ready() {
        Ok(words) => format!("{words}\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn answer_metrics(State(probes): State<Arc<dyn Probes>>) -> Response {
    let encode = move || {
        let mut registry = Registry::default();
        probes.register_metrics(&mut registry);
        process::register_process(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).map(|()| text)
    };
    match tokio::task::spawn_blocking(encode).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_not_live() {
        assert_eq!(answer_live(Duration::from_secs(10)).status(), StatusCode::OK);
        assert_eq!(answer_live(Duration::from_secs(11)).status(), StatusCode::SERVICE_UNAVAILABLE);
        let pulse = Pulse::default();
        pulse.clone().beat();
        assert!(pulse.time_since_beat() < Duration::from_secs(1));
    }
}
