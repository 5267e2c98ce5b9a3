//! Transactions: conditions, the writes if all of them hold, the reads if not.
//!
//! A transaction is sent once. It is never repeated unless the first request can't have left.

use discovery::Entry;
use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Compare, CompareOp, PutOptions, TxnOp, TxnResponse};

use crate::client::{Client, REQUEST_TIMEOUT, Repeat};
use crate::entry::LeaseId;
use crate::entry::Prefix;
use crate::error::{Error, Operation};

/// A condition of a transaction's writes. Keys are relative to the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key doesn't exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key has this lease.
    LeaseIs(String, LeaseId),
    /// The key was last written at this revision.
    ModRevisionIs(String, i64),
    /// The key has this value.
    ValueIs(String, Vec<u8>),
}

/// A transaction: at most 128 operations, no key written twice, 1.5 MiB in all (etcd's defaults).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    conditions: Vec<Condition>,
    writes: Vec<Write>,
    reads: Vec<String>,
}

/// A write of a transaction. Keys are relative to the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes the key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// `None` writes the key without a lease.
        lease: Option<LeaseId>,
    },
    /// Deletes the key.
    Delete {
        /// The key.
        key: String,
    },
}

/// The outcome of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// True if all conditions held and everything was written. Otherwise nothing was.
    pub succeeded: bool,
    /// The store's revision after the transaction, which is that of its writes.
    pub revision: i64,
    /// The keys of [`Txn::or_get`] that exist. Empty if the conditions held.
    pub found: Vec<Entry>,
}

impl Txn {
    /// A transaction without operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes only if this condition holds too.
    #[must_use]
    pub fn only_if(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Writes a key. `None` writes it without a lease.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: Option<LeaseId>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease });
        self
    }

    /// Deletes a key. A missing one is no error.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Reads a key if the conditions don't hold.
    #[must_use]
    pub fn or_get(mut self, key: impl Into<String>) -> Self {
        self.reads.push(key.into());
        self
    }

    /// The conditions, in their order.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// The writes, in their order.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// The keys that are read if the conditions don't hold.
    pub fn reads(&self) -> &[String] {
        &self.reads
    }

    fn to_operation(&self, prefix: &Prefix) -> Operation {
        let writes: Vec<String> = self.writes.iter().map(|write| prefix.absolute_key(write.key())).collect();
        let mut reads = Vec::new();
        for key in self.conditions.iter().map(Condition::key).chain(self.reads.iter().map(String::as_str)) {
            let key = prefix.absolute_key(key);
            if !writes.contains(&key) && !reads.contains(&key) {
                reads.push(key);
            }
        }
        Operation::Commit { writes, reads }
    }

    fn into_request(self, prefix: &Prefix) -> etcd_client::Txn {
        let conditions: Vec<_> = self.conditions.into_iter().map(|condition| condition.into_compare(prefix)).collect();
        let writes: Vec<_> = self.writes.into_iter().map(|write| write.into_txn_op(prefix)).collect();
        let reads: Vec<_> = self.reads.iter().map(|key| TxnOp::get(prefix.absolute_key(key), None)).collect();
        etcd_client::Txn::new().when(conditions).and_then(writes).or_else(reads)
    }
}

impl Condition {
    fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::Present(key) => key,
            Self::LeaseIs(key, _) | Self::ModRevisionIs(key, _) | Self::ValueIs(key, _) => key,
        }
    }

    fn into_compare(self, prefix: &Prefix) -> Compare {
        let key = prefix.absolute_key(self.key());
        match self {
            // etcd compares a missing key as one with the create revision 0.
            Self::Absent(_) => Compare::create_revision(key, CompareOp::Equal, 0),
            Self::Present(_) => Compare::create_revision(key, CompareOp::Greater, 0),
            Self::LeaseIs(_, lease) => Compare::lease(key, CompareOp::Equal, lease.get()),
            Self::ModRevisionIs(_, revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
            Self::ValueIs(_, value) => Compare::value(key, CompareOp::Equal, value),
        }
    }
}

impl Write {
    fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    fn into_txn_op(self, prefix: &Prefix) -> TxnOp {
        let key = prefix.absolute_key(self.key());
        match self {
            Self::Put { value, lease, .. } => {
                TxnOp::put(key, value, lease.map(|lease| PutOptions::new().with_lease(lease.get())))
            }
            Self::Delete { .. } => TxnOp::delete(key, None),
        }
    }
}

impl Committed {
    fn from_response(answer: TxnResponse, prefix: &Prefix) -> Self {
        let answer = answer.0;
        let found = answer.responses.into_iter().filter_map(|response| match response.response {
            Some(PbTxnOpResponse::ResponseRange(range)) => Some(range.kvs),
            _ => None,
        });
        Self {
            succeeded: answer.succeeded,
            revision: answer.header.map_or(0, |header| header.revision),
            found: found.flatten().map(|kv| prefix.entry_from(kv)).collect(),
        }
    }
}

impl Client {
    /// Runs a transaction. After an error for which [`Error::is_unreachable`] holds, etcd may have applied the transaction
    /// or not. It is not sent twice, and the caller reads the keys to find out.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, Error> {
        let prefix = &self.config().prefix;
        let operation = txn.to_operation(prefix);
        let request = txn.into_request(prefix);
        let answer = self.call_with_repeats(&operation, REQUEST_TIMEOUT, Repeat::IfUnsent, |mut connection| {
            let request = request.clone();
            async move { connection.kv.txn(request).await }
        });
        Ok(Committed::from_response(answer.await?, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_every_key_once_and_what_is_written_first() {
        let prefix = Prefix::parse("/p").expect("valid");
        let txn = Txn::new()
            .only_if(Condition::Absent("a".into()))
            .only_if(Condition::LeaseIs("b".into(), LeaseId::from(7)))
            .put("b", "1", None)
            .delete("c")
            .or_get("a");
        let operation = txn.to_operation(&prefix);
        assert_eq!(
            operation,
            Operation::Commit { writes: vec!["/p/b".into(), "/p/c".into()], reads: vec!["/p/a".into()] }
        );
        assert_eq!(operation.to_string(), "writing /p/b, /p/c, reading /p/a");
    }
}
