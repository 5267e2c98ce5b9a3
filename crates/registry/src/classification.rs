//! The meaning of an error of the client library, or of an answer of etcd. Pure: no I/O, no clock.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use crate::error::{Error, Operation};

/// One failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// True if the request never left. A second one elsewhere can't do it twice.
    pub(crate) is_unsent: bool,
    /// True if the connection is broken or silent, or its login no longer holds.
    pub(crate) ends_connection: bool,
}

impl Failure {
    pub(crate) fn before_sending(error: Error) -> Self {
        Self { error, is_unsent: true, ends_connection: true }
    }
}

/// An attempt: the endpoint, the operation and the user.
pub(crate) struct Context<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) operation: &'a Operation,
    /// `None` without a login.
    pub(crate) user: Option<&'a str>,
}

impl Context<'_> {
    /// The failure of an attempt without an answer in time.
    pub(crate) fn no_answer(&self, limit: Duration) -> Failure {
        let (endpoint, operation) = (self.endpoint.to_owned(), self.operation.clone());
        Failure { error: Error::Silent { endpoint, operation, limit }, is_unsent: false, ends_connection: true }
    }

    pub(crate) fn classify_error(&self, error: &etcd_client::Error) -> Failure {
        match error {
            etcd_client::Error::GRpcStatus(status) => {
                let cause = status.source();
                // A status with a cause comes from the gRPC library, on a broken connection. etcd's own has none.
                let mut failure = match cause {
                    Some(cause) => self.connection_broken(innermost_cause(cause)),
                    None => self.classify_status(i32::from(status.code()), status.message()),
                };
                failure.is_unsent = cause.is_some_and(is_connection_refused);
                failure
            }
            etcd_client::Error::TransportError(cause) => {
                let mut failure = self.connection_broken(innermost_cause(cause));
                failure.is_unsent = is_connection_refused(cause);
                failure
            }
            // etcd answers a keep-alive of a lease that has ended with a TTL of 0, and the library turns that into this.
            etcd_client::Error::LeaseKeepAliveError(_) => self.classify_status(code::NOT_FOUND, ""),
            other => self.connection_broken(other.to_string()),
        }
    }

    /// The failure of a stream that ended without an error.
    pub(crate) fn stream_ended(&self, reason: &str) -> Failure {
        self.connection_broken(reason.to_owned())
    }

    /// The failure of a watch that etcd ended. Only its words have the cause (`CancelReason`, etcd 3.4's
    /// `api/v3rpc/watch.go`).
    pub(crate) fn watch_canceled(&self, reason: &str) -> Failure {
        if reason.contains("permission denied") {
            self.classify_status(code::PERMISSION_DENIED, reason)
        } else if reason.contains("auth token") {
            self.classify_status(code::UNAUTHENTICATED, reason)
        } else if reason.contains("no leader") {
            self.classify_status(code::UNAVAILABLE, reason)
        } else {
            self.classify_status(code::FAILED_PRECONDITION, reason)
        }
    }

    fn connection_broken(&self, reason: String) -> Failure {
        let (endpoint, operation) = (self.endpoint.to_owned(), self.operation.clone());
        Failure { error: Error::Unreachable { endpoint, operation, reason }, is_unsent: false, ends_connection: true }
    }

    /// Classifies a gRPC status that etcd sent (its `api/v3rpc/rpctypes/error.go`).
    pub(crate) fn classify_status(&self, code: i32, message: &str) -> Failure {
        let operation = self.operation.clone();
        let endpoint = self.endpoint.to_owned();
        let user = self.user.map(str::to_owned);
        let reason = message.strip_prefix("etcdserver: ").unwrap_or(message).to_owned();
        let error = match code {
            code::PERMISSION_DENIED => Error::PermissionDenied { operation, user },
            code::NOT_FOUND => Error::LeaseNotFound { operation },
            code::OUT_OF_RANGE if reason.contains("compacted") => Error::Compacted { operation },
            // A login that is idle for 300 s (etcd's `--auth-token-ttl`).
            code::UNAUTHENTICATED => Error::Login { endpoint, operation, user, reason },
            code::INVALID_ARGUMENT if LOGIN_REASONS.contains(&reason.as_str()) => {
                Error::Login { endpoint, operation, user, reason }
            }
            // The gRPC library's words about an answer of another program, such as HAProxy.
            code::INTERNAL if reason.contains("invalid compression flag") => {
                let reason = "the answer is not etcd's; is this etcd's port for clients?".to_owned();
                Error::Unreachable { endpoint, operation, reason }
            }
            // A member that can't serve now. Another one may.
            code::CANCELLED | code::UNKNOWN | code::DEADLINE_EXCEEDED | code::INTERNAL | code::UNAVAILABLE => {
                Error::Unreachable { endpoint, operation, reason }
            }
            _ => Error::Refused { endpoint, operation, reason },
        };
        // The next connection logs in again, which mends a token that no longer holds.
        let ends_connection = matches!(error, Error::Unreachable { .. } | Error::Login { .. });
        Failure { error, is_unsent: false, ends_connection }
    }
}

/// The gRPC status codes that etcd uses (<https://grpc.io/docs/guides/status-codes/>).
pub(crate) mod code {
    pub(crate) const CANCELLED: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: i32 = 4;
    pub(crate) const NOT_FOUND: i32 = 5;
    pub(crate) const PERMISSION_DENIED: i32 = 7;
    pub(crate) const FAILED_PRECONDITION: i32 = 9;
    pub(crate) const OUT_OF_RANGE: i32 = 11;
    pub(crate) const INTERNAL: i32 = 13;
    pub(crate) const UNAVAILABLE: i32 = 14;
    pub(crate) const UNAUTHENTICATED: i32 = 16;
}

/// etcd's messages with "invalid argument" that are about the login.
const LOGIN_REASONS: [&str; 3] = [
    "authentication failed, invalid user ID or password",
    "user name is empty",
    // Users or roles were changed since etcd issued the token.
    "revision of auth store is old",
];

/// The cause at the end of the chain: "Connection refused (os error 111)" says more than "transport error".
fn innermost_cause(error: &(dyn StdError + 'static)) -> String {
    cause_chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// True if the connect itself was refused. Nothing was sent then.
fn is_connection_refused(error: &(dyn StdError + 'static)) -> bool {
    cause_chain(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

fn cause_chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: i32, message: &str) -> Failure {
        let operation = Operation::Commit {
            writes: ["/p/a", "/p/b", "/p/c", "/p/d"].map(str::to_owned).to_vec(),
            reads: Vec::new(),
        };
        Context { endpoint: "http://e:2379", operation: &operation, user: Some("eve") }.classify_status(code, message)
    }

    #[test]
    fn the_answers_of_etcd_are_told_apart() {
        let denied = answered(7, "etcdserver: permission denied");
        assert!(denied.error.is_permission_denied() && !denied.ends_connection);
        assert_eq!(
            denied.error.to_string(),
            "etcd's roles forbid user eve writing /p/a, /p/b, /p/c and 1 more: it needs the permission readwrite on what \
             it writes, read on what it reads; one operation outside the roles denies a whole transaction"
        );
        assert!(answered(5, "etcdserver: requested lease not found").error.is_lease_not_found());
        assert!(matches!(
            answered(11, "etcdserver: mvcc: required revision has been compacted").error,
            Error::Compacted { .. }
        ));
        assert!(matches!(answered(8, "etcdserver: mvcc: database space exceeded").error, Error::Refused { .. }));
    }

    #[test]
    fn an_answer_of_another_program_says_so() {
        let words = "protocol error: received message with invalid compression flag: 52 (valid flags are 0 and 1)";
        let failure = answered(13, words);
        assert!(
            failure.error.is_unreachable() && failure.error.to_string().contains("is this etcd's port for clients?")
        );
    }

    #[test]
    fn a_login_that_no_longer_holds_gives_the_connection_up() {
        for (code, message) in [
            (16, "etcdserver: invalid auth token"),
            (3, "etcdserver: authentication failed, invalid user ID or password"),
            (3, "etcdserver: user name is empty"),
            (3, "etcdserver: revision of auth store is old"),
        ] {
            let failure = answered(code, message);
            assert!(matches!(failure.error, Error::Login { .. }) && failure.ends_connection, "{message}");
        }
        assert!(matches!(answered(3, "etcdserver: duplicate key given in txn request").error, Error::Refused { .. }));
    }

    #[test]
    fn a_member_that_cannot_serve_is_as_good_as_unreachable() {
        for message in ["etcdserver: no leader", "etcdserver: leader changed", "etcdserver: request timed out"] {
            let failure = answered(14, message);
            assert!(failure.error.is_unreachable() && failure.ends_connection && !failure.is_unsent, "{message}");
        }
    }

    #[test]
    fn only_a_refused_connect_counts_as_unsent() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(is_connection_refused(&refused));
        assert!(!is_connection_refused(&reset));
    }
}
