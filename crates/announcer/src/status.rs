//! The announcer's status as plain data, and the answers derived from it. Pure.

pub(crate) mod heartbeat;
pub(crate) mod metrics;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use discovery::{Key, QuarantinedKey, ServiceId, UpstreamId, UpstreamState};
use registry::LeaseStats;

use crate::record::RecordStatus;
use crate::state::State;
use crate::status::metrics::LeaseStatus;

/// Status that the loop publishes after each change.
#[derive(Clone, Debug)]
pub(crate) struct LoopStatus {
    pub(crate) state: State,
    /// Line of `systemctl status`.
    pub(crate) status_line: String,
    /// True for each upstream that works, in the order of the configuration.
    pub(crate) healthy: Vec<bool>,
}

impl Default for LoopStatus {
    fn default() -> Self {
        Self { state: State::Starting, status_line: String::new(), healthy: Vec::new() }
    }
}

/// Status of a copy with `--replicas`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotStatus {
    /// True while the app runs, or starts again after a crash.
    pub(crate) runs_app: bool,
    /// True while the copy would take a free slot.
    pub(crate) stands_by: bool,
    /// Number of the slot that the copy holds.
    pub(crate) slot: Option<u16>,
    /// Copies that the service should have.
    pub(crate) wanted: u16,
    /// Slots that are taken.
    pub(crate) running: usize,
    /// Copies that would take a slot.
    pub(crate) standing_by: usize,
    /// Line of `systemctl status` while the app doesn't run.
    pub(crate) line: String,
}

/// Balancers' verdict on our keys, and differing settings, as last polled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyStatus {
    /// Records that balancers refuse, with the balancer and its reason. They get no requests there.
    pub(crate) refused_records: BTreeSet<QuarantinedKey>,
    /// Other keys of our services that balancers refuse. A last good value may serve.
    pub(crate) refused_service_keys: BTreeSet<QuarantinedKey>,
    /// Settings in the store that differ from what this announcer was given.
    pub(crate) differing_settings: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct UpstreamStatus {
    pub(crate) service: ServiceId,
    pub(crate) id: UpstreamId,
    pub(crate) is_healthy: bool,
    pub(crate) record: RecordStatus,
}

/// Status of the whole announcer.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) status_line: String,
    pub(crate) upstreams: Vec<UpstreamStatus>,
    pub(crate) ttl: Duration,
    pub(crate) lease_stats: LeaseStats,
    /// Error of the last write. `None` after a success.
    pub(crate) failure: Option<String>,
    pub(crate) key_status: KeyStatus,
    /// `None` without `--replicas`.
    pub(crate) slot: Option<SlotStatus>,
}

impl UpstreamStatus {
    fn key(&self) -> Key {
        Key::for_upstream(&self.service, &self.id)
    }
}

impl Status {
    /// Answer of `/ready`: `Ok` if every record is stored as `ready` and no balancer refuses it, or if the copy stands by.
    /// The text explains either answer.
    pub(crate) fn check_ready(&self, now: Instant) -> Result<String, String> {
        if let Some(slot) = self.slot.as_ref().filter(|slot| !slot.runs_app) {
            return if slot.stands_by { Ok(slot.line.clone()) } else { Err(slot.line.clone()) };
        }
        // Before the state: the owner is the reason why the state doesn't advance.
        let owned = self.upstreams.iter().find_map(|upstream| Some((upstream.key(), upstream.record.owner.as_ref()?)));
        if let (State::Announcing | State::AwaitingBalancers | State::Announced, Some((key, owner))) =
            (self.state, owned)
        {
            return Err(format!("{key} belongs to {owner}"));
        }
        if self.state != State::Announced {
            let failure = self.failure.as_ref().filter(|_| self.state == State::Announcing);
            return Err(
                failure.map_or_else(|| self.status_line.clone(), |failure| format!("{}: {failure}", self.status_line))
            );
        }
        for upstream in &self.upstreams {
            let key = upstream.key();
            if !upstream.is_healthy {
                return Err(format!("{key} no longer works"));
            }
            if upstream.record.stored_state != Some(UpstreamState::Ready) {
                return Err(format!("{key} doesn't say ready in the store"));
            }
        }
        let silence = self.lease_stats.renewed_at.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        if silence > self.ttl {
            return Err("the lease could not be renewed for longer than its time: etcd may have ended it".to_owned());
        }
        if let Some(QuarantinedKey { node, key, reason }) = self.key_status.refused_records.first() {
            return Err(format!("{node} refuses {key}: {reason}"));
        }
        // Still ready: the lease lives until its TTL is over.
        let away = if self.is_connected() { "" } else { "; the lease can't be renewed for now" };
        let differs = match self.key_status.differing_settings.first() {
            Some(key) => format!("; {key} says otherwise than this announcer"),
            None => String::new(),
        };
        let not_followed = match self.key_status.refused_service_keys.first() {
            Some(QuarantinedKey { node, key, reason }) => format!("; {node} refuses {key}: {reason}"),
            None => String::new(),
        };
        Ok(format!("{}{away}{differs}{not_followed}", self.status_line))
    }

    /// True for a copy without a running app.
    pub(crate) fn stands_by(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| !slot.runs_app)
    }

    /// True if the last renewal succeeded.
    pub(crate) fn is_connected(&self) -> bool {
        LeaseStatus { stats: self.lease_stats, ttl: self.ttl }.is_connected()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use discovery::Kind;

    use super::*;

    /// Two upstreams that are announced.
    pub(crate) fn announced(now: Instant) -> Status {
        let service = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
        let stand =
            RecordStatus { stored_state: Some(UpstreamState::Ready), registrations: 1, ..RecordStatus::default() };
        let upstream = |id: &str| UpstreamStatus {
            service: service.clone(),
            id: id.parse().unwrap(),
            is_healthy: true,
            record: stand.clone(),
        };
        Status {
            state: State::Announced,
            status_line: "announced as a and 1 more".to_owned(),
            upstreams: vec![upstream("a"), upstream("b")],
            ttl: Duration::from_secs(10),
            lease_stats: LeaseStats { renewed: 4, renewed_at: Some(now), ..LeaseStats::default() },
            failure: None,
            key_status: KeyStatus::default(),
            slot: None,
        }
    }

    #[test]
    fn a_copy_that_stands_by_is_ready() {
        let (now, mut status) = (Instant::now(), announced(Instant::now()));
        status.state = State::Starting;
        let line = "standing by (2 of 2 run: web-1, web-2)".to_owned();
        let slot = SlotStatus { stands_by: true, line: line.clone(), ..SlotStatus::default() };
        status.slot = Some(slot.clone());
        assert_eq!(status.check_ready(now), Ok(line.clone()));
        status.slot = Some(SlotStatus { stands_by: false, ..slot.clone() });
        assert_eq!(status.check_ready(now), Err(line), "etcd is away, or the app ended too often");
        status.slot = Some(SlotStatus { runs_app: true, ..slot });
        assert!(status.check_ready(now).is_err(), "the app isn't announced");
    }

    #[test]
    fn ready_is_when_every_record_says_so() {
        let now = Instant::now();
        let is_ready = |change: fn(&mut Status)| {
            let mut status = announced(now);
            change(&mut status);
            status.check_ready(now)
        };
        assert_eq!(is_ready(|_| {}), Ok("announced as a and 1 more".to_owned()));
        let draining = |status: &mut Status| (status.state, status.status_line) = (State::Draining, "draining".into());
        assert_eq!(is_ready(draining), Err("draining".to_owned()));
        let down = is_ready(|status| status.upstreams[1].is_healthy = false);
        assert_eq!(down, Err("http-services/shop/upstreams/b no longer works".to_owned()));
        for says in [None, Some(UpstreamState::Down), Some(UpstreamState::Drain)] {
            let mut status = announced(now);
            status.upstreams[0].record.stored_state = says;
            assert!(status.check_ready(now).unwrap_err().starts_with("http-services/shop/upstreams/a doesn't say"));
        }
    }

    #[test]
    fn another_owner_and_a_balancer_that_refuses_are_said() {
        let now = Instant::now();
        let mut status = announced(now);
        status.upstreams[1].record.owner = Some("10.0.0.9:80 under lease 7".to_owned());
        for state in [State::Announcing, State::Announced] {
            status.state = state;
            let words = "http-services/shop/upstreams/b belongs to 10.0.0.9:80 under lease 7";
            assert_eq!(status.check_ready(now), Err(words.to_owned()));
        }
        let mut status = announced(now);
        let key = "http-services/shop/upstreams/a".to_owned();
        let refused = QuarantinedKey { node: "lb".parse().unwrap(), key: key.clone(), reason: "loopback".to_owned() };
        status.key_status.refused_records.insert(refused);
        assert_eq!(status.check_ready(now), Err(format!("lb refuses {key}: loopback")));
        let mut status = announced(now);
        status.key_status.differing_settings.insert("http-services/shop/domain".to_owned());
        assert!(status.check_ready(now).unwrap().contains("domain says otherwise"), "a setting is the service's");
        let key = "http-services/shop/domain".to_owned();
        let refused = QuarantinedKey { node: "lb".parse().unwrap(), key, reason: "taken".to_owned() };
        status.key_status.refused_service_keys.insert(refused);
        assert!(status.check_ready(now).unwrap().ends_with("; lb refuses http-services/shop/domain: taken"));
        (status.state, status.failure) = (State::Announcing, Some("no space".to_owned()));
        assert!(status.check_ready(now).unwrap_err().ends_with(": no space"));
    }

    #[test]
    fn a_lease_that_may_have_ended_is_not_ready() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut status = announced(now);
        status.lease_stats.is_failing = true;
        assert!(!status.is_connected());
        assert!(status.check_ready(now + ttl).unwrap().ends_with("can't be renewed for now"), "it still lives");
        assert!(status.check_ready(now + ttl + ttl).is_err());
        status.lease_stats.renewed_at = None;
        assert!(status.check_ready(now).is_err());
    }
}
