//! Listings: all keys of a range at one revision, page by page.

use std::time::Duration;

use discovery::{Entry, Snapshot};
use etcd_client::GetOptions;
use etcd_client::proto::{PbRangeResponse, PbResponseHeader};

use crate::client::{Client, Repeat};
use crate::entry::{KeepEntry, Range};
use crate::error::{Error, Operation};

/// The keys of one page. While etcd puts a page together, its other requests wait.
const PAGE_KEYS: i64 = 1000;

/// One page and its whole answer, which may be [`LARGEST_MESSAGE`](crate::connect::LARGEST_MESSAGE). The connection's pings
/// notice a silent member earlier.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// The attempts of a listing, if etcd compacts away its revision meanwhile.
const ATTEMPTS: usize = 3;

impl Client {
    /// All keys below a folder (linearizable). The empty folder has every key.
    pub async fn read_snapshot(&self, folder: &str) -> Result<Snapshot, Error> {
        self.read_filtered_snapshot(folder, Some).await
    }

    /// All keys below a folder that `keep` keeps (linearizable), each as it returns them. No more than a page of the others is
    /// ever in memory.
    pub async fn read_filtered_snapshot(&self, folder: &str, keep: KeepEntry) -> Result<Snapshot, Error> {
        self.read_range(&Range::of_folder(&self.config().prefix, folder), keep).await
    }

    /// All keys of a range (linearizable).
    pub(crate) async fn read_range(&self, range: &Range, keep: KeepEntry) -> Result<Snapshot, Error> {
        let mut attempt = 1;
        loop {
            match self.read_pages(range, 0, keep).await {
                // All pages are of the first page's revision, and a compaction may take it away between two pages.
                Err(Error::Compacted { .. }) if attempt < ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    /// All keys below a folder as they were at a revision. The error is [`Error::Compacted`] if the store no longer has the
    /// revision, and [`Error::Refused`] if it is still to come.
    pub async fn read_snapshot_at(&self, folder: &str, revision: i64) -> Result<Snapshot, Error> {
        self.read_pages(&Range::of_folder(&self.config().prefix, folder), revision, Some).await
    }

    /// Reads all pages at one revision: `revision`, or with 0 that of the first page.
    async fn read_pages(&self, range: &Range, revision: i64, keep: KeepEntry) -> Result<Snapshot, Error> {
        let operation = Operation::List(range.start().to_owned());
        let mut pages = Pages::new(range, revision);
        let mut entries: Vec<Entry> = Vec::new();
        let first = loop {
            let page = match self.read_page(&operation, &pages).await {
                Err(Error::Refused { reason, .. }) if is_too_large(&reason) && pages.shrink_limit() => continue,
                other => other?,
            };
            let header = pages.advance_past(&page);
            // The next endpoint may belong to another cluster.
            if page.header.is_some_and(|now| now.cluster_id != header.cluster_id) {
                let reason = "another cluster answered in the middle of it".to_owned();
                return Err(Error::Refused { endpoint: self.current_endpoint(), operation, reason });
            }
            let more = page.more;
            entries.extend(page.kvs.into_iter().filter_map(|kv| keep(self.config().prefix.entry_from(kv))));
            if !more {
                break header;
            }
        };
        // etcd sorts by bytes, as `String` does. Only keys that are no UTF-8 change their place.
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        // The header has the store's revision, which may be newer than the requested one.
        let revision = if revision > 0 { revision } else { first.revision };
        Ok(Snapshot { cluster: first.cluster_id, revision, raft_term: first.raft_term, entries })
    }

    async fn read_page(&self, operation: &Operation, pages: &Pages) -> Result<PbRangeResponse, Error> {
        let mut options = GetOptions::new().with_limit(pages.limit).with_revision(pages.read_revision());
        if let Some(end) = &pages.end {
            options = options.with_range(end.clone());
        }
        let answer = self.call_with_repeats(operation, PAGE_TIMEOUT, Repeat::Always, |mut connection| {
            let (start, options) = (pages.start.clone(), options.clone());
            async move { connection.kv.get(start, Some(options)).await }
        });
        Ok(answer.await?.0)
    }
}

/// The progress of a listing.
struct Pages {
    /// The first key of the next page.
    start: Vec<u8>,
    /// The first key behind the range. `None` for one key.
    end: Option<Vec<u8>>,
    limit: i64,
    /// 0 is the newest.
    requested_revision: i64,
    /// The first page's header. `None` before that page.
    first: Option<PbResponseHeader>,
}

impl Pages {
    fn new(range: &Range, requested_revision: i64) -> Self {
        let (start, end) = (range.start().as_bytes().to_vec(), range.end().map(<[u8]>::to_vec));
        Self { start, end, limit: PAGE_KEYS, requested_revision, first: None }
    }

    /// The revision of the next page: the requested one, else the first page's.
    fn read_revision(&self) -> i64 {
        if self.requested_revision > 0 {
            self.requested_revision
        } else {
            self.first.as_ref().map_or(0, |header| header.revision)
        }
    }

    /// Moves behind the page's last key, and returns the first page's header.
    fn advance_past(&mut self, page: &PbRangeResponse) -> PbResponseHeader {
        if let Some(last) = page.kvs.last() {
            // The smallest key that is greater.
            self.start = [last.key.as_slice(), b"\0"].concat();
        }
        *self.first.get_or_insert_with(|| page.header.unwrap_or_default())
    }

    /// Makes the next pages smaller. False if a page has only one key already.
    fn shrink_limit(&mut self) -> bool {
        let smaller = (self.limit / 10).max(1);
        std::mem::replace(&mut self.limit, smaller) > smaller
    }
}

/// True for the words of the gRPC library about a message beyond `LARGEST_MESSAGE`, and of etcd about one beyond its own
/// limit.
fn is_too_large(reason: &str) -> bool {
    reason.contains("message length too large") || reason.contains("larger than max")
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbKeyValue;

    use super::*;
    use crate::entry::Prefix;

    fn all() -> Range {
        Range::of_folder(&Prefix::parse("/p").expect("valid"), "")
    }

    fn page(keys: &[&str], revision: i64) -> PbRangeResponse {
        PbRangeResponse {
            header: Some(PbResponseHeader { revision, ..Default::default() }),
            kvs: keys.iter().map(|key| PbKeyValue { key: key.as_bytes().to_vec(), ..Default::default() }).collect(),
            more: true,
            count: 0,
        }
    }

    #[test]
    fn later_pages_are_read_at_the_first_ones_revision() {
        let mut pages = Pages::new(&all(), 0);
        assert_eq!((pages.start.as_slice(), pages.read_revision()), (b"/p/".as_slice(), 0));
        assert_eq!(pages.advance_past(&page(&["/p/a", "/p/b"], 7)).revision, 7);
        assert_eq!((pages.start.as_slice(), pages.read_revision()), (b"/p/b\0".as_slice(), 7));
        assert_eq!(pages.advance_past(&page(&["/p/c"], 9)).revision, 7);
        assert_eq!(pages.read_revision(), 7);
    }

    #[test]
    fn pages_shrink_to_one_key_and_no_further() {
        let mut pages = Pages::new(&all(), 0);
        let sizes: Vec<_> = std::iter::from_fn(|| pages.shrink_limit().then_some(pages.limit)).collect();
        assert_eq!(sizes, [100, 10, 1]);
    }
}
