//! Faults of etcd, and of this user's rights in it. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use registry::MemberStatus;

use super::super::facts::{Facts, Refusal};
use super::{Area, Finding, Findings};

/// The oldest etcd that the programs speak to.
const OLDEST: (u32, u32) = (3, 4);

/// An answer from memory takes some milliseconds. An announcer's TTL of 10 s has room for much more, a loaded disk makes it worse.
const SLOW: Duration = Duration::from_millis(250);

/// etcd's `--quota-backend-bytes` unless it is set. Before 3.6 no answer says another one.
const DEFAULT_QUOTA: u64 = 2 << 30;

const UNREACHABLE_WHY: &str =
    "every program tries all endpoints of its list in turn, and loses up to 2 s at each dead one";
const ALARM_WHY: &str =
    "etcd refuses every write until the alarm is disarmed: no announcer can register, no drain can begin";
const FULL_WHY: &str = "at the quota etcd refuses every write, also those of announcers";

/// Finds faults of the members.
pub(super) fn judge_members(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Store);
    let (mut clusters, mut releases) = (BTreeSet::new(), BTreeSet::new());
    for (endpoint, answer) in &facts.members {
        match answer {
            Err(reason) => {
                let todo = format!("etcdctl --endpoints {endpoint} endpoint health");
                found.error(endpoint, reason.as_str(), UNREACHABLE_WHY, todo);
            }
            Ok(member) => {
                clusters.insert(member.cluster);
                releases.insert(member.version.as_str());
                judge_member(&mut found, endpoint, member);
            }
        }
    }
    // Clients of different members would see different stores after each failover.
    if clusters.len() > 1 {
        let why = "each program follows the cluster that its first endpoint belongs to, and finds a wiped store after a failover";
        let todo = "etcdctl --endpoints … endpoint status --write-out table, then give all programs the endpoints of one cluster";
        found.error("--endpoints", "the endpoints belong to different clusters", why, todo);
    }
    if releases.len() > 1 {
        let what = format!("the members have different releases: {}", join(&releases));
        let todo = "upgrade the others, one after the other";
        found.warn("etcd", what, "a cluster works as its oldest member does", todo);
    }
    found.list
}

fn judge_member(found: &mut Findings, endpoint: &str, member: &MemberStatus) {
    if !member.has_leader {
        let why = "without a leader no key can be read or written; balancers serve on as they are";
        let todo = "start the other members: etcdctl endpoint status --cluster --write-out table";
        found.error(endpoint, "the member has no leader", why, todo);
    }
    if member.is_learner {
        let why = "a learner answers no request of the programs";
        found.error(
            endpoint,
            "the member is a learner",
            why,
            "etcdctl member promote ID, or take it out of --endpoints",
        );
    }
    for fault in &member.faults {
        // etcd 3.4 to 3.6 write `memberID:… alarm:NOSPACE`.
        let todo = if fault.contains("NOSPACE") {
            format!("etcdctl --endpoints {endpoint} compact REVISION; … defrag; … alarm disarm")
        } else {
            format!("etcdctl --endpoints {endpoint} alarm list")
        };
        found.error(endpoint, fault.as_str(), ALARM_WHY, todo);
    }
    if is_too_old(&member.version) {
        let what = format!("etcd {} is too old", member.version);
        found.error(endpoint, what, "the programs speak to etcd 3.4 and later", "upgrade etcd");
    }
    // The answer comes from memory, so the time is that of the network and of a busy process.
    if member.latency > SLOW {
        let what = format!("an answer took {} ms", member.latency.as_millis());
        let why = "changes reach balancers late, and leases may end if it gets slower";
        found.warn(endpoint, what, why, "etcdctl check perf; look at its disk's latency");
    }
    let quota = member.quota_bytes.unwrap_or(DEFAULT_QUOTA);
    if member.database_bytes > quota / 5 * 4 {
        let unless = if member.quota_bytes.is_none() { ", unless --quota-backend-bytes is set" } else { "" };
        let what = format!("the database has {} MiB of {} MiB{unless}", member.database_bytes >> 20, quota >> 20);
        let todo = format!("etcdctl --endpoints {endpoint} defrag; see --auto-compaction-retention");
        found.warn(endpoint, what, FULL_WHY, todo);
    }
}

/// False for a release that makes no sense, which says nothing.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < OLDEST,
        _ => false,
    }
}

/// Finds a prefix without a key.
pub(super) fn judge_prefix(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Store);
    if facts.store.as_ref().is_some_and(|store| store.entries.is_empty()) {
        let todo =
            "etcdctl get / --prefix --keys-only --limit 20, then set --prefix, or start an announcer and a confgen";
        let why = "no program has written anything here: they may have another --prefix or another etcd";
        found.warn(&facts.prefix, "no key is below the prefix", why, todo);
    }
    found.list
}

/// Finds what this user may not write.
pub(super) fn judge_rights(facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::of(Area::Rights);
    for (folder, answer) in &facts.rights {
        match answer {
            Ok(()) => {}
            Err(Refusal::Roles) => {
                let what = "etcd's roles forbid this user to write below it";
                let why = match *folder {
                    "log/" => "changes leave no entry in the history then",
                    "control/" => "accept-store writes there",
                    _ => "set, drain, switch and others write there; a role for single services is enough for these",
                };
                let todo = format!("etcdctl role grant-permission ROLE readwrite --prefix {}/{folder}", facts.prefix);
                found.warn(folder, what, why, todo);
            }
            Err(Refusal::Store(reason)) => {
                let why = "no change is possible now";
                found.error(folder, reason.as_str(), why, "etcdctl alarm list; etcdctl endpoint health --cluster");
            }
        }
    }
    found.list
}

fn join(names: &BTreeSet<&str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}
