//! A service's servers. Each has the strictest state of record, override and color. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use discovery::{Active, Color, Upstream, UpstreamAddress, UpstreamId, UpstreamState, Weight};
use discovery::{Override, OverrideState};

use super::Settings;
use crate::desired::service_input::ServiceInput;
use crate::store::removal_guard::RetainedUpstream;

/// One server, as HAProxy should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The upstream's id, which is the server's name.
    pub id: UpstreamId,
    /// An IP address and a port. HAProxy resolves no names.
    pub address: UpstreamAddress,
    /// 0 to 256.
    pub weight: u16,
    /// The strictest state of record, override and color.
    pub state: ServerState,
    /// HAProxy uses the server only while no other one is up.
    pub backup: bool,
    /// HAProxy lacked the server for a while, and its app may have been stopped meanwhile. So HAProxy adds it as DOWN.
    pub is_unproven: bool,
    /// The server's id in HAProxy if requests are spread by a hash. `None` lets HAProxy choose.
    pub hash_id: Option<NonZeroU32>,
}

/// A server's state, from the mildest to the strictest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// The server takes new requests.
    Ready,
    /// The server takes requests of sticky clients only. HAProxy still checks it.
    Drain,
    /// The server takes no new request, and finishes those in flight. HAProxy doesn't check it.
    Maint,
}

/// An upstream to serve, from its record or retained without one.
struct ServedUpstream<'a> {
    record: &'a Upstream,
    is_unproven: bool,
}

/// Builds the servers of a service, sorted by id. `retained` upstreams are served without records.
pub(super) fn build_servers(
    input: &ServiceInput,
    retained: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
) -> Vec<Server> {
    if input.upstreams_withheld {
        return Vec::new();
    }
    let active = input.settings.active.as_ref();
    let upstreams = served_upstreams(input, retained);
    let mut servers: Vec<Server> = upstreams.iter().map(|(id, it)| build_server(input, id, it, active)).collect();
    // A single active color gets all requests, so its servers keep their own weights.
    if let Some(active) = active.filter(|active| active.iter().nth(1).is_some()) {
        let colors: Vec<Option<&Color>> = upstreams.values().map(|it| it.record.color.as_ref()).collect();
        scale_weights(&mut servers, &colors, active);
    }
    assign_hash_ids(servers, &input.settings)
}

/// Builds the servers of a color's preview, sorted by id. They are the color's upstreams, active or not, with their own weights.
pub(super) fn build_preview_servers(
    input: &ServiceInput,
    retained: Option<&BTreeMap<UpstreamId, RetainedUpstream>>,
    color: &Color,
) -> Vec<Server> {
    if input.upstreams_withheld {
        return Vec::new();
    }
    let upstreams = served_upstreams(input, retained);
    let of_color = upstreams.iter().filter(|(_, it)| it.record.color.as_ref() == Some(color));
    // Without `active`: a client that asks for a color by name gets it, whatever its share.
    let servers = of_color.map(|(id, it)| build_server(input, id, it, None)).collect();
    assign_hash_ids(servers, &input.settings)
}

/// Gives each server an id that depends on its name only, if its section spreads requests by a hash of ids.
///
/// HAProxy places a server on the hash ring by its id. An id that came from the server's line in the file, or from the order
/// of arrival, would differ between balancers and after a restart, and `uri` and `source` would lead clients elsewhere.
fn assign_hash_ids(mut servers: Vec<Server>, settings: &Settings) -> Vec<Server> {
    if settings.hashes_ids() {
        let mut used = BTreeSet::new();
        for server in &mut servers {
            let mut attempts = (0_u8..=u8::MAX).map(|attempt| compute_hash_id(server.id.as_str(), attempt));
            server.hash_id = attempts.find(|id| used.insert(*id));
        }
    }
    servers
}

/// Computes the id of a server with this name. If another server of the section has the id, a later attempt gives another one.
///
/// 2.6 multiplies the id by 4096 in 32 bits (`lb_chash.c`), so ids that differ only above bit 20 would share one place.
fn compute_hash_id(name: &str, attempt: u8) -> NonZeroU32 {
    const IDS: u32 = (1 << 20) - 1;
    // FNV-1a, 32 bits: short, and the same in every release of confgen.
    let hash = name
        .bytes()
        .chain((attempt > 0).then_some(attempt))
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    NonZeroU32::MIN.saturating_add(hash % IDS)
}

fn served_upstreams<'a>(
    input: &'a ServiceInput,
    retained: Option<&'a BTreeMap<UpstreamId, RetainedUpstream>>,
) -> BTreeMap<&'a UpstreamId, ServedUpstream<'a>> {
    let records = input.upstreams.iter().map(|(id, record)| (id, ServedUpstream { record, is_unproven: false }));
    // A record that is back counts before the next reconcile releases the retained one.
    let retained = retained.into_iter().flatten().filter(|(id, _)| !input.upstreams.contains(id));
    let room = input.max_upstreams.map_or(usize::MAX, |most| most.saturating_sub(input.upstreams.len()));
    let retained = retained.take(room).map(|(id, it)| {
        let RetainedUpstream { record, is_unproven } = it;
        (id, ServedUpstream { record, is_unproven: *is_unproven })
    });
    records.chain(retained).collect()
}

fn build_server(input: &ServiceInput, id: &UpstreamId, upstream: &ServedUpstream, active: Option<&Active>) -> Server {
    let ServedUpstream { record, is_unproven } = *upstream;
    let imposed = input.overrides.get(id);
    // The operator's weight stays whatever the announcer writes.
    let weight = imposed.and_then(|it| it.weight).unwrap_or(record.weight);
    Server {
        id: id.clone(),
        address: record.address,
        weight: weight.get(),
        state: strictest_state(record, imposed, active),
        backup: record.backup,
        is_unproven,
        hash_id: None,
    }
}

/// The strictest of three states: the announced one, the operator's, and that of the color.
fn strictest_state(upstream: &Upstream, imposed: Option<&Override>, active: Option<&Active>) -> ServerState {
    let announced = match upstream.state {
        UpstreamState::Ready => ServerState::Ready,
        // The app stops soon, or has stopped. Drain would keep sending its sticky clients there.
        UpstreamState::Drain | UpstreamState::Down => ServerState::Maint,
    };
    let imposed = match imposed.and_then(|it| it.state) {
        None => ServerState::Ready,
        Some(OverrideState::Drain) => ServerState::Drain,
        Some(OverrideState::Maint) => ServerState::Maint,
    };
    let is_active = active.is_none_or(|active| {
        let color = upstream.color.as_ref();
        color.is_some_and(|color| active.share_of(color).is_some())
    });
    // Drain, not maint: sticky clients stay with an inactive color until its upstreams are gone.
    let colored = if is_active { ServerState::Ready } else { ServerState::Drain };
    announced.max(imposed).max(colored)
}

/// Spreads each color's share over its ready servers by their weights, and scales all weights onto 1 to 256. `colors` are those of
/// the servers.
fn scale_weights(servers: &mut [Server], colors: &[Option<&Color>], active: &Active) {
    let mut totals: BTreeMap<&Color, f64> = BTreeMap::new();
    for (server, color) in servers.iter().zip(colors).filter(|(server, _)| takes_requests(server)) {
        if let Some(color) = color {
            *totals.entry(color).or_default() += f64::from(server.weight);
        }
    }
    let parts: Vec<Option<f64>> = servers
        .iter()
        .zip(colors)
        .map(|(server, color)| {
            let color = color.filter(|_| takes_requests(server))?;
            Some(f64::from(active.share_of(color)?) * f64::from(server.weight) / totals.get(color)?)
        })
        .collect();
    let largest = parts.iter().flatten().copied().fold(0.0, f64::max);
    for (server, part) in servers.iter_mut().zip(parts) {
        if let Some(part) = part {
            // At least 1: 0 would drain a server of an active color. The value is within 1 to 256 by construction.
            server.weight = (part / largest * f64::from(Weight::MAX)).round().max(1.0) as u16;
        }
    }
}

fn takes_requests(server: &Server) -> bool {
    server.state == ServerState::Ready && server.weight > 0
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
