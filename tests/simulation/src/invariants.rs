//! What must hold in the world. Production's own `check_invariants` run inside of the calls, as debug assertions.

use std::collections::BTreeMap;
use std::sync::Arc;

use confgen::decisions::{ConfigFingerprint, DesiredService, DesiredState, HaproxyControl, Server, ServerState};
use discovery::ServiceId;
use haproxy::runtime::Socket;
use haproxy::supervisor::Control;

use crate::announcer::PoliteStop;
use crate::balancer::{Balancer, Confgen};
use crate::haproxy::{Haproxy, Process};
use crate::world::World;

/// The backend of passed-through hosts.
const PASSTHROUGH: &str = "discover-passthrough";

impl World {
    /// What must hold after each step.
    pub fn check_step(&mut self) {
        for balancer in &self.balancers {
            let mut haproxy = balancer.haproxy.lock();
            let node = &balancer.node;
            self.violations.extend(haproxy.violations.drain(..).map(|it| format!("{node}: {it}")));
            // Nothing of HAProxy has changed since the last look.
            if haproxy.version != haproxy.checked_version {
                haproxy.checked_version = haproxy.version;
                let found = balancer.confgen.as_ref().and_then(|_| check_process(&haproxy).err());
                self.violations.extend(found.map(|it| format!("{node}: {it}")));
            }
        }
    }

    /// What must hold after confgen has worked. `done` is what it did.
    pub fn check_after_work(&mut self, number: usize, done: &[String]) {
        let Some(balancer) = self.balancers.get_mut(number) else { return };
        let node = balancer.node.clone();
        let Some(confgen) = &mut balancer.confgen else { return };
        let found: Vec<String> = confgen.reconciler.violations.drain(..).collect();
        self.violations.extend(found.into_iter().map(|it| format!("{node}: {it}")));
        if !done.iter().any(|line| line.starts_with("ends")) {
            return;
        }
        let Some(balancer) = self.balancers.get(number) else { return };
        let Some(confgen) = &balancer.confgen else { return };
        if done.iter().any(|line| line.starts_with("ends Reconciled")) && confgen.reconciler.is_current() {
            let owned = balancer.disk.lock().owners.check(&confgen.reconciler.desired);
            let found = check_applied(balancer, confgen).err().into_iter().chain(owned.err());
            self.violations.extend(found.map(|it| format!("{node}: {it}")));
        }
        let found = check_retained(confgen, &self.polite_stops, &node).err();
        self.violations.extend(found.map(|it| format!("{node}: {it}")));
    }

    /// An app may be stopped only if no HAProxy of a balancer that was waited for has a request open with it.
    pub fn check_polite_stop(&mut self, stop: &PoliteStop) {
        let section = stop.upstream.0.to_string();
        for balancer in self.balancers.iter().filter(|balancer| stop.nodes.contains(&balancer.node)) {
            let haproxy = balancer.haproxy.lock();
            for process in haproxy.running.iter().chain(&haproxy.old) {
                let streams = process.connections.iter().filter_map(|it| it.stream.as_ref());
                let at_app = |backend: &str, server: &str| {
                    let server = process.backends.get(backend).and_then(|it| it.servers.get(server));
                    server.is_some_and(|server| server.address() == stop.address)
                };
                let of_service = |backend: &str| backend == section || backend.starts_with(&format!("{section}:"));
                let open = streams.filter(|it| of_service(&it.backend) && at_app(&it.backend, &it.server)).count();
                if open > 0 {
                    let (node, address) = (&balancer.node, &stop.address);
                    self.violations.push(format!("{node}: {address} is stopped politely with {open} open requests"));
                }
            }
        }
    }

    /// What must hold once the faults are over and time has passed.
    pub fn check_end(&mut self) {
        let mut found = Vec::new();
        for balancer in &self.balancers {
            let checked = balancer.confgen.as_ref().map(|confgen| self.check_balancer_at_end(balancer, confgen));
            found.extend(checked.and_then(Result::err).map(|it| format!("{} at the end: {it}", balancer.node)));
        }
        for announcer in &self.announcers {
            let lease = announcer.lease().map(registry::LeaseId::get);
            let entry = self.etcd.get(announcer.key());
            let is_ours = entry.is_some_and(|entry| Some(entry.lease) == lease);
            if announcer.should_be_announced() && !is_ours && !announcer.is_taken() {
                found.push(format!("at the end: the record of {} is missing: {entry:?}", announcer.address()));
            }
        }
        self.violations.extend(found);
    }

    fn check_balancer_at_end(&self, balancer: &Balancer, confgen: &Confgen) -> Result<(), String> {
        let reconciler = &confgen.reconciler;
        let (position, status) = (self.etcd.position(), &confgen.status);
        if !confgen.follower.is_up_to_date(&self.etcd) {
            return Err("the store isn't followed to its end".to_owned());
        }
        if !reconciler.is_current() {
            return Err("HAProxy is not current".to_owned());
        }
        let waits = status.reconcile.pending.iter().find(|id| reconciler.desired.rejection(id).is_none());
        if let Some(id) = waits {
            return Err(format!("{id} still waits for a restart"));
        }
        let stored = confgen.replica.topology().entries().find(|entry| {
            let stored = self.etcd.get(&entry.key);
            stored.is_none_or(|it| it.mod_revision != entry.mod_revision)
                && !reconciler.retained_keys.contains(&entry.key)
        });
        if let Some(entry) = stored {
            return Err(format!("{} is not in the store as confgen has it, nor retained", entry.key));
        }
        let has_all = |key: &&String| key.starts_with("http-services/") || key.starts_with("tcp-services/");
        let known: Vec<&str> = confgen.replica.topology().entries().map(|entry| entry.key.as_str()).collect();
        if let Some(key) = self.etcd.keys().filter(has_all).find(|key| !known.contains(&key.as_str())) {
            return Err(format!("confgen lacks {key}"));
        }
        check_applied(balancer, confgen)?;
        self.check_acknowledgement(balancer, confgen, position.cluster)?;
        check_second_plan(balancer, &reconciler.desired, &reconciler.fingerprints)
    }

    fn check_acknowledgement(&self, balancer: &Balancer, confgen: &Confgen, cluster: u64) -> Result<(), String> {
        let Some(record) = confgen.record.written() else { return Err("there is no balancer record".to_owned()) };
        if self
            .etcd
            .get(&format!("balancers/{}", balancer.node))
            .is_none_or(|it| it.value != record.to_string().as_bytes())
        {
            return Err("the balancer record is not in the store".to_owned());
        }
        let seen = confgen.replica.store_revision().revision;
        if record.cluster != cluster || record.applied != seen || !record.draining.is_empty() {
            return Err(format!("the balancer record says {record}, and the replica is at {seen}"));
        }
        Ok(())
    }
}

/// What holds in each process: every route leads to a backend.
fn check_process(haproxy: &Haproxy) -> Result<(), String> {
    let Some(process) = &haproxy.running else { return Ok(()) };
    for (name, entries) in &process.maps {
        for (key, value) in entries {
            let leads = matches!(name.as_str(), "paths" | "passthrough" | "urls");
            let is_disturbed = haproxy.external != haproxy.observed_external;
            if leads && !is_disturbed && !process.backends.contains_key(value) {
                return Err(format!("the map {name} leads {key} to {value}, which is no backend"));
            }
        }
    }
    Ok(())
}

/// HAProxy runs what is desired, as far as it can without a restart. Its servers are desired, leaving, or kept until a restart.
fn check_applied(balancer: &Balancer, confgen: &Confgen) -> Result<(), String> {
    let haproxy = balancer.haproxy.lock();
    let Some(process) = &haproxy.running else { return Ok(()) };
    // A change that confgen has not had a chance to see.
    if haproxy.external != haproxy.observed_external {
        return Ok(());
    }
    let (desired, status) = (&confgen.reconciler.desired, &confgen.reconciler.status);
    let keeps_some = !status.pending.is_empty();
    for (id, wanted) in desired.services() {
        check_service(process, id, wanted, status.pending.contains(id))?;
    }
    for (section, backend) in &process.backends {
        let wanted: Vec<&str> = wanted_servers(desired, section).iter().map(|server| server.id.as_str()).collect();
        let is_ours = section.starts_with("http-") || section.starts_with("tcp-");
        let stays = backend.servers.iter().find(|(name, server)| !wanted.contains(&name.as_str()) && !server.maint);
        if let Some((name, _)) = stays.filter(|_| is_ours && !keeps_some) {
            return Err(format!("{section}/{name} is neither desired nor leaving"));
        }
    }
    check_routes(process, desired, keeps_some)
}

fn wanted_servers<'a>(desired: &'a DesiredState, section: &str) -> &'a [Server] {
    let (own, color) = section.split_once(":preview-").map_or((section, None), |(own, color)| (own, Some(color)));
    let Some((_, wanted)) = desired.services().find(|(id, _)| id.to_string() == own) else { return &[] };
    match color {
        None => &wanted.servers,
        Some(color) => {
            let mut previews = wanted.previews.iter().filter(|preview| preview.color.as_str() == color);
            previews.next().map(|preview| preview.servers.as_slice()).unwrap_or_default()
        }
    }
}

fn check_service(process: &Process, id: &ServiceId, wanted: &DesiredService, is_pending: bool) -> Result<(), String> {
    let section = id.to_string();
    let has_section = id.kind == discovery::Kind::Http || !wanted.binds.is_empty();
    let Some(backend) = process.backends.get(&section).filter(|_| has_section) else {
        // A service without a section waits for a restart, and says so.
        return if is_pending || !has_section {
            Ok(())
        } else {
            Err(format!("{section} has no section, and isn't pending"))
        };
    };
    if is_pending {
        return Ok(());
    }
    for server in &wanted.servers {
        let name = server.id.as_str();
        let Some(live) = backend.servers.get(name) else {
            return Err(format!("{section}/{name} is missing, and the service isn't pending"));
        };
        if live.address() != server.address.to_string() {
            return Err(format!("{section}/{name} has the address {}, not {}", live.address(), server.address));
        }
        let is_as_wanted = match server.state {
            ServerState::Ready => !live.maint && !live.drain && live.weight == server.weight,
            ServerState::Drain => !live.maint && (live.drain || live.weight == 0),
            ServerState::Maint => live.maint,
        };
        if !is_as_wanted {
            return Err(format!(
                "{section}/{name} should be {:?} with weight {}: {live:?}",
                server.state, server.weight
            ));
        }
    }
    Ok(())
}

/// Each wanted route is in the map, and without a pending service no other is. So a host has one owner.
fn check_routes(process: &Process, desired: &DesiredState, keeps_some: bool) -> Result<(), String> {
    if keeps_some {
        return Ok(());
    }
    let mut wanted: BTreeMap<String, String> = BTreeMap::new();
    for (id, service) in desired.services() {
        let section = if service.settings.passes_through() { PASSTHROUGH.to_owned() } else { id.to_string() };
        for route in &service.routes {
            let key = format!("{}{}", route.domain, route.path.with_boundary());
            if let Some(other) = wanted.insert(key.clone(), section.clone()) {
                return Err(format!("{key} belongs to {other} and to {section}"));
            }
        }
        for preview in &service.previews {
            for route in &preview.routes {
                let key = format!("{}{}", route.domain, route.path.with_boundary());
                wanted.insert(key, format!("{id}:preview-{}", preview.color));
            }
        }
    }
    // A key may be there twice after a restart by hand, because `add map` doesn't look for an old one. The first one counts.
    let live = process.maps.get("paths").cloned().unwrap_or_default().into_iter().rev();
    let live: BTreeMap<String, String> = live.collect();
    if let Some((key, section)) = live.iter().find(|entry| wanted.get(entry.0) != Some(entry.1)) {
        return Err(format!("{key} leads to {section}, wanted is {:?}", wanted.get(key)));
    }
    match wanted.iter().find(|(key, _)| !live.contains_key(*key)) {
        Some((key, section)) => Err(format!("{key} should lead to {section}, and is in no map")),
        None => Ok(()),
    }
}

/// The guard retains nothing that was announced to go, to a balancer that acknowledged that.
fn check_retained(confgen: &Confgen, stops: &[PoliteStop], node: &str) -> Result<(), String> {
    let guard = &confgen.reconciler.guard;
    for stop in stops.iter().filter(|stop| stop.nodes.iter().any(|it| it == node)) {
        let (service, id) = &stop.upstream;
        // Another announcer may have had the id since, at another address.
        let retained = guard.retained_of(service).remove(id);
        if retained.is_some_and(|it| it.record.address.to_string() == stop.address) {
            return Err(format!("{} is retained by the guard, and its app was stopped politely", stop.address));
        }
    }
    Ok(())
}

/// A confgen that observes HAProxy anew has nothing to change.
fn check_second_plan(balancer: &Balancer, desired: &DesiredState, wanted: &ConfigFingerprint) -> Result<(), String> {
    let Ok(command) = "true".parse() else { return Ok(()) };
    let socket = Socket::of_model(Arc::new(balancer.haproxy.clone()));
    let mut control = HaproxyControl::new(socket, Control::new(command, None), "/nonexistent/restarting".into());
    balancer.haproxy.lock().lines = Some(Vec::new());
    let touched = Vec::new();
    let applied = control.apply_desired(desired, Some(wanted), touched.iter(), &balancer.disk);
    let undone = control.undo_manual_changes(desired, wanted);
    let lines = balancer.haproxy.lock().lines.take().unwrap_or_default();
    if let (Err(error), _) | (_, Err(error)) = (applied, undone) {
        return Err(format!("a second plan fails: {error:#}"));
    }
    if let Some(complaint) = control.refused_change() {
        return Err(format!("a second plan is refused: {complaint}"));
    }
    // A server that leaves is asked to go again.
    let is_removal = |line: &String| line.contains(";del server") || line.contains(";del backend");
    match lines.iter().find(|line| !is_removal(line)) {
        Some(line) => Err(format!("a second plan changes something: {line}")),
        None => Ok(()),
    }
}
