//! The parts that all pages have: the balancer's name, its state, and where the reader is. Pure.

use crate::status::Status;

/// The head of a page.
pub struct Frame {
    /// The page's name: `services`, `service`, `certificates`, `store`, `haproxy`.
    pub page: &'static str,
    /// The title without the balancer's name.
    pub title: String,
    /// The balancer's name: `--node`.
    pub node: String,
    /// confgen's release.
    pub release: &'static str,
    pub in_sync: bool,
    /// The state in words, with the reason.
    pub words: String,
    /// HAProxy's release. `None` if none answers.
    pub haproxy: Option<String>,
    /// etcd is followed.
    pub has_store: bool,
}

impl Frame {
    pub fn new(status: &Status, page: &'static str, title: impl Into<String>) -> Self {
        let in_sync = status.check_in_sync();
        Self {
            page,
            title: title.into(),
            node: status.identity.node.clone(),
            release: env!("CARGO_PKG_VERSION"),
            in_sync: in_sync.is_ok(),
            words: in_sync.unwrap_or_else(|reason| reason),
            haproxy: status.running.as_ref().map(|running| running.version.to_string()),
            has_store: status.store_error.is_none(),
        }
    }

    /// `in sync` or `not in sync`.
    pub fn sync_word(&self) -> &'static str {
        if self.in_sync { "in sync" } else { "not in sync" }
    }

    /// True if the reader is on this page of the navigation. A service's page is below the list of services.
    pub fn is_at(&self, page: &str) -> bool {
        self.page == page || (self.page == "service" && page == "services")
    }
}
