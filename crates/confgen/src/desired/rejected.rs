//! What HAProxy makes of the services: those it refuses, and the forms it took last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::ServiceId;

use super::DesiredState;

impl DesiredState {
    /// HAProxy refuses these services, for these reasons: each goes back to the form that HAProxy took last, or out,
    /// until it is written anew. Its servers go on to come and go, unless HAProxy refuses that too. Services that `judged`
    /// knew in another form than now have been written since. Says for which services the outcome is another one.
    pub fn reject_services(&mut self, culprits: &BTreeMap<ServiceId, String>, judged: &Self) -> BTreeSet<ServiceId> {
        for (id, words) in culprits {
            let (Some(now), Some(then)) = (self.services.get_mut(id), judged.services.get(id)) else { continue };
            if Arc::ptr_eq(&now.source, &then.source) {
                now.servers_rejected |= then.rejection.is_some();
                now.rejection = Some(words.clone());
            }
        }
        culprits.keys().filter(|id| self.resolve_service(id)).cloned().collect()
    }

    /// What HAProxy refused may be fine now: something beside the store is another.
    pub fn clear_rejections(&mut self) {
        self.services.values_mut().for_each(|it| (it.rejection, it.servers_rejected) = (None, false));
    }

    /// HAProxy runs these services as they are wanted now: whatever started it, it took a file with them.
    pub fn mark_running<'a>(&mut self, services: impl Iterator<Item = &'a ServiceId>) {
        for id in services {
            if let Some(it) = self.services.get_mut(id) {
                it.last_accepted.clone_from(&it.desired);
            }
        }
    }

    /// HAProxy took a file with these services in this form.
    pub fn mark_accepted(&mut self, file: &Self) {
        for (id, then) in &file.services {
            if let Some(now) = self.services.get_mut(id) {
                now.last_accepted.clone_from(&then.desired);
            }
        }
    }

    /// Whether HAProxy took a file with this service in the form in which it is wanted now.
    pub fn is_accepted(&self, id: &ServiceId) -> bool {
        self.services.get(id).is_some_and(|it| it.desired.is_some() && it.desired == it.last_accepted)
    }

    /// The services whose servers are those of before: HAProxy takes no others.
    pub fn services_with_rejected_servers(&self) -> impl Iterator<Item = &ServiceId> {
        self.services.iter().filter(|(_, it)| it.servers_rejected && it.desired.is_some()).map(|(id, _)| id)
    }

    /// What HAProxy says against a service, if it refuses it.
    pub fn rejection(&self, id: &ServiceId) -> Option<&str> {
        self.services.get(id)?.rejection.as_deref()
    }
}
