//! The invariants of the drains. Debug builds and tests check them after each change. Pure.

use std::collections::BTreeMap;

use super::{CONFIRMATIONS, Drain, DrainTracker, UpstreamStates, desired_states};
use crate::desired::{DesiredState, ServerState};

impl DrainTracker {
    /// Returns the first drain that contradicts the desired state or the store's revision. Takes time in proportion to the
    /// services that have drains.
    pub(super) fn check_desired(&self, desired: &DesiredState, revision: i64) -> Result<(), String> {
        let mut service = None;
        let mut states = BTreeMap::new();
        // The drains are sorted by service.
        for ((id, upstream), drain) in &self.upstreams {
            if service != Some(id) {
                (service, states) = (Some(id), desired_states(desired.service(id)));
            }
            check_drain(drain, states.get(upstream), revision).map_err(|reason| format!("{id}/{upstream} {reason}"))?;
        }
        Ok(())
    }

    /// Returns the first drain that is over and must not be, or that nobody waits for any more.
    pub(super) fn check_ended(&self) -> Result<(), String> {
        let broken = self.upstreams.iter().find_map(|(name, drain)| Some((name, check_end(drain).err()?)));
        broken.map_or(Ok(()), |((id, upstream), reason)| Err(format!("{id}/{upstream} {reason}")))
    }
}

fn check_drain(drain: &Drain, wanted: Option<&UpstreamStates>, revision: i64) -> Result<(), &'static str> {
    match (wanted, &drain.state) {
        (Some(wanted), _) if wanted.own == ServerState::Ready => Err("is ready and drains"),
        (Some(wanted), state) if state.as_ref() != Some(wanted) => Err("drains in a state that isn't wanted"),
        (None, Some(_)) => Err("drains in a state, but is gone"),
        (None, None) if drain.is_over => Err("is gone, and its drain is still listed although it is over"),
        _ if drain.revision > revision => Err("waits for a revision that the store doesn't have"),
        _ => Ok(()),
    }
}

fn check_end(drain: &Drain) -> Result<(), &'static str> {
    match drain {
        Drain { sessions, idle_counts, .. } if *sessions > 0 && *idle_counts > 0 => {
            Err("has sessions after a count that found none")
        }
        Drain { is_over: false, .. } => Ok(()),
        Drain { state: None, .. } => Err("is gone, and its drain is still listed although it is over"),
        Drain { sessions, .. } if *sessions > 0 => Err("has sessions, but its drain is over"),
        Drain { idle_counts, .. } if *idle_counts < CONFIRMATIONS => Err("is drained after too few counts"),
        Drain { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::tests::{drained, shop_b};

    /// The violation after a change of the drain of the shop's upstream `b`.
    fn violation(break_drain: impl FnOnce(&mut Drain)) -> String {
        let mut bench = drained();
        break_drain(bench.draining.upstreams.get_mut(&shop_b()).unwrap());
        let desired = bench.draining.check_desired(&bench.settled, 6);
        desired.and_then(|()| bench.draining.check_ended()).unwrap_err()
    }

    #[test]
    fn a_drain_in_another_state_than_the_wanted_one_is_a_violation() {
        let unwanted = "http-shop/b drains in a state that isn't wanted";
        assert_eq!(violation(|drain| drain.state = None), unwanted);
        assert_eq!(violation(|drain| drain.state.as_mut().unwrap().own = ServerState::Drain), unwanted);
        let late = violation(|drain| drain.revision = 7);
        assert_eq!(late, "http-shop/b waits for a revision that the store doesn't have");
    }

    #[test]
    fn a_drain_of_a_ready_upstream_or_of_none_is_a_violation() {
        let violation_of = |upstream: &str, break_drain: fn(&mut Drain)| {
            let mut bench = drained();
            let (service, b) = shop_b();
            let mut drain = bench.draining.upstreams.remove(&(service.clone(), b)).unwrap();
            break_drain(&mut drain);
            bench.draining.upstreams.insert((service, upstream.parse().unwrap()), drain);
            bench.draining.check_desired(&bench.settled, 6).unwrap_err()
        };
        assert_eq!(violation_of("a", |_| {}), "http-shop/a is ready and drains");
        assert_eq!(violation_of("z", |_| {}), "http-shop/z drains in a state, but is gone");
        let over = violation_of("z", |drain| (drain.state, drain.is_over) = (None, true));
        assert_eq!(over, "http-shop/z is gone, and its drain is still listed although it is over");
    }

    #[test]
    fn a_drain_that_is_over_too_early_is_a_violation() {
        let early = violation(|drain| drain.is_over = true);
        assert_eq!(early, "http-shop/b is drained after too few counts");
        let busy = violation(|drain| (drain.is_over, drain.sessions) = (true, 1));
        assert_eq!(busy, "http-shop/b has sessions, but its drain is over");
        let counted = violation(|drain| (drain.idle_counts, drain.sessions) = (1, 1));
        assert_eq!(counted, "http-shop/b has sessions after a count that found none");
        let mut bench = drained();
        let over = Drain { is_over: true, idle_counts: CONFIRMATIONS, ..Drain::begin(None, bench.now(), 6) };
        bench.draining.upstreams.insert(shop_b(), over);
        let gone = "http-shop/b is gone, and its drain is still listed although it is over";
        assert_eq!(bench.draining.check_ended(), Err(gone.into()));
    }
}
