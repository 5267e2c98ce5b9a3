//! The pages that clients see if no service answers, as lines of haproxy.cfg. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The pages in use, by status; a status without one has its built-in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages {
    pub by_status: BTreeMap<u16, Page>,
    /// Files that are not used, or whose last good copy still is, and why.
    pub rejected: BTreeMap<PathBuf, String>,
}

impl ErrorPages {
    /// The lines of the generated file, where the pages' files are in `folder`.
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

    /// The files that the lines name, and what stands in them.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.by_status.values().map(|page| (page.name.as_str(), page.content.as_slice()))
    }

    /// All of it that HAProxy takes in at its start.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.files().flat_map(|(name, content)| [name.as_bytes(), content])
    }

    /// Logs what is another than before.
    pub fn log_changes(&self, before: &Self) {
        for (file, reason) in &self.rejected {
            if before.rejected.get(file) != Some(reason) {
                tracing::warn!("error page {}: {reason}; not taken over", file.display());
            }
        }
        let differs = |(status, page): &(&u16, &Page)| before.by_status.get(status) != Some(page);
        for (_, page) in self.by_status.iter().filter(differs) {
            tracing::info!("error page {}: taken over", page.name);
        }
        for (status, page) in before.by_status.iter().filter(|(status, _)| !self.by_status.contains_key(status)) {
            tracing::info!("error page {}: gone; {status} is answered as built in", page.name);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// `404.html`
    pub name: String,
    /// As HAProxy reads it.
    pub content_type: &'static str,
    /// The bytes of the file.
    pub content: Vec<u8>,
}

/// An `http-error` line of the generated file.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpErrorLine {
    /// The status.
    pub status: u16,
    /// As HAProxy reads it.
    pub content_type: &'static str,
    /// The words, or the file with them.
    pub body: String,
}

/// What is shown where there is no page: plain, since what reads it is as often a program as a person.
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
