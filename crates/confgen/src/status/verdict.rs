//! The judge: it decides whether an upstream gets new requests at this balancer, with the reasons. Pure: no I/O, no clock.
//!
//! The API, the console and the metrics ask the judge, and discoverctl asks the API. It reads the desired state and HAProxy's
//! figures, and decides nothing about what HAProxy runs.

mod claims;

use std::net::SocketAddr;

use discovery::{Cause, Key, Kind, Reason, ServiceId, Verdict, find_intended_reasons};
use haproxy::runtime::Stat;

use crate::desired::{DesiredService, Server, ServerState, ServiceExplanation, UpstreamExplanation};
use crate::render::view::{TLS, WEB};
use crate::status::figures::{Figures, takes_requests};
use crate::status::share::Starved;
use crate::status::{Retained, Retainer, Status};

/// The facts about one service at this balancer.
pub struct Judge<'a> {
    id: &'a ServiceId,
    section: String,
    status: &'a Status,
    facts: ServiceExplanation<'a>,
    figures: &'a Figures<'a>,
    /// HAProxy has a route for requests to the service's section.
    is_reached: bool,
    /// The reasons why no upstream of the service gets requests.
    against: Vec<Reason>,
    /// Facts about all upstreams that keep no request from them.
    notes: Vec<Reason>,
}

impl<'a> Judge<'a> {
    /// Checks what all upstreams of the service have in common.
    pub fn new(status: &'a Status, figures: &'a Figures<'a>, id: &'a ServiceId) -> Self {
        let facts = status.reconcile.desired.explain_service(id);
        let mut judge = Self {
            id,
            section: id.to_string(),
            status,
            facts,
            figures,
            is_reached: true,
            against: Vec::new(),
            notes: Vec::new(),
        };
        judge.check_frontend();
        judge.check_names();
        judge.check_profile();
        judge.check_balancer();
        judge.check_quarantine();
        judge
    }

    pub fn judge_upstream(&self, upstream: &UpstreamExplanation) -> Verdict {
        let row = self.figures.find_server(&self.section, upstream.id.as_str());
        let (mut against, mut notes) = (self.against.clone(), self.notes.clone());
        self.check_service(upstream, &mut against, &mut notes);
        self.check_record(upstream, &mut against, &mut notes);
        let name = format!("{}/{}", self.id.name, upstream.id);
        let refrains = find_intended_reasons(&name, upstream.announced, upstream.imposed, self.facts.active);
        let is_ready = upstream.server.is_some_and(|server| server.state == ServerState::Ready && server.weight > 0);
        against.extend(refrains);
        // The reasons so far don't depend on HAProxy's figures. They are worth reading without a verdict.
        if let Some(error) = self.figures.error() {
            against.push(Cause::HaproxySilent.into_reason(format!("HAProxy can't be asked: {error}")));
            return Verdict::new(None, against, notes);
        }
        let server = upstream.server.filter(|_| is_ready);
        against.extend(row.map_or_else(|| self.explain_missing(upstream.server), |row| self.check_row(row, server)));
        let gets_requests =
            self.is_reached && row.is_some_and(|row| self.is_chosen(row) && find_moved(row, upstream.server).is_none());
        Verdict::new(Some(gets_requests), against, notes)
    }

    /// Checks the frontend that receives the service's requests.
    fn check_frontend(&mut self) {
        let name = match self.id.kind {
            Kind::Tcp => self.section.as_str(),
            Kind::Http if self.passes_through() => TLS,
            Kind::Http => WEB,
        };
        let Some(row) = self.figures.find_frontend(name) else { return };
        // FULL is an open frontend that has reached its `maxconn`. Its clients wait.
        let is_closed = !matches!(row.status.as_str(), "OPEN" | "FULL");
        if !is_closed {
            return;
        }
        let words = format!("HAProxy has the frontend {name} {}: it was closed over the Runtime API", row.status);
        let reason = Cause::FrontendClosed.into_reason(words);
        if !self.is_led_to() {
            self.is_reached = false;
            self.against.push(reason);
        } else if self.has_claims() {
            self.notes.push(reason);
        }
    }

    /// True if a line of the operator's files sends requests to the service, past confgen's frontends. A TCP service's section has a
    /// frontend of its own.
    fn is_led_to(&self) -> bool {
        let named = self.status.reconcile.operator_files.named_sections.get(&self.section);
        self.id.kind == Kind::Http && named.is_some_and(|named| named.gets_requests)
    }

    /// True if a host, an expression or a port leads to the service.
    fn has_claims(&self) -> bool {
        let claims =
            |wanted: &DesiredService| !wanted.routes.is_empty() || wanted.url_reg.is_some() || !wanted.binds.is_empty();
        self.facts.desired.is_some_and(claims)
    }

    fn passes_through(&self) -> bool {
        self.facts.desired.is_some_and(|wanted| wanted.settings.passes_through())
    }

    /// Checks that HAProxy runs what the store asks for.
    fn check_balancer(&mut self) {
        if let Err(words) = self.status.check_in_sync() {
            self.against.push(Cause::OutOfSync.into_reason(words));
        }
        let limits = self.status.changed_limits();
        self.notes.extend(limits.iter().map(|limit| Cause::Limited.into_reason(limit.to_string())));
        if self.status.reconcile.pending.contains(self.id) {
            self.against.push(Cause::Pending.into_reason("a change of its service waits for HAProxy's restart"));
        }
    }

    /// Adds the quarantined keys of the service that no other reason names.
    fn check_quarantine(&mut self) {
        for (key, reason) in self.status.quarantined_keys(self.id) {
            // Records and overrides are left to `check_record`, which names them for their upstream only.
            let is_setting = matches!(key.parse(), Ok(Key::Setting { .. }));
            let mut told = self.against.iter().chain(&self.notes);
            let is_told = told.any(|it| it.words.contains(key) || it.words.ends_with(reason));
            if is_setting && !is_told {
                self.notes.push(Cause::Quarantined.into_reason(format!("{key} is not followed: {reason}")));
            }
        }
    }

    /// Checks the reasons why the whole service isn't served as the store says.
    fn check_service(&self, upstream: &UpstreamExplanation, against: &mut Vec<Reason>, notes: &mut Vec<Reason>) {
        if let Some(reason) = self.facts.forbidden {
            let words = format!("the service gets no upstreams: {reason}");
            against.push(Cause::ServiceQuarantined.into_reason(words));
        }
        if let Some(words) = self.facts.rejection {
            let reason = Cause::ServiceRejected.into_reason(format!("HAProxy refuses the service: {words}"));
            // The service may serve in the form that HAProxy last accepted.
            if upstream.server.is_none() || !self.is_reached { against.push(reason) } else { notes.push(reason) }
        } else if upstream.server.is_none() {
            for (key, reason) in self.status.reconcile.desired.closed_gates(self.id) {
                // The reason below says the same as the note about the key.
                notes.retain(|note| !note.words.starts_with(&format!("{key} ")));
                let words = format!("the service gets no upstreams while {key} can't be read: {reason}");
                against.push(Cause::ServiceQuarantined.into_reason(words));
            }
        }
    }

    fn check_record(&self, upstream: &UpstreamExplanation, against: &mut Vec<Reason>, notes: &mut Vec<Reason>) {
        let name = (self.id.clone(), upstream.id.clone());
        if let Some(retained) = self.status.reconcile.retained.get(&name) {
            notes.push(Cause::Retained.into_reason(retained.describe()));
        }
        if let Some((key, reason)) = upstream.rejected_record {
            let reason = Cause::RecordQuarantined.into_reason(format!("{key} is not followed: {reason}"));
            // The upstream may serve with its last good record.
            if upstream.announced.is_none() { against.push(reason) } else { notes.push(reason) }
        }
        let key = Key::Override { service: self.id.clone(), id: upstream.id.clone() }.to_string();
        if let Some(reason) = self.status.reconcile.quarantined.get(&key) {
            notes.push(Cause::Quarantined.into_reason(format!("{key} is not followed: {reason}")));
        }
    }

    /// The reason, if HAProxy has no server of the upstream's name.
    fn explain_missing(&self, wanted: Option<&Server>) -> Vec<Reason> {
        let absent = wanted.map(|_| Cause::ServerMissing.into_reason("HAProxy has no such server yet"));
        absent.into_iter().collect()
    }

    /// Checks HAProxy's row of the server. `wanted` is `None` unless the server is desired to take requests.
    fn check_row(&self, row: &Stat, wanted: Option<&Server>) -> Vec<Reason> {
        // The check is about the address that HAProxy has.
        if let Some(address) = find_moved(row, wanted) {
            let words = format!("HAProxy has it at {address}: it was moved over the Runtime API");
            return vec![Cause::ServerStateDiffers.into_reason(words)];
        }
        if let Some(words) = describe_failing_check(row) {
            return vec![Cause::Check.into_reason(words)];
        }
        if takes_requests(row) && row.backup > 0 {
            return self.explain_unused_backup(row).into_iter().collect();
        }
        if let Some(reason) = self.explain_preferred(row) {
            return vec![reason];
        }
        if let Some(starved) = self.find_starved(row) {
            return vec![Cause::Starved.into_reason(starved.describe())];
        }
        if takes_requests(row) || wanted.is_none() {
            return Vec::new();
        }
        let words = if row.is_up() { "its weight is 0".to_owned() } else { format!("HAProxy has it {}", row.status) };
        vec![Cause::ServerStateDiffers.into_reason(words)]
    }

    /// The reason why HAProxy doesn't use a backup server that is up. `None` if HAProxy uses it.
    fn explain_unused_backup(&self, row: &Stat) -> Option<Reason> {
        if self.figures.find_backend(&self.section).is_some_and(|backend| backend.active > 0) {
            return Some(Cause::Backup.into_reason("a backup, and others are up"));
        }
        let profile = self.facts.desired?.settings.profile.as_ref();
        if profile.is_some_and(|it| self.status.reconcile.operator_files.all_backup_profiles.contains(it)) {
            return None;
        }
        let first = self.figures.find_first_backup(&self.section).filter(|first| *first != row.name)?;
        Some(Cause::Backup.into_reason(format!("a backup, and the backup {first} serves")))
    }

    /// The reason why a profile with `balance first` leaves the server out: a lower one takes all requests. `None` if that
    /// one's connections are limited, because the server gets those beyond the limit.
    fn explain_preferred(&self, row: &Stat) -> Option<Reason> {
        let first = self.figures.find_preferred(&self.section)?;
        if !takes_requests(row) || first.name == row.name || first.limit.is_some() {
            return None;
        }
        let words = format!("the service's profile says `balance first`, and {} serves", first.name);
        Some(Cause::Backup.into_reason(words))
    }

    /// `Some` while HAProxy finds the server up and doesn't choose it.
    fn find_starved(&self, row: &Stat) -> Option<&Starved> {
        let starved = self.status.starving.get(&(self.section.clone(), row.name.clone()))?;
        (takes_requests(row) && row.chosen == starved.chosen).then_some(starved)
    }

    /// True if HAProxy chooses the server for some requests of its section.
    fn is_chosen(&self, row: &Stat) -> bool {
        takes_requests(row)
            && (row.backup == 0 || self.explain_unused_backup(row).is_none())
            && self.explain_preferred(row).is_none()
            && self.find_starved(row).is_none()
    }
}

/// The address that HAProxy connects to in place of the desired one.
fn find_moved(row: &Stat, wanted: Option<&Server>) -> Option<SocketAddr> {
    row.address.filter(|address| wanted.is_some_and(|wanted| wanted.address.socket_addr() != *address))
}

/// The result of a failed check. `None` if it passes, if there is no check, or if the server is in maintenance.
fn describe_failing_check(row: &Stat) -> Option<String> {
    let check = row.check.as_deref().unwrap_or_default();
    // A check that hasn't run says INI, UNK or SOCKERR. A check that passes ends in OK, or in OKC if a 404 stops the server
    // (management guide 9.1, check_status).
    let has_failed = !(check.ends_with("OK") || check == "L7OKC" || matches!(check, "" | "INI" | "UNK" | "SOCKERR"));
    let is_down = row.status.starts_with("DOWN");
    let fails_drained = row.status.starts_with("DRAIN") && has_failed;
    if !is_down && !fails_drained {
        return None;
    }
    let since = is_down.then(|| format!("for {} s", row.last_change));
    let words = [row.check.as_ref(), row.check_words.as_ref(), since.as_ref()].into_iter().flatten();
    let words: Vec<&str> = words.map(String::as_str).collect();
    Some(format!("HAProxy's check fails: {}", words.join(", ")))
}

impl Starved {
    fn describe(&self) -> String {
        let Self { requests, share, .. } = self;
        format!(
            "HAProxy has it up and gave it none of {requests} requests, of which {share} were its share; confgen has asked HAProxy to \
             give it its turn again, and the service's next requests show whether it does"
        )
    }
}

impl Retained {
    /// The reason why the upstream is served without its key.
    pub fn describe(&self) -> String {
        let since =
            self.since.map(|at| format!(", since {}", humantime::format_rfc3339_seconds(at))).unwrap_or_default();
        match self.by {
            Retainer::Guard => {
                format!("its key disappeared together with others{since}; it is retained until a check fails")
            }
            Retainer::Reset => {
                format!("the store was reset and lacks its key{since}; it is retained until that key is written again")
            }
        }
    }
}

#[cfg(test)]
mod tests;
