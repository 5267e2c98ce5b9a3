//! The balancers' verdicts, for every command that shows them. Pure.
//!
//! confgen judges. This module adds only what a balancer can't know: that no balancer lives, that one can't be asked,
//! that it follows another store or is behind, and what the store has instead of a record.

use discovery::{
    BalancerRecords, Cause, Key, Node, Reason, Service, ServiceId, Setting, SettingName, Topology, UpstreamId, Verdict,
    explain_missing_copy, find_intended_reasons,
};

use crate::balancer_api::Upstream;
use crate::store::Store;

/// The store's keys, parsed into services and balancers.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) balancers: &'a BalancerRecords,
}

impl<'a> From<&'a Store> for Keys<'a> {
    fn from(store: &'a Store) -> Self {
        Self { topology: &store.topology, balancers: &store.balancers }
    }
}

/// A balancer's answer about one upstream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BalancerAnswer<'a> {
    /// HAProxy's error; None if it answers the balancer.
    pub(crate) haproxy_error: Option<&'a str>,
    /// The revision that HAProxy follows there; None before the first one, or from an older confgen.
    pub(crate) applied: Option<i64>,
    /// None if the balancer doesn't know the upstream.
    pub(crate) upstream: Option<&'a Upstream>,
}

/// One upstream with the store's keys about it.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    keys: Keys<'a>,
    id: &'a ServiceId,
    upstream: &'a UpstreamId,
    service: Option<&'a Service>,
}

impl<'a> Case<'a> {
    /// The upstream need not have a record: it may be gone or retained.
    pub(crate) fn new(keys: Keys<'a>, id: &'a ServiceId, upstream: &'a UpstreamId) -> Self {
        Self { keys, id, upstream, service: keys.topology.services().get(id).map(|it| &**it) }
    }

    /// The verdict if there is no live balancer.
    pub(crate) fn judge_without_balancer(&self) -> Verdict {
        let no_balancer = Cause::NoBalancer.into_reason("no balancer lives: nothing stands below balancers/");
        Verdict::new(Some(false), [vec![no_balancer], self.list_store_reasons()].concat(), Vec::new())
    }

    /// The verdict at one balancer. `answered` is an error if the balancer can't be asked.
    pub(crate) fn judge_at(&self, node: &Node, answered: Result<BalancerAnswer, &str>) -> Verdict {
        let verdict = match answered {
            Err(reason) => {
                // The reasons in the store hold at every balancer, asked or not.
                let unasked = Cause::ApiUnreachable.into_reason(format!("the balancer can't be asked: {reason}"));
                Verdict::new(None, [vec![unasked], self.list_store_reasons()].concat(), Vec::new())
            }
            Ok(answered) => match answered.upstream {
                Some(upstream) => self.extend_verdict(upstream, answered),
                None => self.judge_unlisted(answered.applied),
            },
        };
        // A balancer of another store, or one with an invalid record, explains every other cause. So that reason leads.
        match self.keys.balancers.records_by_node().find(|(it, _)| *it == node) {
            Some((_, None)) => verdict.with_leading_reason(
                Cause::BalancerUnreadable
                    .into_reason("the balancer's key makes no sense: is another program writing it?"),
            ),
            Some((_, Some(record))) if record.cluster != self.keys.balancers.cluster_id() => verdict
                .with_leading_reason(
                    Cause::OtherStore
                        .into_reason("the balancer follows another etcd cluster: see --endpoints of its confgen"),
                ),
            _ => verdict,
        }
    }

    /// Adds to the balancer's own verdict that the record is gone, or that the balancer hasn't applied the newest key.
    fn extend_verdict(&self, upstream: &Upstream, answered: BalancerAnswer) -> Verdict {
        let mut verdict =
            upstream.verdict.clone().unwrap_or_else(|| judge_older_answer(upstream, answered.haproxy_error));
        // A retained upstream has no record, and the balancer's verdict says so already.
        if !upstream.held && self.record().is_none() {
            verdict = verdict.with_note(no_record_reason());
        }
        // The verdict is about the revision that HAProxy follows there. A newer key may change it.
        match (answered.applied, self.newest_revision()) {
            (Some(applied), Some(revision)) if applied < revision => {
                verdict.with_note(behind_reason(applied, revision))
            }
            _ => verdict,
        }
    }

    /// The verdict of a balancer that doesn't know the upstream.
    fn judge_unlisted(&self, applied: Option<i64>) -> Verdict {
        let mut against = self.list_store_reasons();
        // A balancer that had received a good record would list the upstream.
        if let Some(record) = self.record().filter(|record| record.value.is_ok()) {
            against.push(match applied {
                Some(applied) => behind_reason(applied, record.entry.mod_revision),
                None => {
                    Cause::Behind.into_reason("the balancer doesn't know it, and doesn't say that it follows the store")
                }
            });
        }
        Verdict::new(Some(false), against, Vec::new())
    }

    /// The reasons against the upstream that the keys themselves give.
    fn list_store_reasons(&self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let Some(service) = self.service.filter(|service| !service.is_empty()) else {
            return vec![self.missing_reason()];
        };
        if !self.id.is_default() && !has_claim_key(service) {
            reasons.push(Reason::no_domain(self.id));
        }
        match self.record().map(|field| (&field.entry.key, &field.value)) {
            None => reasons.push(self.missing_reason()),
            Some((key, Err(refusal))) => {
                reasons.push(Cause::RecordQuarantined.into_reason(format!("{key} is not followed: {refusal}")));
            }
            Some((_, Ok(record))) => {
                let imposed = service.override_of(self.upstream).and_then(|field| field.value.as_ref().ok());
                // An unreadable `active` is left out. The balancer may follow its last good value, which the store
                // lacks.
                let active = match service.setting(SettingName::Active).map(|field| &field.value) {
                    Some(Ok(Setting::Active(active))) => Some(active),
                    _ => None,
                };
                reasons.extend(find_intended_reasons(
                    &format!("{}/{}", self.id.name, self.upstream),
                    Some(record),
                    imposed,
                    active,
                ));
            }
        }
        reasons
    }

    /// The reason why the upstream has no record: a copy that doesn't run, or one whose app doesn't work yet.
    fn missing_reason(&self) -> Reason {
        let copies = self.keys.topology.copies().get(self.id);
        copies.and_then(|copies| explain_missing_copy(copies, self.upstream)).unwrap_or_else(no_record_reason)
    }

    fn record(&self) -> Option<&'a discovery::ParsedEntry<discovery::Upstream>> {
        self.service?.upstream(self.upstream).map(|field| &**field)
    }

    /// The newest revision of the keys that decide about the upstream.
    fn newest_revision(&self) -> Option<i64> {
        let service = self.service?;
        let settings = service.settings().map(|(_, field)| field.entry.mod_revision);
        let imposed = service.override_of(self.upstream).map(|field| field.entry.mod_revision);
        let record = self.record().map(|field| field.entry.mod_revision);
        settings.chain(imposed).chain(record).max()
    }
}

/// The service has a key that names its hosts or ports. Its value may be unreadable.
pub(crate) fn has_claim_key(service: &Service) -> bool {
    [SettingName::Domain, SettingName::UrlReg, SettingName::Ports]
        .into_iter()
        .any(|name| service.setting(name).is_some())
}

fn no_record_reason() -> Reason {
    Cause::NoRecord.into_reason("it is not in the store")
}

fn behind_reason(applied: i64, revision: i64) -> Reason {
    let words =
        format!("the balancer doesn't know it yet: it is at revision {applied}, the store's keys at {revision}");
    Cause::Behind.into_reason(words)
}

/// Judges the answer of an older confgen, which has `balanced` and words, but no verdict.
fn judge_older_answer(upstream: &Upstream, haproxy_error: Option<&str>) -> Verdict {
    if let Some(error) = haproxy_error {
        let silent = Cause::HaproxySilent.into_reason(format!("HAProxy can't be asked: {error}"));
        return Verdict::new(None, vec![silent], Vec::new());
    }
    let why = upstream.not_balanced.as_deref().map(|words| Cause::ServerStateDiffers.into_reason(words));
    let held = upstream.held.then(|| Cause::Retained.into_reason(upstream.why.join("; ")));
    Verdict::new(upstream.balanced, why.into_iter().collect(), held.into_iter().collect())
}

/// The key of an upstream's record in the current layout.
pub(crate) fn record_key(service: &ServiceId, id: &UpstreamId) -> String {
    Key::for_upstream(service, id).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::store;

    const DOMAIN: (&str, &str) = ("http-services/shop/domain", "shop.test");
    const A: (&str, &str) = ("http-services/shop/upstreams/a", r#"{"address":"10.0.0.1:80","color":"blue"}"#);
    const DRAINED: (&str, &str) = ("http-services/shop/overrides/a", r#"{"state":"drain"}"#);
    const LB1: (&str, &str) = ("balancers/lb1", r#"{"cluster":"7","applied":20,"pending":[],"held":[],"draining":{}}"#);
    const YES: &str = r#"{"id":"a","balanced":true,"verdict":{"gets_requests":true,"because":null,"also":[]}}"#;
    const NO: &str = r#"{"id":"a","balanced":false,"verdict":{"gets_requests":false,
        "because":{"cause":"check","words":"down"},"also":[{"cause":"tomorrows","words":"newer"}]}}"#;

    /// The names of the causes, the verdict's first. `answer` is an upstream, or an error that begins with `!`.
    #[track_caller]
    fn assert_causes(keys: &[(&str, &str)], answer: Option<&str>, applied: i64, gets: Option<bool>, names: &[&str]) {
        let store = store(keys);
        let key: Key = A.0.parse().unwrap();
        let Key::Upstream { service, id, .. } = key else { panic!() };
        let upstream: Option<Upstream> =
            answer.filter(|it| !it.starts_with('!')).map(|it| serde_json::from_str(it).unwrap());
        let answered = BalancerAnswer { applied: Some(applied), upstream: upstream.as_ref(), haproxy_error: None };
        let answered = if answer.is_some_and(|it| it.starts_with('!')) { Err("refused") } else { Ok(answered) };
        let verdict = Case::new(Keys::from(&store), &service, &id).judge_at(&"lb1".parse().unwrap(), answered);
        let causes: Vec<&str> = verdict.reasons().map(|it| it.cause.name()).collect();
        assert_eq!((verdict.gets_requests, causes.as_slice()), (gets, names), "{verdict:?}");
        assert_eq!(verdict.because.is_none(), gets == Some(true));
    }

    #[test]
    fn a_balancers_verdict_is_taken_as_it_is() {
        assert_causes(&[DOMAIN, A, LB1], Some(YES), 20, Some(true), &[]);
        assert_causes(&[DOMAIN, A, LB1], Some(NO), 20, Some(false), &["check", "tomorrows"]);
        // The store's newest key is at revision 3, which the balancer has not applied.
        assert_causes(&[DOMAIN, A, DRAINED], Some(YES), 2, Some(true), &["behind"]);
        assert_causes(&[DOMAIN], Some(YES), 20, Some(true), &["no_record"]);
        assert_causes(&[DOMAIN], Some(&YES.replacen('{', r#"{"held":true,"#, 1)), 20, Some(true), &[]);
    }

    #[test]
    fn a_copy_that_stands_by_is_no_missing_record() {
        let slot = ("http-services/shop/slots/1", r#"{"id":"b","replicas":1}"#);
        let standby = ("http-services/shop/standby/a", "{}");
        assert_causes(&[DOMAIN, LB1, slot, standby], None, 20, Some(false), &["stands_by"]);
        assert_causes(&[LB1, slot, standby], None, 20, Some(false), &["stands_by"]);
        assert_causes(&[DOMAIN, LB1, slot, standby], Some("!"), 20, None, &["stands_by", "unasked"]);
        let starting = ("http-services/shop/slots/1", r#"{"id":"a","replicas":1}"#);
        assert_causes(&[DOMAIN, LB1, starting], None, 20, Some(false), &["no_record"]);
        assert_causes(&[DOMAIN, A, LB1, starting], Some(YES), 20, Some(true), &[]);
    }

    #[test]
    fn an_older_confgen_says_it_in_words() {
        let plain = |more: &str| format!(r#"{{"id":"a",{more}}}"#);
        assert_causes(&[DOMAIN, A], Some(&plain(r#""balanced":true"#)), 20, Some(true), &[]);
        let no = plain(r#""balanced":false,"not_balanced":"HAProxy has it DOWN""#);
        assert_causes(&[DOMAIN, A], Some(&no), 20, Some(false), &["otherwise"]);
    }

    #[test]
    fn a_balancer_that_is_none_of_this_store() {
        assert_causes(&[DOMAIN, A, (LB1.0, "?")], Some(YES), 20, Some(true), &["balancer_garbled"]);
        let other = LB1.1.replace('7', "8");
        assert_causes(&[DOMAIN, A, (LB1.0, &other)], Some(NO), 20, Some(false), &["other_store", "check", "tomorrows"]);
    }

    #[test]
    fn no_balancer_and_one_that_can_not_be_asked() {
        assert_causes(&[DOMAIN, A, LB1], Some("!"), 0, None, &["unasked"]);
        assert_causes(&[DOMAIN, A, DRAINED, LB1], Some("!"), 0, None, &["override", "unasked"]);
        assert_causes(&[A, LB1], Some("!"), 0, None, &["no_domain", "unasked"]);
        let store = store(&[DOMAIN, A, DRAINED]);
        let (service, _) = store.topology.services().iter().next().unwrap();
        let id = "a".parse().unwrap();
        let verdict = Case::new(Keys::from(&store), service, &id).judge_without_balancer();
        assert_eq!((verdict.gets_requests, verdict.cause()), (Some(false), Some(&Cause::NoBalancer)));
        assert!(verdict.has_cause(&Cause::Override));
    }

    #[test]
    fn one_that_the_balancer_does_not_know() {
        assert_causes(&[DOMAIN, A, LB1], None, 1, Some(false), &["behind"]);
        assert_causes(&[DOMAIN, LB1], None, 20, Some(false), &["no_record"]);
        assert_causes(&[LB1], None, 20, Some(false), &["no_record"]);
        assert_causes(&[DOMAIN, (A.0, "?"), LB1], None, 20, Some(false), &["record_quarantined"]);
    }
}
