//! An upstream's record and health, from its first success on. It decides nothing.

use std::sync::Arc;

use discovery::UpstreamAddress;

use crate::config::upstream::Upstream;
use crate::health::Health;
use crate::record::Record;

/// An upstream that has worked at least once.
pub(super) struct KnownUpstream {
    pub(super) record: Arc<Record>,
    pub(super) health: Health,
}

impl KnownUpstream {
    pub(super) fn new(upstream: &Upstream, address: UpstreamAddress, health: Health) -> Self {
        let record = Record::new(upstream.announcement.clone(), address, upstream.overwrite_rules);
        Self { record: Arc::new(record), health }
    }

    pub(super) fn is_up(&self) -> bool {
        self.health.is_up()
    }
}
