//! The owners of hosts, paths and ports, as the state directory has them. Each keeps them as long as its keys stay as they were, also
//! over confgen's restarts.

use std::collections::BTreeMap;

use confgen::decisions::DesiredState;
use discovery::ServiceId;

/// A service that owned something, and the revisions of its settings then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    id: ServiceId,
    settings: Vec<(String, i64)>,
}

/// The owners by route (`a.test/`) or port (`:3306`).
#[derive(Clone, Debug, Default)]
pub struct Owners(BTreeMap<String, Owner>);

impl Owners {
    /// The owners in this state.
    pub fn of(desired: &DesiredState) -> Self {
        let settings = settings_by_service(desired);
        let owner = |id: &ServiceId| {
            let settings = settings.get(&id.folder_path()).cloned().unwrap_or_default();
            Owner { id: id.clone(), settings }
        };
        Self(list_owned(desired).map(|(claim, id)| (claim, owner(id))).collect())
    }

    /// Returns an error if a service that is as it was has lost something to another one. One that has changed may lose it, also if
    /// it changes back.
    pub fn check(&mut self, desired: &DesiredState) -> Result<(), String> {
        let settings = settings_by_service(desired);
        self.0.retain(|_, owner| settings.get(&owner.id.folder_path()) == Some(&owner.settings));
        for (claim, id) in list_owned(desired) {
            let Some(before) = self.0.get(&claim).filter(|owner| owner.id != *id) else { continue };
            return Err(format!(
                "{claim} belonged to {}, whose keys are unchanged, and now belongs to {id}",
                before.id
            ));
        }
        Ok(())
    }
}

/// A service that HAProxy rejects serves an earlier form, whose routes its keys may no longer claim.
fn list_owned(desired: &DesiredState) -> impl Iterator<Item = (String, &ServiceId)> {
    let services = desired.services().filter(|(id, _)| desired.rejection(id).is_none());
    services.flat_map(|(id, service)| {
        let routes = service.routes.iter().map(|route| format!("{}{}", route.domain, route.path.with_boundary()));
        routes.chain(service.binds.iter().map(|bind| format!(":{}", bind.port))).map(move |claim| (claim, id))
    })
}

/// The keys of each service that are no upstream's, each with its revision, by the service's folder.
fn settings_by_service(desired: &DesiredState) -> BTreeMap<String, Vec<(String, i64)>> {
    let mut settings: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for (id, _) in desired.services() {
        settings.insert(id.folder_path(), Vec::new());
    }
    for entry in desired.entries().filter(|entry| !entry.key.contains("/upstreams/")) {
        // The folder is what comes before the key's last part.
        let folder = entry.key.rfind('/').and_then(|end| entry.key.get(..=end)).unwrap_or_default();
        if let Some(keys) = settings.get_mut(folder) {
            keys.push((entry.key.clone(), entry.mod_revision));
        }
    }
    settings
}
