//! The invariants of the desired state. Debug builds and tests check them after each decision, for the services that it changed.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use discovery::ServiceId;

use super::{DesiredService, DesiredState, Server, ServiceState};

impl DesiredState {
    /// Returns the first violated invariant of these services. Takes time in proportion to their routes and servers.
    pub(super) fn check_invariants<'a>(&self, ids: impl IntoIterator<Item = &'a ServiceId>) -> Result<(), String> {
        ids.into_iter().try_for_each(|id| self.check_service(id))
    }

    /// Returns an error if assigning the claims of all services again changes a claim. Takes time in proportion to all claims.
    pub(super) fn check_claims_of_all(&self) -> Result<(), String> {
        if !self.claims_are_assigned || self.assign_all_claims() == *self.claims {
            return Ok(());
        }
        Err(format!("assigning all claims anew gives others: {:?}, not {:?}", self.assign_all_claims(), self.claims))
    }

    fn check_service(&self, id: &ServiceId) -> Result<(), String> {
        if self.retained.get(id).is_some_and(BTreeMap::is_empty) {
            return Err(format!("{id} is listed as retained without an upstream"));
        }
        let Some(state) = self.services.get(id) else {
            return match self.removed_services.contains(id) {
                true => Err(format!("{id} is both removed and dropped")),
                false => Ok(()),
            };
        };
        self.services.check_lists(id)?;
        if self.forbidden.contains_key(id) {
            return Err(format!("{id} is both forbidden and served"));
        }
        if self.removed_services.contains(id) != state.source.is_empty() {
            return Err(format!("{id} is not listed as removed exactly if it has no key"));
        }
        if state.servers_rejected && state.rejection.is_none() {
            return Err(format!("the servers of {id} are rejected without a reason"));
        }
        let Some(desired) = &state.desired else { return Ok(()) };
        self.check_claims(id, desired)?;
        check_section(id, &desired.servers)?;
        for preview in &desired.previews {
            check_section(id, &preview.servers)?;
        }
        // Rejected servers are those of an earlier input.
        if state.servers_rejected { Ok(()) } else { self.check_origin(id, state, desired) }
    }

    /// No route and no port is served by two services.
    fn check_claims(&self, id: &ServiceId, desired: &DesiredService) -> Result<(), String> {
        let routes = desired.routes.iter().chain(desired.previews.iter().flat_map(|preview| &preview.routes));
        if let Some(route) = routes.into_iter().find(|route| !self.claims.may_serve_route(id, route)) {
            return Err(format!("{id} serves {}{}, which another service owns", route.domain, route.path));
        }
        match desired.binds.iter().find(|bind| !self.claims.may_bind(id, **bind)) {
            Some(bind) => Err(format!("{id} binds {bind}, which another service owns")),
            None => Ok(()),
        }
    }

    /// Each server is that of a record, or of a retained upstream that has none.
    fn check_origin(&self, id: &ServiceId, state: &ServiceState, desired: &DesiredService) -> Result<(), String> {
        if state.input.upstreams_withheld && !desired.servers.is_empty() {
            return Err(format!("{id} has servers, but one of its gates has no good value"));
        }
        let retained = self.retained.get(id);
        for server in &desired.servers {
            match state.input.upstreams.get(&server.id) {
                Some(record) if record.address != server.address || server.is_unproven => {
                    return Err(format!("{id}/{} has a record, but is served as retained", server.id));
                }
                None if retained.is_none_or(|retained| !retained.contains_key(&server.id)) => {
                    return Err(format!("{id}/{} has neither a record nor is it retained", server.id));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Plans search the servers of a section by halves, and HAProxy refuses a second server of one name or id.
fn check_section(id: &ServiceId, servers: &[Server]) -> Result<(), String> {
    if let Some((_, server)) = servers.iter().zip(servers.iter().skip(1)).find(|(one, next)| one.id >= next.id) {
        return Err(format!("{id}/{} is there twice, or out of order", server.id));
    }
    let mut hash_ids = BTreeSet::new();
    match servers.iter().find(|server| server.hash_id.is_some_and(|hash_id| !hash_ids.insert(hash_id))) {
        Some(server) => Err(format!("{id}/{} has the hash id of another server", server.id)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use discovery::Upstream;

    use super::*;
    use crate::desired::tests::{settle, topology};
    use crate::desired::{Forbidden, LastKnownGood, Policy};
    use crate::store::Changed;
    use crate::store::removal_guard::RetainedUpstream;

    const SHOP: &str = "http-services/shop/domain shop.test
        http-services/shop/balance uri
        http-services/shop/upstreams/a 10.0.0.1:80
        http-services/shop/upstreams/b 10.0.0.2:80
        tcp-services/db/ports 3306
        tcp-services/db/upstreams/a 10.0.0.3:3306";

    fn shop() -> ServiceId {
        "http-services/shop/domain".parse::<discovery::Key>().unwrap().service_id().unwrap().clone()
    }

    /// The violation after a change of the state of the shop.
    fn violation(break_state: impl FnOnce(&mut DesiredState)) -> String {
        let mut state = settle(&topology(SHOP), &LastKnownGood::default(), &Policy::default());
        assert_eq!(state.check_invariants(state.services.keys()), Ok(()));
        break_state(&mut state);
        state.check_invariants([&shop()]).unwrap_err()
    }

    /// The violation after a change of the shop's desired form.
    fn violation_of_form(break_form: impl FnOnce(&mut DesiredService)) -> String {
        violation(|state| {
            state.services.update(&shop(), |shop| break_form(Arc::make_mut(shop.desired.as_mut().unwrap())));
        })
    }

    fn retained() -> RetainedUpstream {
        RetainedUpstream { record: Upstream::parse(b"10.0.0.9:80").unwrap(), is_unproven: true }
    }

    #[test]
    fn a_server_in_two_states_is_a_violation() {
        let twice = violation_of_form(|form| form.servers.push(form.servers[1].clone()));
        assert_eq!(twice, "http-shop/b is there twice, or out of order");
        let unsorted = violation_of_form(|form| form.servers.reverse());
        assert_eq!(unsorted, "http-shop/a is there twice, or out of order");
        let shared = violation_of_form(|form| form.servers[1].hash_id = form.servers[0].hash_id);
        assert_eq!(shared, "http-shop/b has the hash id of another server");
    }

    #[test]
    fn a_claim_of_two_services_is_a_violation() {
        let others = "http-services/blog/domain blog.test\n tcp-services/mail/ports 25";
        let store = topology(&format!("{SHOP}\n{others}"));
        let state = settle(&store, &LastKnownGood::default(), &Policy::default());
        let (blog, mail) = (store.services().keys().next().unwrap(), store.services().keys().last().unwrap());
        for (from, words) in [(blog, "http-shop serves blog.test/"), (mail, "http-shop binds *:25")] {
            let mut state = state.clone();
            let taken = state.service(from).unwrap().clone();
            state.services.update(&shop(), |shop| {
                let form = Arc::make_mut(shop.desired.as_mut().unwrap());
                form.routes.extend(taken.routes.iter().cloned());
                form.binds.extend(taken.binds.iter().copied());
            });
            assert_eq!(state.check_invariants([&shop()]), Err(format!("{words}, which another service owns")));
        }
    }

    #[test]
    fn a_server_without_origin_is_a_violation() {
        let stranger = violation_of_form(|form| form.servers[1].id = "c".parse().unwrap());
        assert_eq!(stranger, "http-shop/c has neither a record nor is it retained");
        let both = violation_of_form(|form| form.servers[0].is_unproven = true);
        assert_eq!(both, "http-shop/a has a record, but is served as retained");
        let withheld = violation(|state| {
            state.services.update(&shop(), |shop| Arc::make_mut(&mut shop.input).upstreams_withheld = true);
        });
        assert_eq!(withheld, "http-shop has servers, but one of its gates has no good value");
    }

    #[test]
    fn a_service_in_two_places_is_a_violation() {
        let forbidden = violation(|state| {
            let source = Arc::clone(&state.services.get(&shop()).unwrap().source);
            state.forbidden.insert(shop(), Forbidden { source, reason: String::new() });
        });
        assert_eq!(forbidden, "http-shop is both forbidden and served");
        let removed = violation(|state| _ = state.removed_services.insert(shop()));
        assert_eq!(removed, "http-shop is not listed as removed exactly if it has no key");
        let dropped = violation(|state| {
            state.removed_services.insert(shop());
            state.services.remove(&shop());
        });
        assert_eq!(dropped, "http-shop is both removed and dropped");
        let empty = violation(|state| _ = state.retained.insert(shop(), BTreeMap::new()));
        assert_eq!(empty, "http-shop is listed as retained without an upstream");
        let rejected = violation(|state| state.services.update(&shop(), |shop| shop.servers_rejected = true));
        assert_eq!(rejected, "the servers of http-shop are rejected without a reason");
    }

    #[test]
    fn a_retained_upstream_with_a_record_is_served_from_the_record() {
        let mut state = settle(&topology(SHOP), &LastKnownGood::default(), &Policy::default());
        state.set_retained(&shop(), [("a".parse().unwrap(), retained()), ("z".parse().unwrap(), retained())].into());
        let servers = &state.service(&shop()).unwrap().servers;
        let shown: Vec<String> = servers.iter().map(|it| format!("{} {}", it.id, it.address)).collect();
        assert_eq!(shown, ["a 10.0.0.1:80", "b 10.0.0.2:80", "z 10.0.0.9:80"]);
    }

    #[test]
    fn a_rejected_service_leaves_what_another_one_claims() {
        let store = topology(SHOP);
        let mut state = settle(&store, &LastKnownGood::default(), &Policy::default());
        let ids: Vec<ServiceId> = store.services().keys().cloned().collect();
        state.mark_running(ids.iter());
        // Both services claim something else now, HAProxy rejects that, and others claim what they had.
        let moved = SHOP.replace("shop.test", "new.test").replace("3306", "3307");
        state.update_services(&topology(&moved), &Changed::All);
        let judged = state.clone();
        state.reject_services(&ids.iter().map(|id| (id.clone(), "refused".to_owned())).collect(), &judged);
        let served = |state: &DesiredState| -> (usize, usize) {
            let forms = ids.iter().filter_map(|id| state.service(id));
            forms.fold((0, 0), |(routes, binds), it| (routes + it.routes.len(), binds + it.binds.len()))
        };
        assert_eq!(served(&state), (1, 1), "the accepted forms serve");
        let others = "http-services/blog/domain shop.test\n tcp-services/mail/ports 3306";
        let store = topology(&format!("{moved}\n{others}"));
        let new = store.services().keys().filter(|id| !ids.contains(id)).cloned().collect();
        for changed in [Changed::All, Changed::Services(new)] {
            let mut state = state.clone();
            state.update_services(&store, &changed);
            assert!(ids.iter().all(|id| state.rejection(id).is_some()));
            assert_eq!(served(&state), (0, 0), "another service owns them: {changed:?}");
        }
    }

    #[test]
    fn a_claim_that_was_left_out_is_a_violation() {
        let mut state = settle(&topology(SHOP), &LastKnownGood::default(), &Policy::default());
        assert_eq!(state.check_claims_of_all(), Ok(()));
        state.services.remove(&shop());
        let violation = state.check_claims_of_all().unwrap_err();
        assert!(violation.starts_with("assigning all claims anew gives others: "), "{violation}");
    }
}
