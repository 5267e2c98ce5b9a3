//! The states of all services, with the few that decisions about all look for. So neither the quarantine nor HAProxy's verdict on a
//! file walks through every service. Pure.

use std::ops::Deref;

use discovery::ServiceId;

use super::ServiceState;
use super::pairs::is_same;
use super::shared_map::SharedMap;

/// The states of all services. Reading goes to the map itself, and each change keeps the two lists true.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceStates {
    states: SharedMap<ServiceId, ServiceState>,
    /// Services with a key that isn't applied, or that HAProxy rejects.
    troubled: SharedMap<ServiceId, ()>,
    /// Services with another desired form than in the last file that HAProxy accepted.
    unaccepted: SharedMap<ServiceId, ()>,
}

impl Deref for ServiceStates {
    type Target = SharedMap<ServiceId, ServiceState>;

    fn deref(&self) -> &Self::Target {
        &self.states
    }
}

impl ServiceStates {
    pub(super) fn insert(&mut self, id: &ServiceId, state: ServiceState) {
        self.states.insert(id.clone(), state);
        self.update_lists(id);
    }

    /// Returns true if the service was there.
    pub(super) fn remove(&mut self, id: &ServiceId) -> bool {
        let is_removed = self.states.remove(id).is_some();
        self.update_lists(id);
        is_removed
    }

    /// Changes the state of a service. Does nothing if there is no such service.
    pub(super) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceState)) {
        if let Some(state) = self.states.get_mut(id) {
            change(state);
            self.update_lists(id);
        }
    }

    /// Removes all services but these.
    pub(super) fn restrict_to(&mut self, services: &[ServiceId]) {
        self.states.retain(|id, _| services.contains(id));
        self.troubled.retain(|id, ()| services.contains(id));
        self.unaccepted.retain(|id, ()| services.contains(id));
    }

    /// The services with a key that isn't applied, or that HAProxy rejects.
    pub(super) fn troubled(&self) -> impl Iterator<Item = (&ServiceId, &ServiceState)> {
        self.troubled.keys().filter_map(|id| self.states.get_key_value(id))
    }

    /// The services with another desired form than in the last file that HAProxy accepted.
    pub(super) fn unaccepted(&self) -> impl Iterator<Item = &ServiceId> {
        self.unaccepted.keys()
    }

    fn update_lists(&mut self, id: &ServiceId) {
        let state = self.states.get(id);
        let is_troubled = state.is_some_and(ServiceState::is_troubled);
        let is_unaccepted = state.is_some_and(|it| !it.is_accepted_form());
        for (list, is_in) in [(&mut self.troubled, is_troubled), (&mut self.unaccepted, is_unaccepted)] {
            match (list.contains_key(id), is_in) {
                (false, true) => _ = list.insert(id.clone(), ()),
                (true, false) => _ = list.remove(id),
                _ => {}
            }
        }
    }

    /// Returns an error if one of the lists is wrong about this service.
    pub(super) fn check_lists(&self, id: &ServiceId) -> Result<(), String> {
        let state = self.states.get(id);
        if self.troubled.contains_key(id) != state.is_some_and(ServiceState::is_troubled) {
            return Err(format!("{id} is not listed as troubled exactly if it is"));
        }
        if self.unaccepted.contains_key(id) != state.is_some_and(|it| !it.is_accepted_form()) {
            return Err(format!("{id} is not listed as unaccepted exactly if it is"));
        }
        Ok(())
    }
}

impl ServiceState {
    /// True if the quarantine has a key of the service, or if HAProxy rejects the service.
    fn is_troubled(&self) -> bool {
        !self.input.refusals.is_empty() || self.rejection.is_some() || self.servers_rejected || self.lacks_hsts()
    }

    /// True if HAProxy runs the very desired form, and accepted the last file with it.
    fn is_accepted_form(&self) -> bool {
        let accepted = [&self.last_accepted, &self.last_in_file];
        accepted.into_iter().all(|form| is_same(self.desired.as_ref(), form.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use discovery::{Change, Entry, Kind, Topology};
    use proptest::prelude::*;

    use super::*;
    use crate::desired::pairs::pair_by_key;
    use crate::desired::tests::{settle, topology};
    use crate::desired::{DesiredState, Policy};
    use crate::store::Changed;

    const SERVICES: usize = 140;

    /// Writes or deletes one key of a service, and has the service decided again.
    fn write_key(store: &mut Topology, desired: &mut DesiredState, id: &ServiceId, key: &str, value: Option<String>) {
        let (key, revision) = (format!("{}{key}", id.folder_path()), 7);
        store.apply_change(&match value {
            Some(value) => Change::Put(Entry {
                key,
                value: value.into(),
                create_revision: revision,
                mod_revision: revision,
                lease: 0,
            }),
            None => Change::Delete { key, revision, previous: None },
        });
        desired.update_services(store, &Changed::Services([id.clone()].into()));
        desired.drop_removed();
    }

    fn check_against_all(desired: &DesiredState, earlier: &DesiredState) -> Result<(), String> {
        let ids: BTreeSet<&ServiceId> = desired.services.keys().chain(earlier.services.keys()).collect();
        ids.into_iter().try_for_each(|id| desired.services.check_lists(id))?;
        let all = pair_by_key(earlier.services(), desired.services());
        let changed: Vec<&ServiceId> = all.filter(|(_, old, new)| !is_same(*old, *new)).map(|(id, _, _)| id).collect();
        let told: Vec<&ServiceId> = desired.changes_since(earlier).map(|(id, _, _)| id).collect();
        if told == changed { Ok(()) } else { Err(format!("{told:?} instead of {changed:?}")) }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// A walk through all services finds the same lists and changes after any history.
        #[test]
        fn no_service_is_missed(steps in prop::collection::vec((0..SERVICES, 0..9_u8, any::<bool>()), 1..40)) {
            let lines = (0..SERVICES).map(|number| format!("http-services/s{number}/domain s{number}.test\n"));
            let mut store = topology(&lines.collect::<String>());
            let mut desired = settle(&store, &Default::default(), &Policy::default());
            let mut earlier = desired.clone();
            for (number, act, is_kept) in steps {
                let id = ServiceId { kind: Kind::Http, name: format!("s{number}").parse().unwrap() };
                let mut write = |key, value: Option<&str>| {
                    write_key(&mut store, &mut desired, &id, key, value.map(str::to_owned));
                };
                match act {
                    0 => write("upstreams/1", Some("10.0.0.1:80")),
                    1 => write("upstreams/1", Some("nowhere")),
                    2 => write("domain", Some("s1.test s2.test")),
                    3 => write("domain", None),
                    4 => write("tls", Some(if is_kept { "off" } else { "terminate" })),
                    5 => desired.mark_running([&id].into_iter()),
                    6 => desired.clear_rejections(),
                    7 => {
                        let judged = desired.clone();
                        desired.reject_services(&[(id, "refused".to_owned())].into(), &judged);
                    }
                    _ => {
                        desired.mark_accepted(&earlier);
                        for (id, then) in earlier.services.iter() {
                            let now = desired.services.get(id).map(|now| now.last_accepted.as_ref());
                            prop_assert!(now.is_none_or(|accepted| is_same(accepted, then.desired.as_ref())), "{id}");
                            let now = desired.services.get(id).map(|now| now.last_in_file.as_ref());
                            prop_assert!(now.is_none_or(|in_file| is_same(in_file, then.desired.as_ref())), "{id}");
                        }
                    }
                }
                prop_assert_eq!(check_against_all(&desired, &earlier), Ok(()));
                if is_kept {
                    earlier = desired.clone();
                }
            }
        }
    }
}
