//! `register` and `deregister`: upstreams without an announcer.

mod docker;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use clap::Args;
use containers::{EngineAddress, HostAddresses, Reach};
use discovery::{Color, Entry, Key, ServiceId, Upstream, UpstreamAddress, UpstreamId, Weight};
use program::output;

use crate::commands::register::docker::{ContainerArg, find_listener};
use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::{Changing, Type};
use crate::store::Store;
use crate::target::{ServiceArg, UpstreamArg, suggest_names};

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl register shop node-1 172.17.8.101:8000
  discoverctl register shop node-1 172.17.8.101:8000 --color green --weight 50
  discoverctl register shop --container web-1
  discoverctl register shop --container web-1 --port 8000 --host-address 172.17.8.101
  discoverctl register --type tcp db db-1 172.17.8.101:3306

The record has no lease. It stays until it is deregistered, even if nothing answers at its address. HAProxy's checks decide if it
gets requests. An app with an announcer needs no `register`. A new service has no domain yet, and needs
`discoverctl set shop domain shop.example.com`.
With --container it asks Docker's API for the address and port at which the container's port is published on this host. The id is
the container's name. If the port is published at all addresses, the host's address towards etcd is taken, or that of the default
route. A container in the host's network has the host's address. A port that is published on loopback, or not at all, is refused.";

pub(crate) const DEREGISTER_EXAMPLES: &str = "Examples:
  discoverctl drain shop/node-1 && discoverctl deregister shop node-1

The upstream's override is deleted, too. A record with a lease belongs to a running announcer. Stop that announcer instead, or use
`maint`. --force deletes the record, and the announcer doesn't write it again while its lease lives.";

#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The service; a new name makes a new service
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// The upstream's name in the service
    #[arg(value_name = "ID", required_unless_present = "container")]
    id: Option<UpstreamId>,
    /// The upstream's IP address and port
    #[arg(value_name = "ADDR", required_unless_present = "container", conflicts_with = "container")]
    address: Option<UpstreamAddress>,
    /// Take the address of a running container on this host, by its name or id, and the port on which it listens
    #[arg(long, value_name = "ID[:PORT]")]
    container: Option<ContainerArg>,
    /// Take the container's port on which it listens. Needed if it publishes several
    #[arg(long, value_name = "PORT", requires = "container")]
    port: Option<NonZeroU16>,
    /// Take this address of the host, at which balancers reach published ports
    #[arg(long, value_name = "IP", requires = "container", conflicts_with = "container_network")]
    host_address: Option<IpAddr>,
    /// Take the container's own address in this network, which balancers must reach. It needs no published port
    #[arg(long, alias = "network", value_name = "NAME", requires = "container")]
    container_network: Option<String>,
    /// Ask the engine's API here: Docker's, Podman's, or a proxy at tcp://HOST:PORT
    #[arg(long, env = "DOCKER_HOST", value_name = "URL", default_value = "unix:///var/run/docker.sock")]
    docker: String,
    /// Give it this share among the upstreams of its color
    #[arg(long, value_name = "0-256")]
    weight: Option<Weight>,
    /// Write this color into the record
    #[arg(long)]
    color: Option<Color>,
    /// Use it only if no other upstream is up
    #[arg(long)]
    backup: bool,
    /// Make a service of this kind, or choose it if two services have the name
    #[arg(long = "type", value_enum)]
    kind: Option<Type>,
    /// Replace a record that has another address or a lease
    #[arg(long)]
    takeover: bool,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Args)]
pub(crate) struct Deregister {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// The upstream's name in the service
    #[arg(value_name = "ID")]
    id: UpstreamId,
    /// Delete a record that has a lease, too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    changing: Changing,
}

impl Register {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let (id, address) = match (self.container, self.id, self.address) {
            (Some(container), id, _) => {
                let container = container.with_port(self.port)?;
                let reach = match self.container_network {
                    Some(network) => Reach::Network(network),
                    None => {
                        let endpoints = context.client.config().endpoints().iter();
                        let places: Vec<_> = endpoints.map(|it| (it.host().to_owned(), it.port())).collect();
                        Reach::Host(HostAddresses::find_addresses(self.host_address, &places).await)
                    }
                };
                // Only here: DOCKER_HOST may be a place that other tools understand.
                let place = self.docker.parse::<EngineAddress>();
                let engine = place.map_err(|words| Error::Usage(format!("--docker {}: {words}", self.docker)))?;
                let found = find_listener(&engine, &container, &reach).await?;
                (id.unwrap_or(found.id), found.address)
            }
            (None, Some(id), Some(address)) => (id, address),
            (None, ..) => return Err(Error::Usage("an ID and an ADDR, or --container".into())),
        };
        let store = context.read_store().await?;
        let service = self.service.find_or_name_new(&store.topology, self.kind.map(Into::into))?;
        if !store.topology.services().contains_key(&service) {
            // A misspelled name would make a new service without a word.
            let alike =
                suggest_names(service.name.as_str(), store.topology.services().keys().map(|id| id.name.to_string()));
            output::print_message(&format!("{service} is a new service, without a domain or port yet{alike}"));
        }
        let upstream = Upstream {
            weight: self.weight.unwrap_or_default(),
            color: self.color,
            backup: self.backup,
            // `lint` reports a record that has neither a lease nor this mark.
            permanent: true,
            ..Upstream::from_address(address)
        };
        let edit = plan_registration(&store, &service, &id, &upstream, self.takeover)?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// Plans the write of a record. Refuses to replace the record of another owner.
fn plan_registration(
    store: &Store,
    service: &ServiceId,
    id: &UpstreamId,
    upstream: &Upstream,
    takeover: bool,
) -> Result<Edit, Error> {
    let key = Key::for_upstream(service, id);
    if let Some(entry) = store.find_entry(&key.to_string()).filter(|_| !takeover)
        && let Some(obstacle) = find_obstacle(entry, upstream)
    {
        return Err(Error::Refused(format!("{key} {obstacle}; --takeover replaces it, another ID leaves it alone")));
    }
    let mut edit = Edit::default();
    edit.put(store, &key, upstream.to_string());
    Ok(edit)
}

/// The reason why a record belongs to another owner; None if it may be replaced.
fn find_obstacle(entry: &Entry, upstream: &Upstream) -> Option<String> {
    let standing = Upstream::parse(&entry.value);
    match standing {
        // An announcer with a live lease writes its record again, so two owners would fight for the key.
        _ if entry.lease != 0 => Some(format!("has lease {:x} of an announcer", entry.lease)),
        Ok(standing) if standing.address != upstream.address => Some(format!("has the address {}", standing.address)),
        _ => None,
    }
}

impl Deregister {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let named = UpstreamArg { service: self.service, id: self.id };
        let (service, id) = named.find_upstream(&store.topology)?;
        let edit = plan_deregistration(&store, &service, &id, self.force)?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// Plans the deletion of a record, in either layout, and of the override.
fn plan_deregistration(store: &Store, service: &ServiceId, id: &UpstreamId, force: bool) -> Result<Edit, Error> {
    let mut edit = Edit::default();
    let Some(known) = store.topology.services().get(service) else { return Ok(edit) };
    for entry in known.entries() {
        let is_its_own = match entry.key.parse() {
            Ok(Key::Upstream { id: it, .. } | Key::Override { id: it, .. }) => it == *id,
            _ => false,
        };
        if is_its_own && entry.lease != 0 && !force {
            let words = format!("{} has lease {:x} of an announcer", entry.key, entry.lease);
            let remedy = "stop that announcer, or use `discoverctl maint`; --force deletes the key";
            return Err(Error::Refused(format!("{words}; {remedy}")));
        }
        if is_its_own {
            edit.delete(store, &entry.key);
        }
    }
    Ok(edit)
}

#[cfg(test)]
mod tests {
    use discovery::Snapshot;

    use super::*;

    fn store(keys: &[(&str, &str, i64)]) -> Store {
        let entry = |(key, value, lease): &(&str, &str, i64)| Entry {
            key: (*key).into(),
            value: (*value).into(),
            create_revision: 1,
            mod_revision: 1,
            lease: *lease,
        };
        let mut entries: Vec<Entry> = keys.iter().map(entry).collect();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Store::from_snapshot(Snapshot { entries, ..Snapshot::default() })
    }

    const KEY: &str = "http-services/shop/upstreams/a";

    fn at(address: &str) -> Upstream {
        Upstream { permanent: true, ..Upstream::from_address(address.parse().unwrap()) }
    }

    #[test]
    fn another_owners_record_is_left_alone() {
        let service = KEY.parse::<Key>().unwrap().service_id().unwrap().clone();
        let id: UpstreamId = "a".parse().unwrap();
        let ours = |store: &Store, takeover| plan_registration(store, &service, &id, &at("10.0.0.1:80"), takeover);
        assert!(ours(&store(&[]), false).is_ok());
        assert!(ours(&store(&[(KEY, "10.0.0.1:80", 0)]), false).is_ok(), "the same, without its color");
        for (value, lease, words) in
            [("10.0.0.2:80", 0, "has the address 10.0.0.2:80"), ("10.0.0.1:80", 7, "has lease 7")]
        {
            let store = store(&[(KEY, value, lease)]);
            let refused = ours(&store, false).unwrap_err();
            assert!(refused.to_string().contains(words) && refused.exit_code() == 4, "{refused}");
            assert_eq!(ours(&store, true).unwrap().changes().count(), 1);
        }
    }

    #[test]
    fn what_was_imposed_goes_with_it() {
        let keys = [(KEY, "10.0.0.1:80", 0), ("http-services/shop/overrides/a", "{}", 0)];
        let service = KEY.parse::<Key>().unwrap().service_id().unwrap().clone();
        let id = "a".parse().unwrap();
        assert_eq!(plan_deregistration(&store(&keys), &service, &id, false).unwrap().changes().count(), 2);
        let leased = store(&[(KEY, "10.0.0.1:80", 7)]);
        assert!(plan_deregistration(&leased, &service, &id, false).unwrap_err().to_string().contains("lease 7"));
        assert!(plan_deregistration(&leased, &service, &id, true).is_ok());
    }
}
