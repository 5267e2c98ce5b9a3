//! Keeps `balancers/<node>` as `confgen/src/status/balancer_record.rs` does.

use confgen::decisions::{Status, to_balancer_record};
use discovery::BalancerRecord;
use registry::{Condition, LeaseId, Txn};

use super::Disk;
use crate::clock::{Clock, Millis};
use crate::etcd::Etcd;

/// The record's lease.
const TTL: Millis = 10_000;
/// The record is written at most this often, except at the end of a drain.
const AT_MOST_EVERY: Millis = 1_000;
/// The record is read and the lease renewed this often.
const LOOK_EVERY: Millis = 3_000;

/// The record in the store, and its lease.
#[derive(Debug)]
pub struct RecordKeeper {
    instance: String,
    lease: Option<LeaseId>,
    renewed_at: Millis,
    written: Option<Written>,
    /// The leases of this balancer, the last one last.
    leases: Vec<i64>,
    looked_at: Millis,
}

#[derive(Debug)]
struct Written {
    value: BalancerRecord,
    drains_ended: u64,
    lease: LeaseId,
    at: Millis,
}

impl RecordKeeper {
    pub(super) fn new(instance: String, leases: Vec<i64>) -> Self {
        Self { instance, lease: None, renewed_at: 0, written: None, leases, looked_at: 0 }
    }

    /// The record as it was written last. `None` before that.
    pub fn written(&self) -> Option<&BalancerRecord> {
        self.written.as_ref().map(|written| &written.value)
    }

    /// Renews the lease and writes the record, if either is due.
    pub(super) fn write_if_needed(
        &mut self,
        status: &Status,
        etcd: &mut Etcd,
        client: usize,
        node: &str,
        disk: &Disk,
        clock: Clock,
    ) {
        let now = clock.millis();
        self.keep_lease(etcd, client, disk, now);
        let Some(lease) = self.lease else { return };
        let may_write = self.written.as_ref().is_none_or(|written| {
            let is_urgent = written.lease != lease || written.drains_ended != status.drains_ended;
            is_urgent || now >= self.looked_at.max(written.at) + AT_MOST_EVERY
        });
        if !may_write {
            return;
        }
        let mut value = to_balancer_record(status).fit_into_key();
        value.instance = Some(self.instance.clone());
        if value.cluster == 0 {
            return;
        }
        let is_due = self.written.as_ref().is_none_or(|written| {
            let is_urgent = written.lease != lease || written.drains_ended != status.drains_ended;
            is_urgent || (written.value != value && now >= written.at + AT_MOST_EVERY)
        });
        let is_look_due = now >= self.looked_at + LOOK_EVERY;
        if !is_due && !is_look_due {
            return;
        }
        self.looked_at = now;
        let key = format!("balancers/{node}");
        let text = value.to_string();
        if etcd.is_cut_off(client) {
            return;
        }
        let entry = etcd.get(&key);
        let is_there = entry.is_some_and(|entry| entry.lease == lease.get() && entry.value == text.as_bytes());
        let is_free = entry.is_none_or(|entry| entry.lease == 0 || self.leases.contains(&entry.lease));
        if !is_there && is_free {
            let unchanged = match entry {
                Some(entry) => Condition::ModRevisionIs(key.clone(), entry.mod_revision),
                None => Condition::Absent(key.clone()),
            };
            let txn = Txn::new().only_if(unchanged).put(key, text, Some(lease));
            if !etcd.commit(client, &txn).is_ok_and(|committed| committed.succeeded) {
                return;
            }
        } else if !is_there {
            return;
        }
        self.written = Some(Written { value, drains_ended: status.drains_ended, lease, at: now });
    }

    fn keep_lease(&mut self, etcd: &mut Etcd, client: usize, disk: &Disk, now: Millis) {
        match self.lease {
            Some(lease) if now >= self.renewed_at + LOOK_EVERY => match etcd.renew(client, lease, now) {
                Ok(true) => self.renewed_at = now,
                Ok(false) => self.lease = None,
                Err(_) => {}
            },
            Some(_) => return,
            None => {}
        }
        if self.lease.is_none()
            && let Ok(lease) = etcd.grant(client, TTL, now)
        {
            (self.lease, self.renewed_at) = (Some(lease), now);
            // As many as confgen keeps.
            self.leases.push(lease.get());
            self.leases.drain(..self.leases.len().saturating_sub(4));
            disk.lock().leases.clone_from(&self.leases);
        }
    }
}
