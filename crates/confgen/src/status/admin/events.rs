//! Server-sent events: they tell a page that something changed, and the page asks for itself again. It decides nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{AdminState, Shared};
use crate::status::Status;

/// The most listeners at once. The admin port serves 64 connections, and the others must stay free for probes and pages.
pub const LISTENERS: usize = 32;

/// A page asks for itself at most this often.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The rest after an event, for each upstream. HAProxy and confgen together take some 20 µs to list and to judge one, so a listener
/// takes at most a tenth of a processor.
const REST_PER_UPSTREAM: Duration = Duration::from_micros(200);

/// A comment is sent after this silence, so that a proxy keeps the connection and a listener that is gone is noticed.
const COMMENT_AFTER: Duration = Duration::from_secs(4);

/// The stream ends by itself before the admin port ends the connection, which it does after five minutes.
const ENDS_AFTER: Duration = Duration::from_secs(290);

/// The browser connects again after this, in milliseconds, with a part of a second for each listener so that they don't come together.
const RETRY_MS: u64 = 1_000;

/// One listener.
struct Listener {
    status: watch::Receiver<Status>,
    figures: watch::Receiver<u64>,
    ended: CancellationToken,
    /// The next event comes no sooner.
    not_before: Instant,
    ends_at: Instant,
    is_new: bool,
    _permit: OwnedSemaphorePermit,
}

/// The permits of all listeners.
pub fn new_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(LISTENERS))
}

pub(super) async fn get_events(State(shown): Shared) -> Response {
    // A listener that waited for room would hold one of the connections, too.
    let Ok(permit) = Arc::clone(&shown.listeners).try_acquire_owned() else {
        let words = format!("{LISTENERS} listeners follow already; the page works without events\n");
        return (StatusCode::SERVICE_UNAVAILABLE, words).into_response();
    };
    let listener = Listener::new(&shown, permit);
    Sse::new(unfold(listener, |mut listener| async move {
        let event = listener.next_event().await?;
        Some((Ok::<_, Infallible>(event), listener))
    }))
    .into_response()
}

impl Listener {
    fn new(shown: &AdminState, permit: OwnedSemaphorePermit) -> Self {
        let (mut status, mut figures) = (shown.status.clone(), shown.status.borrow().series.subscribe());
        // The page asks for itself once the connection stands, so what changed before is no news.
        status.mark_unchanged();
        figures.mark_unchanged();
        let now = Instant::now();
        let ended = shown.ended.clone();
        Self { status, figures, ended, not_before: now, ends_at: now + ENDS_AFTER, is_new: true, _permit: permit }
    }

    /// `None` at the end of the stream.
    async fn next_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.is_new) {
            // Something must be sent at once: the browser takes the connection as open with the first bytes.
            return Some(Event::default().retry(Duration::from_millis(RETRY_MS)).comment("hello"));
        }
        let comment_at = Instant::now() + COMMENT_AFTER;
        let changed = async {
            sleep_until(self.not_before).await;
            tokio::select! {
                changed = self.status.changed() => changed.is_ok(),
                changed = self.figures.changed() => changed.is_ok(),
            }
        };
        let is_open = tokio::select! {
            () = self.ended.cancelled() => false,
            () = sleep_until(self.ends_at) => false,
            () = sleep_until(comment_at) => return Some(Event::default().comment("")),
            is_open = changed => is_open,
        };
        if !is_open {
            return None;
        }
        // Both are seen with this event, so that one change makes one event.
        self.figures.mark_unchanged();
        let rest = rest_after(&self.status.borrow_and_update());
        self.not_before = Instant::now() + rest;
        // A browser drops an event without data.
        Some(Event::default().event("changed").data("1"))
    }
}

/// The time until the next event.
fn rest_after(status: &Status) -> Duration {
    let upstreams: usize = status.reconcile.desired.services().map(|(_, wanted)| wanted.servers.len()).sum();
    REST_PER_UPSTREAM.saturating_mul(u32::try_from(upstreams).unwrap_or(u32::MAX)).max(AT_MOST_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(status: &watch::Sender<Status>, ended: &CancellationToken) -> Listener {
        let figures = status.borrow().series.subscribe();
        let now = Instant::now();
        let permit = new_permits().try_acquire_owned().unwrap();
        Listener {
            status: status.subscribe(),
            figures,
            ended: ended.clone(),
            not_before: now,
            ends_at: now + ENDS_AFTER,
            is_new: true,
            _permit: permit,
        }
    }

    #[tokio::test]
    async fn a_change_is_an_event_and_a_burst_is_one_a_second() {
        let (status, ended) = (watch::Sender::new(Status::default()), CancellationToken::new());
        let mut listener = listener(&status, &ended);
        let text = |event: Option<Event>| format!("{event:?}");
        assert!(text(listener.next_event().await).contains("hello"));
        for _ in 0..3 {
            status.send_modify(|status| status.seen.revision += 1);
        }
        let began = Instant::now();
        assert!(text(listener.next_event().await).contains("changed"));
        assert!(began.elapsed() < Duration::from_millis(500));
        status.send_modify(|status| status.seen.revision += 1);
        assert!(text(listener.next_event().await).contains("changed"));
        assert!(began.elapsed() >= AT_MOST_EVERY);
        ended.cancel();
        assert!(listener.next_event().await.is_none());
    }
}
