//! The scheduler's actions, inputs and effects. Data only.

use std::collections::BTreeSet;

use discovery::{Change, Key};

use crate::reconcile::Pending;

/// One thing to do. At most one action that changes HAProxy over the Runtime API is in progress, and at most one `Beside` it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve the desired state and apply it over the Runtime API.
    Reconcile(Scope),
    /// Publish haproxy.cfg and restart HAProxy into it.
    Restart {
        /// Why the running generation isn't the needed one.
        reason: String,
    },
    /// Publish haproxy.cfg.
    Publish,
    /// Read the local files again, and have HAProxy check those that changed.
    ReadFiles,
    /// Remove servers that waited for their last connection.
    RemoveServers,
    /// Give the servers of some sections their turns again.
    RequeueServers {
        /// Those sections.
        sections: BTreeSet<String>,
    },
}

/// An action that waits for another program, so it is in progress beside changes over the Runtime API. Only one is at a time: each
/// writes files that the others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    Publish,
    Restart,
    ReadFiles,
}

impl Action {
    /// `None` for an action that changes HAProxy over the Runtime API.
    pub fn beside(&self) -> Option<Beside> {
        match self {
            Self::Publish => Some(Beside::Publish),
            Self::Restart { .. } => Some(Beside::Restart),
            Self::ReadFiles => Some(Beside::ReadFiles),
            Self::Reconcile(_) | Self::RemoveServers | Self::RequeueServers { .. } => None,
        }
    }
}

/// The inputs that a reconcile takes in besides the changed services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Local files were read since the last reconcile.
    pub files_read: bool,
    /// HAProxy may run something else than it was last observed to run.
    pub reobserve: bool,
    /// Every service is resolved again, as if all had changed.
    pub resolve_all: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The replica has all keys: from a listing, or from the persisted store while etcd can't be reached.
    StoreListed,
    /// Keys of services changed.
    StoreChanged,
    /// One transaction wrote several keys of one service, and the store changed in nothing else.
    ServiceWritten,
    /// Local files changed, or the validity of a certificate began or ended.
    FilesChanged,
    /// HAProxy runs another process or generation, an old process stopped listening, or HAProxy was changed over the Runtime API.
    HaproxyChanged,
    /// Two HAProxy processes listen, or HAProxy has just become another process. Either may have answered.
    HaproxyUnsettled,
    /// A new day began. Certificates that expire are logged once a day.
    DayBegan,
    /// HAProxy may have set servers of these sections aside.
    TurnsMissed {
        /// Those sections.
        sections: BTreeSet<String>,
    },
    /// The `ReadFiles` in progress ended.
    FilesRead {
        /// False if some files couldn't be read or aren't accepted. The last good ones count.
        is_usable: bool,
    },
    /// The action in progress ended.
    Finished {
        /// The result.
        end: End,
        /// HAProxy is known to run all that the action was given, except for pending services.
        is_current: bool,
    },
    /// The `Publish` in progress ended.
    Published(PublishEnd),
    /// The `Restart` in progress ended.
    Restarted {
        /// The result.
        end: RestartEnd,
        /// As in `Finished`.
        is_current: bool,
    },
}

impl Input {
    /// The input for changes of the store. A service that is written key by key, as with etcdctl, needs more than one
    /// transaction. So a single key may be the first of several, and several keys of one transaction are all.
    pub fn from_changes(changes: &[Change]) -> Self {
        // The entry of the change log is in the transaction too, and no key of the service.
        let changes = || changes.iter().filter(|change| !Key::is_log(change.key()));
        let mut written = changes().map(|change| match change {
            Change::Put(entry) => service_folder(&entry.key).map(|folder| (folder, entry.mod_revision)),
            Change::Delete { .. } => None,
        });
        let first = written.next().flatten();
        let is_whole = first.is_some() && changes().count() > 1 && written.all(|other| other == first);
        if is_whole { Self::ServiceWritten } else { Self::StoreChanged }
    }
}

/// `http-services/shop` of `http-services/shop/domain`.
fn service_folder(key: &str) -> Option<&str> {
    let (end, _) = key.match_indices('/').nth(1)?;
    key.get(..end)
}

/// The result of an action over the Runtime API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// HAProxy runs all that it takes without a restart.
    Reconciled {
        /// The rest of its work.
        pending: Pending,
        /// The operator's files are accepted as they are.
        accepts_files: bool,
    },
    /// Servers were removed as far as their connections allow.
    ServersRemoved(Pending),
    /// The servers have their turns again.
    Requeued,
    /// HAProxy complained about the turns, and must be observed again.
    RequeueRefused,
    /// The action failed, and is tried again.
    Failed,
}

/// The result of a `Restart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartEnd {
    /// HAProxy runs the generation that was needed when the restart began.
    Restarted,
    /// An operator has stopped HAProxy. Published files wait for its start.
    Stopped,
    /// HAProxy rejected services or filled files at the restart. The next generation leaves them out.
    PartRejected,
    /// HAProxy doesn't run that generation, or the restart failed.
    Failed,
}

/// The result of a `Publish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishEnd {
    /// haproxy.cfg is as it should be.
    UpToDate,
    /// HAProxy rejected services or filled files. The next generation leaves them out.
    PartRejected,
    /// The operator's files aren't accepted. Nothing was written.
    Blocked,
    /// The file could not be written, or is rejected.
    Failed,
}

/// The consequence of an input outside of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// HAProxy runs the desired state. systemd may be told that confgen is ready.
    InSync,
    /// HAProxy doesn't run the desired state, and a try failed.
    OutOfSync,
    /// Nothing is left to do for now. Memory can be given back.
    Rest,
}

#[cfg(test)]
mod tests {
    use discovery::Entry;

    use super::*;

    fn put(key: &str, revision: i64) -> Change {
        Change::Put(Entry {
            key: key.to_owned(),
            value: Vec::new(),
            create_revision: revision,
            mod_revision: revision,
            lease: 0,
        })
    }

    #[test]
    fn several_keys_of_one_service_and_one_revision_are_a_whole_service() {
        let (domain, upstream) = ("http-services/a/domain", "http-services/a/upstreams/1");
        let input = |changes: &[Change]| Input::from_changes(changes);
        assert_eq!(input(&[put(domain, 7), put(upstream, 7)]), Input::ServiceWritten);
        let logged = put("log/20261130T101306.123Z-1", 7);
        assert_eq!(input(&[put(domain, 7), logged.clone(), put(upstream, 7)]), Input::ServiceWritten);
        for changes in [
            vec![],
            vec![put(domain, 7)],
            vec![put(domain, 7), logged],
            vec![put(domain, 7), put(upstream, 8)],
            vec![put(domain, 7), put("http-services/b/domain", 7)],
            vec![put(domain, 7), Change::Delete { key: upstream.to_owned(), revision: 7, previous: None }],
            vec![put("control/x", 7), put("control/y", 7)],
        ] {
            assert_eq!(input(&changes), Input::StoreChanged, "{changes:?}");
        }
    }
}
