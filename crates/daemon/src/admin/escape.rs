//! Escapes hidden characters in every answer, so that none moves a terminal's cursor or turns the order of a text. It knows
//! nothing of the answers but their content type.

use std::borrow::Cow;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use program::text::{escape_json, escape_lines};

use super::exposition::CLASSIC_TYPE;

/// Runs a request, and escapes the answer. Names and reasons in it come from the store, from apps and from files.
pub(super) async fn escape_answer(request: Request, next: Next) -> Response {
    let (mut head, body) = next.run(request).await.into_parts();
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let Some(escape) = find_escape(kind) else { return Response::from_parts(head, body) };
    // Every answer is in memory as a whole.
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    // Off the runtime: an answer may have some 30 MB.
    let escaped = tokio::task::spawn_blocking(move || {
        let escaped = match escape(&String::from_utf8_lossy(&bytes)) {
            Cow::Borrowed(_) => None,
            Cow::Owned(escaped) => Some(escaped),
        };
        (bytes, escaped)
    });
    match escaped.await {
        Ok((bytes, None)) => Response::from_parts(head, Body::from(bytes)),
        Ok((_, Some(escaped))) => {
            head.headers.remove(CONTENT_LENGTH);
            Response::from_parts(head, Body::from(escaped))
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

type Escape = fn(&str) -> Cow<'_, str>;

/// The way in which an answer of this content type shows a hidden character.
fn find_escape(kind: &str) -> Option<Escape> {
    match kind.split(';').next().unwrap_or_default() {
        _ if kind == CLASSIC_TYPE => Some(escape_metrics),
        "application/json" => Some(escape_json),
        "application/openmetrics-text" => Some(escape_metrics),
        // A stream of events has no end, and nothing from the store.
        "text/event-stream" => None,
        kind if kind.starts_with("text/") => Some(escape_lines),
        _ => None,
    }
}

/// Escapes hidden characters in metrics. They stand in the values of labels, where a backslash is written twice.
fn escape_metrics(text: &str) -> Cow<'_, str> {
    if matches!(escape_lines(text), Cow::Borrowed(_)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match escape_lines(c.encode_utf8(&mut [0; 4])) {
            Cow::Borrowed(plain) => escaped.push_str(plain),
            Cow::Owned(hidden) => escaped.extend(["\\", hidden.as_str()]),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_answer_shows_all_that_it_holds() {
        let shown = |kind: &str, text| find_escape(kind).map(|escape| escape(text).into_owned());
        let text = "a\u{1b}[2J\u{9b}\u{202e}\nb\\";
        assert_eq!(shown("text/plain; charset=utf-8", text).as_deref(), Some("a\\u{1b}[2J\\u{9b}\\u{202e}\nb\\"));
        assert_eq!(shown("text/html", "é\n").as_deref(), Some("é\n"));
        assert_eq!(shown("application/json", "\"\u{9b}\u{202e}\"").as_deref(), Some(r#""\u009b\u202e""#));
        let metrics = "x{file=\"a\u{1b}b\\\\\"} 1\n";
        for kind in ["application/openmetrics-text; version=1.0.0", CLASSIC_TYPE] {
            assert_eq!(shown(kind, metrics).as_deref(), Some("x{file=\"a\\\\u{1b}b\\\\\"} 1\n"), "{kind}");
        }
        assert_eq!(shown("image/png", text), None);
        assert_eq!(shown("text/event-stream", text), None);
    }
}
