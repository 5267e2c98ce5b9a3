//! The status of each endpoint's member, for diagnoses.
//!
//! Each endpoint gets a connection of its own, because the client's connection leads to one of them only.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::Config;
use crate::classification::Context;
use crate::client::{Client, REQUEST_TIMEOUT};
use crate::connect::{CONNECT_TIMEOUT, open_connection};
use crate::endpoint::Endpoint;
use crate::error::{Error, Operation};

/// The status of a member, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// etcd's release: `3.5.16`.
    pub version: String,
    /// The time until the answer, over a connection that was open.
    pub latency: Duration,
    /// The cluster's id.
    pub cluster: u64,
    /// True if the member knows a leader. Without one it answers no linearizable request.
    pub has_leader: bool,
    /// True for a member without a vote, which answers no client's request.
    pub is_learner: bool,
    /// The size of the database's file in bytes, with the free space in it.
    pub database_bytes: u64,
    /// The size in bytes at which etcd refuses every write (`--quota-backend-bytes`). `None` before etcd 3.6, which doesn't say.
    pub quota_bytes: Option<u64>,
    /// The alarms and other faults, in etcd's words: `alarm:NOSPACE`.
    pub faults: Vec<String>,
}

impl Client {
    /// Asks all endpoints at once. Returns each endpoint's URL with its answer, in the order of `--endpoints`.
    pub async fn member_statuses(&self) -> Vec<(String, Result<MemberStatus, Error>)> {
        let mut asked = JoinSet::new();
        for (at, endpoint) in self.config().endpoints().iter().enumerate() {
            let (config, endpoint) = (self.config().clone(), endpoint.clone());
            asked.spawn(async move { (at, endpoint.to_string(), ask_member(&config, &endpoint).await) });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asked.join_next().await {
            answers.extend(answer);
        }
        answers.sort_by_key(|(at, _, _)| *at);
        answers.into_iter().map(|(_, endpoint, answer)| (endpoint, answer)).collect()
    }
}

async fn ask_member(config: &Config, endpoint: &Endpoint) -> Result<MemberStatus, Error> {
    let (url, operation) = (endpoint.to_string(), Operation::Status);
    let user = config.login.as_ref().map(|login| login.name.as_str());
    let context = Context { endpoint: &url, operation: &operation, user };
    let mut connection = match timeout(CONNECT_TIMEOUT, open_connection(config, endpoint)).await {
        Ok(opened) => opened.map_err(|failure| failure.error)?,
        Err(_) => return Err(context.no_answer(CONNECT_TIMEOUT).error),
    };
    // `open_connection` has waited for an answer, so this time has no handshake in it.
    let asked_at = Instant::now();
    match timeout(REQUEST_TIMEOUT, connection.maintenance.status()).await {
        Ok(Ok(status)) => Ok(MemberStatus {
            version: status.version().to_owned(),
            latency: asked_at.elapsed(),
            cluster: status.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
            has_leader: status.leader() != 0,
            is_learner: status.is_learner(),
            database_bytes: u64::try_from(status.db_size()).unwrap_or_default(),
            // Before 3.6 the field is absent, which reads as 0.
            quota_bytes: u64::try_from(status.db_size_quota()).ok().filter(|quota| *quota > 0),
            faults: status.errors().to_vec(),
        }),
        Ok(Err(error)) => Err(context.classify_error(&error).error),
        Err(_) => Err(context.no_answer(REQUEST_TIMEOUT).error),
    }
}
