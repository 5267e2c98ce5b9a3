//! A service's servers: the strictest of what announcer, operator and color say.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use discovery::{Active, Color, Upstream, UpstreamAddress, UpstreamId, UpstreamState, Weight};
use discovery::{Override, OverrideState};

use super::Settings;
use crate::desired::service_input::ServiceInput;
use crate::store::removal_guard::RetainedUpstream;

/// One server as HAProxy is to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub id: UpstreamId,
    /// Where it listens.
    pub address: UpstreamAddress,
    /// 0 to 256.
    pub weight: u16,
    /// Whether it takes requests.
    pub state: ServerState,
    /// Used only when no other server is up.
    pub backup: bool,
    /// It was out of HAProxy for a while, and its app may have been stopped: if HAProxy lacks it, it starts as DOWN.
    pub is_unproven: bool,
    /// Its id in HAProxy if requests are spread by a hash, else `None` and HAProxy counts.
    pub hash_id: Option<NonZeroU32>,
}

/// A server's state, from the mildest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// Takes requests.
    Ready,
    /// Takes sticky clients only; it is checked.
    Drain,
    /// Takes no new request; those in flight finish.
    Maint,
}

/// The servers of a service, by id; `kept` ones are served although they have no record.
pub(super) fn build_servers(
    reading: &ServiceInput,
    kept: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
) -> Vec<Server> {
    if reading.upstreams_withheld {
        return Vec::new();
    }
    let active = reading.settings.active.as_ref();
    let all = served_upstreams(reading, kept).into_iter();
    let mut servers: Vec<(Option<&Color>, Server)> =
        all.map(|(id, it)| (it.0.color.as_ref(), build_server(reading, id, it, active))).collect();
    if let Some(active) = active.filter(|active| active.iter().nth(1).is_some()) {
        scale_weights(&mut servers, active);
    }
    let servers = servers.into_iter().map(|(_, server)| server).collect();
    assign_hash_ids(servers, &reading.settings)
}

/// The same of a color for those who may preview it: its upstreams, active or not, with their own weights.
pub(super) fn build_preview_servers(
    reading: &ServiceInput,
    kept: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
    color: &Color,
) -> Vec<Server> {
    if reading.upstreams_withheld {
        return Vec::new();
    }
    let of_color =
        served_upstreams(reading, kept).into_iter().filter(|(_, (upstream, _))| upstream.color.as_ref() == Some(color));
    let servers = of_color.map(|(id, it)| build_server(reading, id, it, None)).collect();
    assign_hash_ids(servers, &reading.settings)
}

/// Gives each server an id that depends on its name alone, if its section spreads requests by a hash of ids.
///
/// HAProxy places a server on the hash ring by its id. An id that came from the server's line in the file, or from the order
/// of arrival, would differ between balancers and after a restart, and `uri` and `source` would lead clients elsewhere.
fn assign_hash_ids(mut servers: Vec<Server>, settings: &Settings) -> Vec<Server> {
    if settings.hashes_ids() {
        let mut taken = BTreeSet::new();
        for server in &mut servers {
            let name = server.id.as_str();
            server.hash_id =
                (0_u8..=u8::MAX).map(|attempt| compute_hash_id(name, attempt)).find(|id| taken.insert(*id));
        }
    }
    servers
}

/// The id of a server of this name; a later attempt gives another one, should a sibling have the first.
///
/// 2.6 multiplies the id by 4096 in 32 bits (`lb_chash.c`): ids that differ only above bit 20 would share one place.
fn compute_hash_id(name: &str, attempt: u8) -> NonZeroU32 {
    const IDS: u32 = (1 << 20) - 1;
    // FNV-1a, 32 bits: short, and the same in every release of confgen.
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = name.bytes().chain((attempt > 0).then_some(attempt)).fold(0x811c_9dc5, mix);
    NonZeroU32::MIN.saturating_add(hash % IDS)
}

fn served_upstreams<'a>(
    reading: &'a ServiceInput,
    kept: Option<&'a BTreeMap<UpstreamId, RetainedUpstream>>,
) -> BTreeMap<&'a UpstreamId, (&'a Upstream, bool)> {
    let kept = kept.into_iter().flatten().filter(|(id, _)| !reading.upstreams.contains_key(*id));
    let room = reading.max_upstreams.map_or(usize::MAX, |most| most.saturating_sub(reading.upstreams.len()));
    let kept = kept.take(room);
    let kept = kept.map(|(id, retained)| (id, (&retained.record, retained.is_unproven)));
    reading.upstreams.iter().map(|(id, upstream)| (id, (upstream, false))).chain(kept).collect()
}

/// `is_unproven` is the second of the pair.
fn build_server(
    reading: &ServiceInput,
    id: &UpstreamId,
    (upstream, is_unproven): (&Upstream, bool),
    active: Option<&Active>,
) -> Server {
    let imposed = reading.overrides.get(id);
    let weight = imposed.and_then(|o| o.weight).unwrap_or(upstream.weight);
    Server {
        id: id.clone(),
        address: upstream.address,
        weight: weight.get(),
        state: strictest_state(upstream, imposed, active),
        backup: upstream.backup,
        is_unproven,
        hash_id: None,
    }
}

fn strictest_state(upstream: &Upstream, imposed: Option<&Override>, active: Option<&Active>) -> ServerState {
    let announced = match upstream.state {
        UpstreamState::Ready => ServerState::Ready,
        // It is about to go, or gone: a sticky client is better off elsewhere at once.
        UpstreamState::Drain | UpstreamState::Down => ServerState::Maint,
    };
    let imposed = match imposed.and_then(|o| o.state) {
        None => ServerState::Ready,
        Some(OverrideState::Drain) => ServerState::Drain,
        Some(OverrideState::Maint) => ServerState::Maint,
    };
    let share = |active: &Active| upstream.color.as_ref().and_then(|color| active.share_of(color));
    let inactive = active.is_some_and(|active| share(active).is_none());
    let colored = if inactive { ServerState::Drain } else { ServerState::Ready };
    announced.max(imposed).max(colored)
}

/// Spreads each color's share over its ready servers by their weights, and scales all onto 1 to 256.
fn scale_weights(servers: &mut [(Option<&Color>, Server)], active: &Active) {
    let counts = |server: &Server| server.state == ServerState::Ready && server.weight > 0;
    let mut totals: BTreeMap<&Color, f64> = BTreeMap::new();
    for (color, server) in servers.iter().filter(|(_, server)| counts(server)) {
        if let Some(color) = color {
            *totals.entry(color).or_default() += f64::from(server.weight);
        }
    }
    let part = |color: Option<&Color>, server: &Server| {
        let color = color?;
        Some(f64::from(active.share_of(color)?) * f64::from(server.weight) / totals.get(color)?)
    };
    let parts: Vec<Option<f64>> =
        servers.iter().map(|(color, server)| part(*color, server).filter(|_| counts(server))).collect();
    let largest = parts.iter().flatten().copied().fold(0.0, f64::max);
    for ((_, server), part) in servers.iter_mut().zip(parts) {
        if let Some(part) = part {
            // At least 1: 0 would drain a server of an active color. The value is within 1 to 256 by construction.
            server.weight = (part / largest * f64::from(Weight::MAX)).round().max(1.0) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::{settle, topology};

    fn ids(settings: &str, upstreams: impl IntoIterator<Item = String>) -> BTreeMap<String, Option<u32>> {
        let records = upstreams.into_iter().map(|id| format!("http-services/a/upstreams/{id} 10.0.0.1:80\n"));
        let store = format!("http-services/a/{settings}\n{}", records.collect::<String>());
        let settled = settle(&topology(&store), &Default::default(), &Default::default());
        let servers = &settled.services().next().unwrap().1.servers;
        servers.iter().map(|server| (server.id.to_string(), server.hash_id.map(NonZeroU32::get))).collect()
    }

    #[test]
    fn an_id_follows_from_the_name_and_siblings_change_nothing() {
        let few = ids("balance uri", ["b".to_owned(), "shop-1".to_owned()]);
        let many = ids("balance uri", ["a", "b", "c", "shop-1", "z"].map(str::to_owned));
        assert!(few.iter().all(|(name, id)| many[name] == *id), "{few:?} {many:?}");
        // Another release of confgen must not move clients.
        assert_eq!(few["shop-1"], Some(SHOP_1));
        assert!(ids("balance roundrobin", ["b".to_owned()]).values().all(Option::is_none));
    }

    #[test]
    fn ids_are_unique_and_within_what_haproxy_tells_apart() {
        let names = || (0..5_000).map(|number| format!("node-{}", number * 7_919));
        let ids: Vec<u32> = ids("balance source", names()).into_values().flatten().collect();
        let first_attempts: BTreeSet<_> = names().map(|name| compute_hash_id(&name, 0)).collect();
        assert!(first_attempts.len() < 5_000, "some names share their first id, or this shows nothing");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 5_000);
        assert!(ids.iter().all(|id| (1..1 << 20).contains(id)));
    }

    const SHOP_1: u32 = 153_680;
}
