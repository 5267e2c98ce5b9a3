//! The judge's part on the way from a request to the service's section: claims, expressions and the operator's profile. Pure: no I/O,
//! no clock.

use discovery::{Cause, Kind, Reason, ServiceId, SettingName};

use super::Judge;

/// The settings that claim hosts, paths and ports for a service. `path` narrows the claims of `domain`.
const NAMES: [SettingName; 4] = [SettingName::Domain, SettingName::Path, SettingName::UrlReg, SettingName::Ports];

impl<'a> Judge<'a> {
    /// Checks the hosts, expressions or ports that lead to the service.
    pub(super) fn check_names(&mut self) {
        let reconcile = &self.status.reconcile;
        let gets_challenges = reconcile.acme.as_ref() == Some(self.id) && !self.passes_through();
        // Both get requests without a claim: for hosts that no service names, and for the ACME challenges of all hosts.
        if gets_challenges {
            return;
        }
        let is_led_to = self.is_led_to();
        if let Some((before, words)) = self.find_shadow() {
            self.is_reached &= is_led_to;
            let reason = Cause::ClaimHeld.into_reason(format!("{before} {words}, and gets the requests"));
            if is_led_to { self.notes.push(reason) } else { self.against.push(reason) }
        }
        if self.id.is_default() {
            return;
        }
        if self.has_claims() {
            let leads_nowhere = self.is_without_path();
            if leads_nowhere {
                let words = "no path begins as the service's url_reg says: each begins with `/`";
                let reason = Cause::NoDomain.into_reason(words);
                if is_led_to { self.notes.push(reason) } else { self.against.push(reason) }
            }
            self.is_reached &= is_led_to || !(leads_nowhere || reconcile.unrouted.contains(self.id));
            return;
        }
        let reasons = self.explain_lost_names();
        if is_led_to || reconcile.reached_until_restart.contains(self.id) {
            self.notes.extend(reasons);
            return;
        }
        self.is_reached = false;
        if reasons.is_empty() && self.facts.rejection.is_none() {
            self.against.push(self.explain_no_name());
        }
        self.against.extend(reasons);
    }

    /// The reason for a service without a claim. A service whose settings were deleted may have retained upstreams.
    fn explain_no_name(&self) -> Reason {
        let reason = Reason::no_domain(self.id);
        let has_settings = self.facts.source.is_some_and(|source| source.settings().next().is_some());
        let mut retained = self.status.reconcile.retained.keys();
        if has_settings || !retained.any(|(service, _)| service == self.id) {
            return reason;
        }
        let words =
            format!("the service was deleted, and its retained upstreams serve no host or port; {}", reason.words);
        reason.cause.into_reason(words)
    }

    /// True if only an expression leads to the service, and matches no path.
    fn is_without_path(&self) -> bool {
        let wanted = self.facts.desired.filter(|wanted| wanted.routes.is_empty());
        wanted.and_then(|wanted| wanted.url_reg.as_ref()).is_some_and(|(_, regex)| regex.matches_no_path())
    }

    /// The service that HAProxy finds before this one for every URL, and why. `None` if a host leads to this one too.
    fn find_shadow(&self) -> Option<(&'a ServiceId, &'static str)> {
        let wanted = self.facts.desired.filter(|wanted| wanted.routes.is_empty())?;
        let own = wanted.url_reg.as_ref();
        // Only `default` gets requests without a claim. They are the requests that no expression matches.
        if own.is_none() && !self.id.is_default() {
            return None;
        }
        let reconcile = &self.status.reconcile;
        let others = reconcile.desired.services().filter(|(id, _)| *id != self.id && !reconcile.unrouted.contains(*id));
        let mut shadows = others.filter_map(|(id, other)| {
            let (since, regex) = other.url_reg.as_ref()?;
            // Requests that no expression matches go to `default`.
            if self.id.is_default() && !regex.matches_every_path() {
                return None;
            }
            let Some((at, own)) = own else { return Some((id, "has a url_reg that matches every path")) };
            let is_before = (since, id.to_string()) < (at, self.section.clone());
            let words = if regex == own { "has the same url_reg for longer" } else { "has a wider url_reg for longer" };
            (is_before && regex.covers(own)).then_some((id, words))
        });
        shadows.next()
    }

    /// The reasons why the keys with the service's claims don't count.
    fn explain_lost_names(&self) -> Vec<Reason> {
        let fields = NAMES.into_iter().filter_map(|name| self.facts.source?.setting(name));
        fields.filter_map(|field| self.explain_lost_name(&field.entry.key)).collect()
    }

    fn explain_lost_name(&self, key: &str) -> Option<Reason> {
        let (words, rivals) = self.status.reconcile.desired.explain_lost_name(self.id, key)?;
        if rivals.is_empty() {
            return Some(Cause::DomainQuarantined.into_reason(format!("{key} is not followed: {words}")));
        }
        let owners: Vec<String> = rivals.into_iter().map(ToString::to_string).collect();
        let verb = if owners.len() == 1 { "has" } else { "have" };
        Some(Cause::ClaimHeld.into_reason(format!("{} {verb} the claim: {words}", owners.join(", "))))
    }

    /// Checks the operator's `defaults` that the service's section is taken from.
    pub(super) fn check_profile(&mut self) {
        let Some(settings) = self.facts.desired.map(|wanted| &wanted.settings) else { return };
        let lines = settings.profile.as_ref().and_then(|it| self.status.reconcile.operator_files.closing_lines.get(it));
        let reads_http = self.id.kind == Kind::Http && !settings.passes_through();
        if let Some(line) = lines.and_then(|lines| lines.first(reads_http)) {
            self.is_reached = false;
            let words = format!("no request gets past a line of the service's profile: {line}");
            self.against.push(Cause::ProfileCloses.into_reason(words));
        }
    }
}
