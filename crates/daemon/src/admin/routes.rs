//! Routes of every admin port: `/live`, `/ready`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use program::text::escape_line;
use prometheus_client::registry::Registry;

use super::exposition::{Format, to_classic};
use super::process;

/// A loop without a turn for this long hangs: its slowest step takes milliseconds.
const LIVE_WITHIN: Duration = Duration::from_secs(10);

/// Answers that differ between daemons. Called beside a daemon's loop, for which they must not wait.
pub trait Probes: Send + Sync + 'static {
    /// Answer of `/ready`, as text.
    ///
    /// # Errors
    /// The reason why the daemon isn't ready.
    fn check_ready(&self) -> Result<String, String>;

    /// Adds the daemon's own metrics. Called off the runtime, so it may block.
    fn register_metrics(&self, registry: &mut Registry);
}

/// Time of the last turn of a daemon's loop. Clones share it.
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
    /// Records a turn of the loop. Due every second or two.
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last beat. Before the first one, time since this was made.
    pub fn time_since_beat(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// Routes of every admin port. A daemon adds its own to them.
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
    // One line, whatever line feeds the words have: a second one would read as an answer of its own.
    match probes.check_ready() {
        Ok(words) => format!("{}\n", escape_line(&words)).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", escape_line(&reason))).into_response(),
    }
}

async fn answer_metrics(State(probes): State<Arc<dyn Probes>>, headers: HeaderMap) -> Response {
    let register = move |registry: &mut Registry| {
        probes.register_metrics(registry);
        process::register_process(registry);
    };
    respond_metrics(&headers, register).await
}

/// Answers with metrics, in the format that a request's headers prefer. The registry is new, so that each answer shows the state of
/// its own moment. `register` fills it off the runtime, so it may block.
pub async fn respond_metrics(headers: &HeaderMap, register: impl FnOnce(&mut Registry) + Send + 'static) -> Response {
    let format = Format::choose(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let encoded = tokio::task::spawn_blocking(move || {
        let mut registry = Registry::default();
        register(&mut registry);
        encode_metrics(&registry, format)
    });
    match encoded.await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn encode_metrics(registry: &Registry, format: Format) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(match format {
        Format::Classic => to_classic(&text),
        Format::OpenMetrics => text,
    })
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
