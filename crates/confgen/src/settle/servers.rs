//! A service's servers: the strictest of what announcer, operator and color say.

use std::collections::BTreeMap;

use discovery::{Active, Color, Upstream, UpstreamAddress, UpstreamId, UpstreamState, Weight};
use discovery::{Override, OverrideState};

use super::reading::Reading;

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
pub(super) fn servers(reading: &Reading, kept: Option<&BTreeMap<UpstreamId, Upstream>>) -> Vec<Server> {
    if reading.held_back {
        return Vec::new();
    }
    let active = reading.settings.active.as_ref();
    let all = upstreams(reading, kept).into_iter();
    let mut servers: Vec<(Option<&Color>, Server)> =
        all.map(|(id, upstream)| (upstream.color.as_ref(), server(reading, id, upstream, active))).collect();
    if let Some(active) = active.filter(|active| active.iter().nth(1).is_some()) {
        share(&mut servers, active);
    }
    servers.into_iter().map(|(_, server)| server).collect()
}

/// The same of a color for those who may preview it: its upstreams, active or not, with their own weights.
pub(super) fn previewed(
    reading: &Reading,
    kept: Option<&BTreeMap<UpstreamId, Upstream>>,
    color: &Color,
) -> Vec<Server> {
    if reading.held_back {
        return Vec::new();
    }
    let of_color = upstreams(reading, kept).into_iter().filter(|(_, upstream)| upstream.color.as_ref() == Some(color));
    of_color.map(|(id, upstream)| server(reading, id, upstream, None)).collect()
}

fn upstreams<'a>(
    reading: &'a Reading,
    kept: Option<&'a BTreeMap<UpstreamId, Upstream>>,
) -> BTreeMap<&'a UpstreamId, &'a Upstream> {
    let kept = kept.into_iter().flatten().filter(|(id, _)| !reading.upstreams.contains_key(*id));
    reading.upstreams.iter().chain(kept).collect()
}

fn server(reading: &Reading, id: &UpstreamId, upstream: &Upstream, active: Option<&Active>) -> Server {
    let imposed = reading.overrides.get(id);
    let weight = imposed.and_then(|o| o.weight).unwrap_or(upstream.weight);
    Server {
        id: id.clone(),
        address: upstream.address,
        weight: weight.get(),
        state: state(upstream, imposed, active),
        backup: upstream.backup,
    }
}

fn state(upstream: &Upstream, imposed: Option<&Override>, active: Option<&Active>) -> ServerState {
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
    let share = |active: &Active| upstream.color.as_ref().and_then(|color| active.share(color));
    let inactive = active.is_some_and(|active| share(active).is_none());
    let colored = if inactive { ServerState::Drain } else { ServerState::Ready };
    announced.max(imposed).max(colored)
}

/// Spreads each color's share over its ready servers by their weights, and scales all onto 1 to 256.
fn share(servers: &mut [(Option<&Color>, Server)], active: &Active) {
    let counts = |server: &Server| server.state == ServerState::Ready && server.weight > 0;
    let mut totals: BTreeMap<&Color, f64> = BTreeMap::new();
    for (color, server) in servers.iter().filter(|(_, server)| counts(server)) {
        if let Some(color) = color {
            *totals.entry(color).or_default() += f64::from(server.weight);
        }
    }
    let part = |color: Option<&Color>, server: &Server| {
        let color = color?;
        Some(f64::from(active.share(color)?) * f64::from(server.weight) / totals.get(color)?)
    };
    let parts: Vec<Option<f64>> =
        servers.iter().map(|(color, server)| part(*color, server).filter(|_| counts(server))).collect();
    let largest = parts.iter().flatten().copied().fold(0.0, f64::max);
    for ((_, server), part) in servers.iter_mut().zip(parts) {
        if let Some(part) = part {
            // At least 1: 0 would drain a server of an active color. The value is within 1 to 256 by construction.
            server.weight = (part / largest * f64::from(Weight::MOST)).round().max(1.0) as u16;
        }
    }
}
