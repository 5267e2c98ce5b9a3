//! HAProxy's verdict on services: the rejected ones, and the form of each that HAProxy accepted last. Pure: `publish` asks HAProxy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::ServiceId;

use super::pairs::is_same;
use super::{DesiredService, DesiredState, ServiceState};

impl DesiredState {
    /// Rejects services, each with HAProxy's reason. A rejected service goes back to the form that HAProxy accepted last, or out,
    /// until its keys are written again. Its servers still come and go, unless HAProxy rejects that too. `judged` is the state
    /// that HAProxy judged: services with newer keys are left alone. Returns the services with a changed desired form.
    pub fn reject_services(&mut self, culprits: &BTreeMap<ServiceId, String>, judged: &Self) -> BTreeSet<ServiceId> {
        for (id, reason) in culprits {
            let Some(then) = judged.services.get(id) else { continue };
            self.services.update(id, |now| {
                // The same `Arc` means the same keys. A service that was written meanwhile is judged anew.
                if Arc::ptr_eq(&now.source, &then.source) {
                    // A second rejection is about the last accepted form with the servers of now.
                    now.servers_rejected |= then.rejection.is_some();
                    now.rejection = Some(reason.clone());
                    now.forget_refused_form(then);
                }
            });
        }
        let changed = culprits.keys().filter(|id| self.resolve_service(id)).cloned().collect();
        debug_assert_eq!(self.check_invariants(&changed), Ok(()));
        changed
    }

    /// Clears all rejections, because a local file changed and HAProxy may accept the services now.
    pub fn clear_rejections(&mut self) {
        let rejected = self.services.troubled().filter(|(_, it)| it.rejection.is_some() || it.servers_rejected);
        for id in rejected.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.services.update(&id, |it| (it.rejection, it.servers_rejected) = (None, false));
        }
    }

    /// Notes that HAProxy runs these services in their desired form. It may have taken them while it ran, so it may still reject a
    /// file with them.
    pub fn mark_running<'a>(&mut self, services: impl Iterator<Item = &'a ServiceId>) {
        for id in services {
            let form = self.services.get(id).and_then(|it| it.desired.clone());
            self.set_accepted(id, form);
        }
    }

    /// Notes that HAProxy accepted a file with all services of this state.
    pub fn mark_accepted(&mut self, file: &Self) {
        // All others have the same desired form in both states, and it is accepted already.
        let changed = self.services.changes_since(&file.services).map(|(id, _, _)| id);
        let ids: BTreeSet<ServiceId> = changed.chain(self.services.unaccepted()).cloned().collect();
        for id in ids {
            if let Some(then) = file.services.get(&id) {
                self.set_accepted(&id, then.desired.clone());
                let is_new = |it: &ServiceState| !is_same(it.last_in_file.as_ref(), then.desired.as_ref());
                if self.services.get(&id).is_some_and(is_new) {
                    self.services.update(&id, |it| it.last_in_file.clone_from(&then.desired));
                }
            }
        }
    }

    fn set_accepted(&mut self, id: &ServiceId, form: Option<Arc<DesiredService>>) {
        // Only a difference copies the services, which other states share.
        let is_new = self.services.get(id).is_some_and(|it| !is_same(it.last_accepted.as_ref(), form.as_ref()));
        if is_new {
            self.services.update(id, |it| it.last_accepted = form);
        }
    }

    /// True if HAProxy accepted the service in its desired form.
    pub fn is_accepted(&self, id: &ServiceId) -> bool {
        self.services.get(id).is_some_and(|it| it.desired.is_some() && it.desired == it.last_accepted)
    }

    /// The services that keep earlier servers, because HAProxy rejects the ones of now.
    pub fn services_with_rejected_servers(&self) -> impl Iterator<Item = &ServiceId> {
        self.services.troubled().filter(|(_, it)| it.servers_rejected && it.desired.is_some()).map(|(id, _)| id)
    }

    /// HAProxy's reason against the service. `None` if HAProxy did not reject it.
    pub fn rejection(&self, id: &ServiceId) -> Option<&str> {
        self.services.get(id)?.rejection.as_deref()
    }
}

impl ServiceState {
    /// Takes back what counts as good of a form that HAProxy rejects in a file. Otherwise the service would go back to just this form,
    /// HAProxy would reject the file for ever, and no other service would reach it.
    fn forget_refused_form(&mut self, judged: &Self) {
        // With `servers_rejected` it was the last accepted form, without the routes that others have now.
        if !judged.servers_rejected && self.last_accepted != judged.desired {
            return;
        }
        if [&self.last_accepted, &judged.desired].contains(&&self.last_in_file) {
            self.last_in_file = None;
        }
        self.last_accepted.clone_from(&self.last_in_file);
    }
}
