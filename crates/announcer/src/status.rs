//! How things stand, for whoever asks: plain data, and what follows from it. Pure.

pub(crate) mod heartbeat;
pub(crate) mod metrics;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use discovery::{Key, RefusedKey, ServiceId, UpstreamId, UpstreamState};
use registry::Beats;

use crate::record::RecordStatus;
use crate::state::State;

/// What the loop leaves behind whenever it changes.
#[derive(Clone, Debug)]
pub(crate) struct LoopStatus {
    pub(crate) state: State,
    /// The line of `systemctl status`.
    pub(crate) words: String,
    /// Whether each upstream works, as they are configured.
    pub(crate) works: Vec<bool>,
}

impl Default for LoopStatus {
    fn default() -> Self {
        Self { state: State::Starting, words: String::new(), works: Vec::new() }
    }
}

/// The state of the keys at balancers and in the store, as of the last look at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reception {
    /// The records that balancers refuse, with the balancer and its reason.
    pub(crate) refused: BTreeSet<RefusedKey>,
    /// The other keys of the service that they refuse: a last good value may serve instead.
    pub(crate) not_followed: BTreeSet<RefusedKey>,
    /// The settings that say otherwise than this announcer was given.
    pub(crate) differing: BTreeSet<String>,
}

/// One upstream.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pub(crate) service: ServiceId,
    pub(crate) id: UpstreamId,
    pub(crate) works: bool,
    pub(crate) stand: RecordStatus,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) state: State,
    pub(crate) words: String,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) ttl: Duration,
    pub(crate) beats: Beats,
    /// Why the last attempt to write failed.
    pub(crate) failure: Option<String>,
    pub(crate) reception: Reception,
}

impl Upstream {
    fn key(&self) -> Key {
        Key::upstream(&self.service, &self.id)
    }
}

impl Standing {
    /// Ok if every record stands in the store, says `ready`, and no balancer refuses it. Words either way.
    pub(crate) fn ready(&self, now: Instant) -> Result<String, String> {
        let owned = self.upstreams.iter().find_map(|upstream| Some((upstream.key(), upstream.stand.owner.as_ref()?)));
        if let (State::Announcing | State::Spreading | State::Announced, Some((key, owner))) = (self.state, owned) {
            return Err(format!("{key} belongs to {owner}"));
        }
        if self.state != State::Announced {
            let failure = self.failure.as_ref().filter(|_| self.state == State::Announcing);
            return Err(failure.map_or_else(|| self.words.clone(), |failure| format!("{}: {failure}", self.words)));
        }
        for upstream in &self.upstreams {
            let key = upstream.key();
            if !upstream.works {
                return Err(format!("{key} no longer works"));
            }
            if upstream.stand.says != Some(UpstreamState::Ready) {
                return Err(format!("{key} doesn't say ready in the store"));
            }
        }
        let silence = self.beats.last.map_or(Duration::MAX, |last| now.saturating_duration_since(last));
        if silence > self.ttl {
            return Err("the lease could not be renewed for longer than its time: etcd may have ended it".to_owned());
        }
        if let Some(RefusedKey { node, key, reason }) = self.reception.refused.first() {
            return Err(format!("{node} refuses {key}: {reason}"));
        }
        let away = if self.is_connected() { "" } else { "; the lease can't be renewed for now" };
        let differs = match self.reception.differing.first() {
            Some(key) => format!("; {key} says otherwise than this announcer"),
            None => String::new(),
        };
        let not_followed = match self.reception.not_followed.first() {
            Some(RefusedKey { node, key, reason }) => format!("; {node} refuses {key}: {reason}"),
            None => String::new(),
        };
        Ok(format!("{}{away}{differs}{not_followed}", self.words))
    }

    /// Whether etcd answered last.
    pub(crate) fn is_connected(&self) -> bool {
        self.beats.done > 0 && !self.beats.is_failing
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use discovery::Kind;

    use super::*;

    /// Two upstreams that are announced.
    pub(crate) fn announced(now: Instant) -> Standing {
        let service = ServiceId { kind: Kind::Http, name: "shop".parse().unwrap() };
        let stand = RecordStatus { says: Some(UpstreamState::Ready), registrations: 1, ..RecordStatus::default() };
        let upstream = |id: &str| Upstream {
            service: service.clone(),
            id: id.parse().unwrap(),
            works: true,
            stand: stand.clone(),
        };
        Standing {
            state: State::Announced,
            words: "announced as a and 1 more".to_owned(),
            upstreams: vec![upstream("a"), upstream("b")],
            ttl: Duration::from_secs(10),
            beats: Beats { done: 4, last: Some(now), ..Beats::default() },
            failure: None,
            reception: Reception::default(),
        }
    }

    #[test]
    fn ready_is_when_every_record_says_so() {
        let now = Instant::now();
        let is_ready = |change: fn(&mut Standing)| {
            let mut standing = announced(now);
            change(&mut standing);
            standing.ready(now)
        };
        assert_eq!(is_ready(|_| {}), Ok("announced as a and 1 more".to_owned()));
        let draining =
            |standing: &mut Standing| (standing.state, standing.words) = (State::Draining, "draining".into());
        assert_eq!(is_ready(draining), Err("draining".to_owned()));
        let down = is_ready(|standing| standing.upstreams[1].works = false);
        assert_eq!(down, Err("http-services/shop/upstreams/b no longer works".to_owned()));
        for says in [None, Some(UpstreamState::Down), Some(UpstreamState::Drain)] {
            let mut standing = announced(now);
            standing.upstreams[0].stand.says = says;
            assert!(standing.ready(now).unwrap_err().starts_with("http-services/shop/upstreams/a doesn't say"));
        }
    }

    #[test]
    fn another_owner_and_a_balancer_that_refuses_are_said() {
        let now = Instant::now();
        let mut standing = announced(now);
        standing.upstreams[1].stand.owner = Some("10.0.0.9:80 under lease 7".to_owned());
        for state in [State::Announcing, State::Announced] {
            standing.state = state;
            let words = "http-services/shop/upstreams/b belongs to 10.0.0.9:80 under lease 7";
            assert_eq!(standing.ready(now), Err(words.to_owned()));
        }
        let mut standing = announced(now);
        let key = "http-services/shop/upstreams/a".to_owned();
        let refused = RefusedKey { node: "lb".parse().unwrap(), key: key.clone(), reason: "loopback".to_owned() };
        standing.reception.refused.insert(refused);
        assert_eq!(standing.ready(now), Err(format!("lb refuses {key}: loopback")));
        let mut standing = announced(now);
        standing.reception.differing.insert("http-services/shop/domain".to_owned());
        assert!(standing.ready(now).unwrap().contains("domain says otherwise"), "a setting is the service's");
        let key = "http-services/shop/domain".to_owned();
        let refused = RefusedKey { node: "lb".parse().unwrap(), key, reason: "taken".to_owned() };
        standing.reception.not_followed.insert(refused);
        assert!(standing.ready(now).unwrap().ends_with("; lb refuses http-services/shop/domain: taken"));
        (standing.state, standing.failure) = (State::Announcing, Some("no space".to_owned()));
        assert!(standing.ready(now).unwrap_err().ends_with(": no space"));
    }

    #[test]
    fn a_lease_that_may_have_ended_is_not_ready() {
        let (now, ttl) = (Instant::now(), Duration::from_secs(10));
        let mut standing = announced(now);
        standing.beats.is_failing = true;
        assert!(!standing.is_connected());
        assert!(standing.ready(now + ttl).unwrap().ends_with("can't be renewed for now"), "it still lives");
        assert!(standing.ready(now + ttl + ttl).is_err());
        standing.beats.last = None;
        assert!(standing.ready(now).is_err());
    }
}
