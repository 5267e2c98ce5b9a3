//! `set` and `unset`: a service's settings.

use std::collections::BTreeSet;

use clap::Args;
use discovery::{Key, ServiceId, Setting, SettingName, find_claim_conflicts};

use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::{Changing, Type};
use crate::store::Store;
use crate::target::{ServiceArg, parse_setting_name};

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl set shop balance leastconn
  discoverctl set shop domain shop.example.com www.example.com
  discoverctl set --create --type tcp db ports 3306

docs/settings.md lists the settings and their values.";

pub(crate) const UNSET_EXAMPLES: &str = "Examples:
  discoverctl unset shop hsts
  discoverctl unset shop allow maxconn";

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// The setting, as docs/settings.md lists it
    #[arg(value_name = "KEY", value_parser = parse_setting_name)]
    name: SettingName,
    /// Its value; several words are a list
    #[arg(value_name = "VALUE", required = true)]
    value: Vec<String>,
    /// Make the service if it doesn't exist
    #[arg(long)]
    create: bool,
    /// Make a service of this kind, or choose it if two services have the name
    #[arg(long = "type", value_enum)]
    kind: Option<Type>,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Args)]
pub(crate) struct Unset {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// The settings, as docs/settings.md lists them
    #[arg(value_name = "KEY", required = true, value_parser = parse_setting_name)]
    names: Vec<SettingName>,
    #[command(flatten)]
    changing: Changing,
}

impl Set {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let id = match self.create {
            true => self.service.find_or_name_new(&store.topology, self.kind.map(Into::into))?,
            // A misspelled name must not make a new service.
            false => self.service.find_service(&store.topology).map_err(|error| match error {
                Error::Refused(words) => Error::Refused(format!("{words} (--create makes a new one)")),
                other => other,
            })?,
        };
        let setting = parse_setting(&id, self.name, &self.value.join(" "))?;
        let edit = plan_settings(&store, &id, &[setting])?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

impl Unset {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let id = self.service.find_service(&store.topology)?;
        let mut edit = Edit::default();
        for name in self.names {
            // The ancestor's layout may have the setting too. It would count again if only the current key were
            // deleted.
            if let Some(service) = store.topology.services().get(&id) {
                let keys = service.entries().map(|entry| &entry.key);
                keys.filter(|key| is_key_of_setting(key, name)).for_each(|key| edit.delete(&store, key));
            }
        }
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// The key is that of this setting, in either layout.
fn is_key_of_setting(key: &str, setting: SettingName) -> bool {
    matches!(key.parse(), Ok(Key::Setting { name, .. }) if name == setting)
}

/// Parses a setting's value as it was typed.
pub(crate) fn parse_setting(id: &ServiceId, name: SettingName, value: &str) -> Result<Setting, Error> {
    let setting = Setting::parse(id.kind, name, value.as_bytes());
    setting.map_err(|refusal| Error::Usage(format!("{name} of {id}: {refusal}")))
}

/// Plans the write of settings. Refuses a claim that another service's keys make.
pub(crate) fn plan_settings(store: &Store, id: &ServiceId, settings: &[Setting]) -> Result<Edit, Error> {
    if let Some(rival) = find_claim_conflicts(store.topology.services(), id, settings).first() {
        return Err(Error::Refused(format!("{rival}: one service has it, and it wouldn't be {id}")));
    }
    let mut edit = Edit::default();
    for setting in settings {
        edit.put(store, &Key::for_setting(id, setting.name()), setting.to_string());
    }
    Ok(edit)
}
