//! What is wanted of HAProxy: the topology, less what is refused, with claims, colors and overrides decided.
//!
//! Pure. What this confgen knows besides the store comes in as [`Memory`] and [`Limits`]; what is to be known the next time
//! goes out in [`Settled::memory`].

mod claims;
mod memory;
mod reading;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use discovery::{
    Bind, Check, Domain, Field, Networks, PathPrefix, Profile, Service, ServiceId, Topology, Upstream, UpstreamId,
    UrlRegex,
};

use crate::guard::{Departure, Present};

pub use memory::Memory;
pub use reading::Settings;
pub use servers::{Server, ServerState};

use claims::Claims;
use reading::Reading;

/// What a store may not ask for, whatever it says.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Ports that are bound already, by whom: a TCP service can't have them.
    pub reserved_ports: BTreeMap<u16, String>,
    /// Names of the operator's own sections: a service whose section would bear one is refused.
    pub reserved_sections: Vec<String>,
    /// The operator's named `defaults` sections: what `profile` may name.
    pub profiles: Vec<Profile>,
    /// Where upstreams may be; none is anywhere but loopback, link-local, multicast and unspecified addresses.
    pub upstream_networks: Option<Networks>,
    /// The ports that TCP services may bind; none is any.
    pub tcp_ports: Option<RangeInclusive<u16>>,
}

/// One service as HAProxy is to serve it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The hosts and paths it holds, each with each, sorted.
    pub routes: Vec<Route>,
    /// The old layout's expression, with the revision that ranks it among its like: older ones first.
    pub url_reg: Option<(i64, UrlRegex)>,
    /// The ports it holds, sorted.
    pub binds: Vec<Bind>,
    /// Its settings.
    pub settings: Settings,
    /// Its servers by id. Empty means 503.
    pub servers: Vec<Server>,
}

/// One host and one path prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The host, or all hosts one label below one.
    pub domain: Domain,
    /// The prefix; the root is all paths.
    pub path: PathPrefix,
}

/// Which services may have changed since the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Any of them.
    All,
    /// These alone.
    Services(BTreeSet<ServiceId>),
}

impl Changed {
    /// Joins a service to what has changed.
    pub fn join(&mut self, id: ServiceId) {
        if let Self::Services(services) = self {
            services.insert(id);
        }
    }

    /// Nothing has changed.
    pub fn nothing() -> Self {
        Self::Services(BTreeSet::new())
    }
}

/// What was decided, kept so that a change costs what its own service costs. Every decision is a function of the
/// topology, the limits and what was remembered; being kept changes none of them. A clone costs little: it shares.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    limits: Limits,
    services: BTreeMap<ServiceId, Settlement>,
    claims: Arc<Claims>,
    /// Good values from before this process, for services that it has not read yet.
    remembered: Arc<Memory>,
    /// Keys that no reading knows of, with the reason.
    beside: BTreeMap<String, String>,
    /// Upstreams whose keys have gone since they were last asked for.
    departures: Vec<Departure>,
    /// Upstreams without a key that are served all the same.
    kept: BTreeMap<ServiceId, BTreeMap<UpstreamId, Upstream>>,
}

#[derive(Clone, Debug)]
struct Settlement {
    source: Arc<Service>,
    reading: Arc<Reading>,
    /// None where HAProxy refuses the service, and never took it in another form.
    wanted: Option<Arc<Wanted>>,
    /// What HAProxy says against it as it stands in the store.
    refused: Option<String>,
    /// Its form in the last file that HAProxy took.
    taken: Option<Arc<Wanted>>,
}

impl Settled {
    /// Nothing settled yet, but what was remembered.
    pub fn remembering(memory: Memory) -> Self {
        let claims = Arc::new(Claims::held(memory.claims().clone()));
        Self { claims, remembered: Arc::new(memory), ..Self::default() }
    }

    /// Takes new limits. The next update has to be of everything.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Decides anew what has changed. Says for which services the outcome is another one; those that are gone, or that
    /// the limits forbid, are among them and no longer in [`Settled::services`].
    pub fn update(&mut self, topology: &Topology, changed: &Changed) -> BTreeSet<ServiceId> {
        let mut touched = BTreeSet::new();
        let mut renamed = *changed == Changed::All;
        match changed {
            Changed::All => {
                let known: Vec<ServiceId> = self.services.keys().cloned().collect();
                for id in topology.services().keys().cloned().chain(known).collect::<BTreeSet<_>>() {
                    renamed |= self.read(topology, &id, true);
                    touched.insert(id);
                }
                // All that there is has been read: a value lives on with its key alone.
                self.remembered = Arc::default();
            }
            Changed::Services(services) => {
                for id in services {
                    renamed |= self.read(topology, id, false);
                    touched.insert(id.clone());
                }
            }
        }
        if renamed {
            let readings = self.services.iter().map(|(id, it)| (id, &*it.reading));
            self.claims = Arc::new(Claims::decide(readings, &self.claims, &self.limits));
            touched.extend(self.services.keys().cloned());
        }
        touched.retain(|id| self.decide(id));
        touched
    }

    /// The upstreams whose keys have gone since this was last asked; not those of services that are gone as a whole.
    pub fn take_departures(&mut self) -> Vec<Departure> {
        std::mem::take(&mut self.departures)
    }

    /// How many upstreams there are, in all and of these services.
    pub fn present(&self, services: &BTreeSet<ServiceId>) -> Present {
        let count = |it: &Settlement| it.reading.upstreams.len();
        let of = services.iter().filter_map(|id| Some((id.clone(), count(self.services.get(id)?))));
        Present { services: of.collect(), all: self.services.values().map(count).sum() }
    }

    /// Whether an upstream of the service has a record, or one with the same address.
    pub fn is_back(&self, service: &ServiceId, id: &UpstreamId, upstream: &Upstream) -> bool {
        self.services.get(service).is_none_or(|it| {
            let mut records = it.reading.upstreams.iter();
            records.any(|(other, record)| other == id || record.address == upstream.address)
        })
    }

    /// These upstreams of the service are served although they have no key. True if that changes anything.
    pub fn keep(&mut self, id: &ServiceId, upstreams: BTreeMap<UpstreamId, Upstream>) -> bool {
        if upstreams.is_empty() {
            self.kept.remove(id);
        } else {
            self.kept.insert(id.clone(), upstreams);
        }
        self.decide(id)
    }

    /// HAProxy refuses these services, for these reasons: each goes back to the form that HAProxy took last, or out,
    /// until it is written anew. Services that `judged` knew in another form than now have been written since. Says for
    /// which services the outcome is another one.
    pub fn refuse(&mut self, culprits: &BTreeMap<ServiceId, String>, judged: &Self) -> BTreeSet<ServiceId> {
        for (id, words) in culprits {
            let (Some(now), Some(then)) = (self.services.get_mut(id), judged.services.get(id)) else { continue };
            if Arc::ptr_eq(&now.source, &then.source) {
                now.refused = Some(words.clone());
            }
        }
        culprits.keys().filter(|id| self.decide(id)).cloned().collect()
    }

    /// What HAProxy refused may be fine now: something beside the store is another.
    pub fn forgive(&mut self) {
        self.services.values_mut().for_each(|it| it.refused = None);
    }

    /// HAProxy runs these services as they are wanted now: whatever started it, it took a file with them.
    pub fn runs<'a>(&mut self, services: impl Iterator<Item = &'a ServiceId>) {
        for id in services {
            if let Some(it) = self.services.get_mut(id) {
                it.taken.clone_from(&it.wanted);
            }
        }
    }

    /// HAProxy took a file with these services in this form.
    pub fn taken(&mut self, file: &Self) {
        for (id, then) in &file.services {
            if let Some(now) = self.services.get_mut(id) {
                now.taken.clone_from(&then.wanted);
            }
        }
    }

    /// The same with these services alone.
    pub fn only(&self, services: &[ServiceId]) -> Self {
        let mut some = self.clone();
        some.services.retain(|id, _| services.contains(id));
        some
    }

    /// The services to serve, by kind and name. One that didn't change is the very same `Arc`.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceId, &Arc<Wanted>)> {
        self.services.iter().filter_map(|(id, it)| Some((id, it.wanted.as_ref()?)))
    }

    /// One service; none if it is gone or forbidden.
    pub fn service(&self, id: &ServiceId) -> Option<&Arc<Wanted>> {
        self.services.get(id)?.wanted.as_ref()
    }

    /// Keys that are not followed, with the reason in words.
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        let mut all = self.beside.clone();
        let mut add = |key: &str, reason: &str| {
            let reasons = all.entry(key.to_owned()).or_default();
            *reasons = if reasons.is_empty() { reason.to_owned() } else { format!("{reasons}; {reason}") };
        };
        for (id, it) in &self.services {
            it.reading.refused.iter().for_each(|(key, reason)| add(key, reason));
            if let Some(words) = &it.refused {
                let outcome = if it.taken.is_some() { "its last good form serves" } else { "it has no good form yet" };
                add(&id.folder(), &format!("HAProxy refuses the service: {words}; {outcome}"));
            }
            let hsts = |wanted: &Arc<Wanted>| wanted.settings.hsts.is_some();
            if it.reading.settings.hsts.is_some() && !it.wanted.as_ref().is_some_and(hsts) {
                add(
                    &it.reading.hsts_by.key,
                    "a host of it has a service with tls off too, which HSTS would make unreachable",
                );
            }
        }
        self.claims.refused().for_each(|(key, reasons)| add(key, &reasons.join("; ")));
        all
    }

    /// What has to be remembered over a restart of confgen.
    pub fn memory(&self) -> Memory {
        let good = self.services.iter().map(|(id, it)| (id.to_string(), it.reading.good.clone()));
        Memory::new(good.collect(), self.claims.holders().clone())
    }

    /// Reads one service. True if it claims something else than before.
    fn read(&mut self, topology: &Topology, id: &ServiceId, anew: bool) -> bool {
        let reserved = self.limits.reserved_sections.contains(&id.to_string());
        self.beside.remove(&id.folder());
        if reserved && topology.services().contains_key(id) {
            self.beside.insert(id.folder(), format!("an operator's own section is called {id}"));
        }
        let Some(service) = topology.services().get(id).filter(|_| !reserved) else {
            return self.services.remove(id).is_some();
        };
        let old = self.services.get(id);
        if !anew && old.is_some_and(|old| Arc::ptr_eq(&old.source, service)) {
            return false;
        }
        let good = old.map(|old| &old.reading.good).or_else(|| self.remembered.good(id));
        let reading = Arc::new(reading::read(service, good, &self.limits));
        let renamed = old.is_none_or(|old| !old.reading.claims_like(&reading));
        self.departures.extend(old.iter().flat_map(|old| departures(id, old, &reading)));
        let (wanted, taken) = old.map(|old| (old.wanted.clone(), old.taken.clone())).unwrap_or_default();
        // What HAProxy has against it, it has against this very form of it.
        let refused = old.filter(|old| old.source == *service).and_then(|old| old.refused.clone());
        let settlement = Settlement { source: Arc::clone(service), reading, wanted, refused, taken };
        self.services.insert(id.clone(), settlement);
        renamed
    }

    /// Decides what is wanted of one service. True if that is another thing than before.
    fn decide(&mut self, id: &ServiceId) -> bool {
        let Some(settlement) = self.services.get_mut(id) else { return true };
        if settlement.refused.is_some() {
            return std::mem::replace(&mut settlement.wanted, settlement.taken.clone()) != settlement.taken;
        }
        let reading = &settlement.reading;
        let routes = self.claims.routes(id, reading);
        let mut settings = reading.settings.clone();
        // A browser that has seen HSTS for a host never asks it over HTTP again.
        settings.hsts = settings.hsts.filter(|_| !routes.iter().any(|route| self.claims.is_plain(&route.domain)));
        let wanted = Wanted {
            routes,
            url_reg: reading.url_reg.clone(),
            binds: self.claims.binds(id, reading),
            settings,
            servers: if reading.held_back { Vec::new() } else { servers::servers(reading, self.kept.get(id)) },
        };
        let another = settlement.wanted.as_deref() != Some(&wanted);
        if another {
            settlement.wanted = Some(Arc::new(wanted));
        }
        another
    }
}

/// The upstreams that a service had and has no more.
fn departures(id: &ServiceId, old: &Settlement, new: &Reading) -> Vec<Departure> {
    // A check that is off finds everything up: such an upstream is never kept.
    if new.settings.check == Check::Off {
        return Vec::new();
    }
    let departure = |(gone, field): (&UpstreamId, &Arc<Field<Upstream>>)| {
        let upstream = old.reading.upstreams.get(gone).filter(|_| !new.upstreams.contains_key(gone))?;
        Some(Departure { service: id.clone(), id: gone.clone(), upstream: upstream.clone(), lease: field.entry.lease })
    };
    old.source.upstreams().filter_map(departure).collect()
}

#[cfg(test)]
pub(crate) mod tests;
