//! A service's colors: the active ones, and the number of upstreams of each that would take requests.
//!
//! Pure: decides on the store's keys and the balancers' answers, and asks for neither.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{Active, Color, Service, SettingName, Upstream, UpstreamId, UpstreamState};

use crate::balancer_api::{self, Answers, ServiceInFull, Traffic};
use crate::error::Error;

/// The largest share with which a color can be written (`discovery::Active`).
const MAX_SHARE: u64 = 10_000;

/// The health of a color's upstreams, by balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// The number of upstreams that would take requests if the color were active, by balancer. None if the API or
    /// HAProxy doesn't answer.
    pub(crate) healthy: BTreeMap<String, Option<usize>>,
    /// The reason by balancer that can't tell.
    pub(crate) unknown: BTreeMap<String, String>,
}

/// Finds the upstreams of a color that would take requests if the color were active. Their records say `ready`, and no
/// override takes them out.
pub(crate) fn find_ready(service: &Service, color: Option<&Color>) -> BTreeSet<UpstreamId> {
    let ready = find_records(service, color).filter(|(id, record)| is_ready(service, id, record));
    ready.map(|(id, _)| id.clone()).collect()
}

fn is_ready(service: &Service, id: &UpstreamId, record: &Upstream) -> bool {
    let imposed = service.override_of(id).and_then(|field| field.value.as_ref().ok());
    let weight = imposed.and_then(|it| it.weight).unwrap_or(record.weight);
    record.state == UpstreamState::Ready && imposed.is_none_or(|it| it.state.is_none()) && weight.get() > 0
}

/// Finds the good records of a color's upstreams. `None` stands for upstreams without a color.
pub(crate) fn find_records<'a>(
    service: &'a Service,
    color: Option<&'a Color>,
) -> impl Iterator<Item = (&'a UpstreamId, &'a Upstream)> {
    let readable = service.upstreams().filter_map(|(id, field)| Some((id, field.value.as_ref().ok()?)));
    readable.filter(move |(_, it)| it.color.as_ref() == color)
}

/// Lists every color that an upstream has or that is active. `None` is in the list if an upstream has no color.
pub(crate) fn list_colors(service: &Service) -> BTreeSet<Option<Color>> {
    let borne = service.upstreams().filter_map(|(_, field)| Some(field.value.as_ref().ok()?.color.clone()));
    let active = read_active(service).ok().flatten();
    let active: Vec<_> = active.iter().flat_map(Active::iter).map(|(color, _)| Some(color.clone())).collect();
    borne.chain(active).collect()
}

/// Reads the active colors; None if none are set.
///
/// # Errors
/// [`Error::Refused`] if the value can't be read, because no decision may rest on it.
pub(crate) fn read_active(service: &Service) -> Result<Option<Active>, Error> {
    let Some(field) = service.setting(SettingName::Active) else { return Ok(None) };
    match field.value.as_ref() {
        Ok(discovery::Setting::Active(active)) => Ok(Some(active.clone())),
        // The name of the key decides the type of its value, so no other setting comes here.
        Ok(_) => Ok(None),
        Err(refusal) => Err(Error::Refused(format!("{}: {refusal}; set it or unset it first", field.entry.key))),
    }
}

/// Counts the healthy ones of these upstreams at each balancer.
pub(crate) fn count_healthy(answers: &Answers<ServiceInFull>, ids: &BTreeSet<UpstreamId>) -> Health {
    let mut health = Health::default();
    for (node, answer) in answers {
        let reason = unasked_reason(answer);
        let upstreams = answer.iter().filter(|_| reason.is_none()).map(|service| &service.upstreams);
        health.healthy.insert(node.to_string(), upstreams.map(|all| count_up(all, ids)).next());
        health.unknown.extend(reason.map(|reason| (node.to_string(), reason)));
    }
    health
}

fn count_up(upstreams: &[balancer_api::Upstream], ids: &BTreeSet<UpstreamId>) -> usize {
    let named = upstreams.iter().filter(|it| ids.iter().any(|id| id.as_str() == it.id));
    named.filter(|it| it.haproxy.as_ref().is_some_and(is_healthy)).count()
}

/// The reason why a balancer can't tell how HAProxy's checks find a service's upstreams; None if it can.
fn unasked_reason(answer: &Result<ServiceInFull, String>) -> Option<String> {
    match answer {
        Err(reason) => Some(reason.clone()),
        Ok(service) => service.haproxy_error.as_ref().map(|error| format!("its HAProxy can't be asked: {error}")),
    }
}

/// Finds the first balancer that has no usable counters of this service, with the reason. A balancer that doesn't
/// know the service counts nothing, although its HAProxy may serve it.
pub(crate) fn find_unjudged(answers: &Answers<ServiceInFull>) -> Option<String> {
    answers.iter().find_map(|(node, answer)| {
        let is_unknown = answer.as_ref().is_ok_and(|service| service.service.id.is_empty());
        let why = unasked_reason(answer).or_else(|| is_unknown.then(|| "it doesn't know the service".to_owned()))?;
        Some(format!("{node}: {why}"))
    })
}

/// HAProxy's checks pass, or there are none. Upstreams of an inactive color drain, and HAProxy checks them all the
/// same.
fn is_healthy(traffic: &Traffic) -> bool {
    ["UP", "DRAIN", "no check"].iter().any(|status| traffic.status.starts_with(status))
}

impl Health {
    /// Refuses a color that has no healthy upstream at some balancer, or whose health some balancer can't tell. Clients
    /// come through all balancers. `is_forced` skips the check.
    pub(crate) fn require_healthy(&self, color: &Color, is_forced: bool) -> Result<(), Error> {
        if is_forced {
            return Ok(());
        }
        if self.healthy.is_empty() {
            let words = "no balancer lives, so it isn't known whether";
            return Err(Error::NoBalancer(format!(
                "{words} {color} works; nothing was changed (--force does it anyway)"
            )));
        }
        // A balancer without a healthy upstream is a certain reason. It comes before balancers that can't tell.
        let without = self.healthy.iter().filter(|(_, count)| **count == Some(0)).map(|(node, _)| node.as_str());
        let without: Vec<&str> = without.collect();
        if !without.is_empty() {
            let nodes = without.join(", ");
            return Err(Error::Refused(format!(
                "{color} has no healthy upstream on {nodes}; nothing was changed (--force does it anyway)"
            )));
        }
        let silent = self.unknown.iter().map(|(node, why)| format!("{node} can't be asked ({why})"));
        let silent: Vec<String> = silent.collect();
        if silent.is_empty() {
            return Ok(());
        }
        Err(Error::NoBalancer(format!(
            "{}, so it isn't known whether {color} works there; nothing was changed (--force does it anyway)",
            silent.join(", ")
        )))
    }
}

/// Plans a value of `active` that gives a color this share in percent. The other colors keep their shares relative to
/// each other.
pub(crate) fn plan_shares(color: &Color, percent: u32, others: &[(Color, u32)]) -> Result<Active, Error> {
    let percent = u64::from(percent.min(100));
    let others: Vec<_> = others.iter().filter(|(other, share)| other != color && *share > 0).collect();
    // Operators read small numbers better: after blue=90 green=10 comes blue=50 green=50, not blue=4500 green=4500.
    let common = others.iter().map(|(_, share)| *share).reduce(common_divisor).unwrap_or(1).max(1);
    let others: Vec<_> = others.into_iter().map(|(other, share)| (other, share / common)).collect();
    let total: u64 = others.iter().map(|(_, share)| u64::from(*share)).sum();
    let mut shares: Vec<(&Color, u64)> = Vec::new();
    if percent < 100 {
        shares.extend(others.iter().map(|(other, share)| (*other, u64::from(*share) * (100 - percent))));
    }
    if percent > 0 {
        shares.push((color, percent * total.max(1)));
    }
    let largest = shares.iter().map(|(_, share)| *share).max().unwrap_or(1);
    if largest > MAX_SHARE {
        for (_, share) in &mut shares {
            *share = (*share * MAX_SHARE / largest).max(1);
        }
    }
    let words: Vec<String> = shares.iter().map(|(color, share)| format!("{color}={share}")).collect();
    words.join(" ").parse().map_err(|refusal| Error::Failed(format!("{}: {refusal}", words.join(" "))))
}

fn common_divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, ServiceId, Topology};

    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: 0 }
    }

    fn shop(keys: &[(&str, &str)]) -> Service {
        let entries: Vec<Entry> =
            keys.iter().map(|(key, value)| entry(&format!("http-services/shop/{key}"), value)).collect();
        let topology = Topology::from_entries(&entries);
        let id: &ServiceId = topology.services().keys().next().unwrap();
        (*topology.services()[id]).clone()
    }

    fn color(name: &str) -> Color {
        name.parse().unwrap()
    }

    #[test]
    fn who_is_ready_says_neither_drain_nor_weight_0() {
        let service = shop(&[
            ("active", "blue"),
            ("upstreams/a", r#"{"address":"10.0.0.1:80","color":"green"}"#),
            ("upstreams/b", r#"{"address":"10.0.0.1:81","color":"green","state":"drain"}"#),
            ("upstreams/c", r#"{"address":"10.0.0.1:82","color":"green"}"#),
            ("upstreams/d", r#"{"address":"10.0.0.1:83","color":"green","weight":0}"#),
            ("upstreams/e", r#"{"address":"10.0.0.1:84","color":"green","weight":0}"#),
            ("upstreams/f", "10.0.0.1:85"),
            ("overrides/c", r#"{"state":"maint"}"#),
            ("overrides/e", r#"{"weight":7}"#),
        ]);
        let ids =
            |color: Option<&Color>| find_ready(&service, color).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ids(Some(&color("green"))), ["a", "e"]);
        assert_eq!(ids(None), ["f"]);
        assert_eq!(list_colors(&service).len(), 3);
        assert!(read_active(&shop(&[("active", "=")])).is_err());
    }

    #[test]
    fn a_color_without_a_healthy_upstream_anywhere_is_refused() {
        let full = |json: &str| serde_json::from_str::<ServiceInFull>(json).unwrap();
        let drained = r#"{"upstreams":[{"id":"a","haproxy":{"status":"DRAIN","up":false}}]}"#;
        let down = r#"{"upstreams":[{"id":"a","haproxy":{"status":"DOWN"}},{"id":"b","haproxy":{"status":"UP"}}]}"#;
        let ids = ["a".parse().unwrap()].into();
        let check = |answers: &[Result<&str, &str>], is_forced| {
            let nodes = answers
                .iter()
                .enumerate()
                .map(|(at, it)| (format!("lb{at}").parse().unwrap(), (*it).map(full).map_err(str::to_owned)));
            count_healthy(&nodes.collect(), &ids)
                .require_healthy(&color("green"), is_forced)
                .map_err(|error| error.exit_code())
        };
        assert_eq!(check(&[Ok(drained), Ok(drained)], false), Ok(()));
        assert_eq!(check(&[Ok(drained), Err("away")], false), Err(6), "what lb1 has says nothing of lb2");
        assert_eq!(check(&[Ok(drained), Ok(r#"{"haproxy_error":"away"}"#)], false), Err(6));
        assert_eq!(check(&[Ok(drained), Err("away")], true), Ok(()));
        assert_eq!(check(&[Ok(drained), Ok(down)], false), Err(4));
        assert_eq!(check(&[Err("away"), Ok(r#"{"haproxy_error":"away"}"#)], false), Err(6));
        assert_eq!(check(&[], false), Err(6));
        assert_eq!(check(&[Ok(down)], true), Ok(()));
    }

    #[test]
    fn a_balancer_that_does_not_count_is_not_judged() {
        let full = |json: &str| serde_json::from_str::<ServiceInFull>(json).unwrap();
        let known = r#"{"service":{"id":"http-shop"}}"#;
        let unjudged = |lb2: Result<&str, &str>| {
            let answers = [("lb1", Ok(known)), ("lb2", lb2)];
            let answer =
                |(node, it): (&str, Result<&str, &str>)| (node.parse().unwrap(), it.map(full).map_err(str::to_owned));
            find_unjudged(&answers.into_iter().map(answer).collect())
        };
        assert_eq!(unjudged(Ok(known)), None);
        assert_eq!(unjudged(Err("away")).unwrap(), "lb2: away");
        let silent = r#"{"service":{"id":"http-shop"},"haproxy_error":"gone"}"#;
        assert_eq!(unjudged(Ok(silent)).unwrap(), "lb2: its HAProxy can't be asked: gone");
        assert_eq!(unjudged(Ok("{}")).unwrap(), "lb2: it doesn't know the service");
    }

    #[test]
    fn the_others_share_the_rest_as_before() {
        let of = |percent, others: &[(&str, u32)]| {
            let others: Vec<_> = others.iter().map(|(name, share)| (color(name), *share)).collect();
            plan_shares(&color("green"), percent, &others).unwrap().to_string()
        };
        assert_eq!(of(10, &[("blue", 1)]), "blue=90 green=10");
        assert_eq!(of(50, &[("blue", 90), ("green", 10)]), "blue=50 green=50");
        assert_eq!(of(10, &[("blue", 1), ("red", 3)]), "blue=90 red=270 green=40");
        assert_eq!(of(1, &[("blue", 9000), ("red", 1)]), "blue=10000 red=1 green=101");
        assert_eq!(of(100, &[("blue", 1)]), "green");
        assert_eq!(of(50, &[]), "green");
    }
}
