//! The pages that clients see if no service answers, as lines of haproxy.cfg. Pure: it reads no file.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The operator's pages. A status without one has a built-in text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    pub by_status: BTreeMap<u16, Page>,
    /// Files that aren't used as they stand, with the reason. The last good copy of one may serve.
    pub rejected: BTreeMap<PathBuf, String>,
}

impl ErrorPages {
    /// The lines for all statuses, sorted. `folder` has the pages' files.
    pub fn http_error_lines(&self, folder: &str) -> Vec<HttpErrorLine> {
        let built_in = BUILT_IN.iter().map(|(status, words)| {
            (
                *status,
                HttpErrorLine { status: *status, content_type: "text/plain", body: format!("string \"{words}\\n\"") },
            )
        });
        let own = self.by_status.iter().map(|(status, page)| {
            let body = format!("file {folder}/{}", page.name);
            (*status, HttpErrorLine { status: *status, content_type: page.content_type, body })
        });
        built_in.chain(own).collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// The name and the content of each file that the lines name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.by_status.values().map(|page| (page.name.as_str(), page.content.as_slice()))
    }

    /// All bytes that HAProxy reads only at its start, for a fingerprint.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.files().flat_map(|(name, content)| [name.as_bytes(), content])
    }

    /// Logs the differences from `before`.
    pub fn log_changes(&self, before: &Self) {
        for (file, reason) in &self.rejected {
            if before.rejected.get(file) != Some(reason) {
                tracing::warn!(file = %file.display(), %reason, "rejected an error page");
            }
        }
        for (status, page) in &self.by_status {
            if before.by_status.get(status) != Some(page) {
                tracing::info!(status, file = page.name, "error page loaded");
            }
        }
        for (status, page) in before.by_status.iter().filter(|(status, _)| !self.by_status.contains_key(status)) {
            tracing::info!(status, file = page.name, "error page deleted, answering with the built-in text");
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The file's name, `404.html`.
    pub name: String,
    /// The word of haproxy.cfg, with quotes if it needs them.
    pub content_type: &'static str,
    pub content: Vec<u8>,
}

/// An `http-error` line of the generated file.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpErrorLine {
    pub status: u16,
    /// The word of haproxy.cfg, with quotes if it needs them.
    pub content_type: &'static str,
    /// `string "…"` or `file …`.
    pub body: String,
}

/// The built-in texts. They are plain, since a program reads them as often as a person does.
pub(crate) const BUILT_IN: [(u16, &str); 10] = [
    (400, "400 Bad Request"),
    (403, "403 Forbidden: this address may not come in"),
    (404, "404 Not Found: no service answers for this host and path"),
    (408, "408 Request Timeout"),
    (421, "421 Misdirected Request: this host has connections of its own"),
    (429, "429 Too Many Requests"),
    (500, "500 Internal Server Error"),
    (502, "502 Bad Gateway: the upstream's answer is not valid"),
    (503, "503 Service Unavailable: no upstream is ready"),
    (504, "504 Gateway Timeout: the upstream takes too long"),
];
