//! `explain`: the way from the key to the request, and where on that way an upstream gets none.

mod last;
mod shown;
mod unfollowed;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use clap::Args;
use discovery::{ServiceId, UpstreamId};
use registry::{Client, LeaseId};

use crate::balancer_api::{Answers, BalancerApi, ServiceInFull, Services};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::store::{Store, lossy_text};
use crate::target::{ServiceArg, TargetArg};

use crate::verdict::record_key;

use last::LastRecord;
use shown::Explanation;
use unfollowed::Unfollowed;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl explain shop
  discoverctl explain shop/node-1
  discoverctl explain shop --output json | jq '.upstreams[].balancers[] | select(.gets_requests != true).because'

It prints the key, its value and the parsed value, and for each live balancer the line in haproxy.cfg, HAProxy's state and the
verdict. A copy of a service whose number of copies is limited is explained too if it doesn't run. If several causes apply, the verdict is the one that a request meets first, and the others follow. An upstream that is
gone is explained from etcd's older revisions.";

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A service, or one of its upstreams
    #[arg(value_name = "SVC[/ID]")]
    target: Target,
}

/// SVC or SVC/ID as it was typed. An ID that breaks the rule of names may still be in a key, which `explain` has to
/// explain.
#[derive(Clone, Debug)]
enum Target {
    Named(TargetArg),
    NoName { typed: String, refusal: String },
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(named) => Ok(Self::Named(named)),
            Err(refusal) if text.contains('/') => Ok(Self::NoName { typed: text.to_owned(), refusal }),
            Err(refusal) => Err(refusal),
        }
    }
}

impl Explain {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let target = match self.target {
            Target::Named(named) => named,
            Target::NoName { typed, refusal } => {
                let found = Unfollowed::find_named(&store, &typed).ok_or(Error::Usage(refusal))?;
                context.screen.show(&found)?;
                return Ok(Outcome::Yes);
            }
        };
        let api = context.balancer_api(&store)?;
        let (named, only) = match &target {
            TargetArg::Service(named) => (named, None),
            TargetArg::Upstream(named) => (&named.service, Some(named.id.clone())),
        };
        let service = match locate_service(named, &store, &api).await {
            Ok(service) => service,
            Err(error) => {
                // All keys of the service may have names that no balancer can follow.
                let found = Unfollowed::find_below_service(&store, &named.to_string()).ok_or(error)?;
                context.screen.show(&found)?;
                return Ok(Outcome::Yes);
            }
        };
        let answers: Answers<ServiceInFull> = api.ask_all(&format!("services/{service}")).await;
        let known = list_known_upstreams(&store, &service, &answers);
        let mut last = BTreeMap::new();
        if let Some(id) = only.as_ref().filter(|id| !has_record(&store, &service, id)) {
            last.extend(find_last_record(&context.client, &store, &service, id).await.map(|last| (id.clone(), last)));
            if !known.contains(id)
                && !last.contains_key(id)
                && let TargetArg::Upstream(named) = &target
            {
                // The error names similar upstreams. An upstream that has only an override is found, and explained.
                named.find_upstream(&store.topology)?;
            }
        }
        let is_one = only.is_some();
        let ids: BTreeSet<UpstreamId> = only.map_or(known, |id| [id].into());
        context.screen.show(&Explanation::new(&store, &service, &ids, &last, &answers, is_one))?;
        Ok(Outcome::Yes)
    }
}

/// Finds the service in the store, or at a balancer that retains it although the store has lost it.
async fn locate_service(named: &ServiceArg, store: &Store, api: &BalancerApi) -> Result<ServiceId, Error> {
    let error = match named.find_service(&store.topology) {
        // An ambiguous name is a usage error, which no balancer could resolve.
        Err(error @ Error::Refused(_)) => error,
        other => return other,
    };
    let answers: Answers<Services> = api.ask_all("services").await;
    let served = answers.values().flatten().flat_map(|answer| &answer.services);
    let mut ids = served.filter_map(|it| it.id.split_once('-').map(|(kind, name)| (it.id.as_str(), kind, name)));
    let wanted = named.to_string();
    let found = ids.find(|(id, _, name)| *name == wanted || *id == wanted).map(|(_, kind, name)| (kind, name));
    let id = found.and_then(|(kind, name)| {
        let kind = if kind == "http" { discovery::Kind::Http } else { discovery::Kind::Tcp };
        Some(ServiceId { kind, name: name.parse().ok()? })
    });
    id.ok_or(error)
}

fn has_record(store: &Store, service: &ServiceId, id: &UpstreamId) -> bool {
    store.topology.services().get(service).is_some_and(|keys| keys.upstream(id).is_some())
}

/// Lists the upstreams that have a record, that a balancer serves without one, or that are copies without one.
fn list_known_upstreams(store: &Store, service: &ServiceId, answers: &Answers<ServiceInFull>) -> BTreeSet<UpstreamId> {
    let records = store.topology.services().get(service).into_iter().flat_map(|keys| keys.upstreams());
    let answers = answers.values().filter_map(|answer| answer.as_ref().ok());
    let served = answers.flat_map(|answer| &answer.upstreams).filter_map(|it| it.id.parse().ok());
    records.map(|(id, _)| id.clone()).chain(served).chain(list_copies(store, service)).collect()
}

/// Lists the copies that hold a slot, take one over or stand by.
fn list_copies(store: &Store, service: &ServiceId) -> Vec<UpstreamId> {
    let Some(copies) = store.topology.copies().get(service) else { return Vec::new() };
    let slots = copies.slots().filter_map(|(_, field)| field.value.as_ref().ok());
    let slots = slots.flat_map(|slot| slot.successor.iter().chain([&slot.id])).cloned();
    slots.chain(copies.standby().map(|(id, _)| id.clone())).collect()
}

/// Finds the last value of a record that is gone. The reads go back by 1, 2, 4, 8 … revisions, so they are few even if
/// there are many revisions. They miss a record that lived only between two of them.
async fn find_last_record(client: &Client, store: &Store, service: &ServiceId, id: &UpstreamId) -> Option<LastRecord> {
    let folder = service.folder_path();
    let below = format!("{folder}upstreams");
    let key = record_key(service, id);
    let mut back = 1;
    let entry = loop {
        let revision = store.revision.checked_sub(back).filter(|revision| *revision > 0)?;
        // A compacted revision ends the search.
        let then = client.read_snapshot_at(&below, revision).await.ok()?;
        if let Some(entry) = then.entries.into_iter().find(|entry| entry.key == key) {
            break Some((revision, entry));
        }
        back = back.checked_mul(2)?;
    };
    let (revision, entry) = entry?;
    let lease = (entry.lease != 0).then(|| LeaseId::from(entry.lease));
    // If the lease lives, its announcer runs, and the key was deleted. Else the key went with the lease.
    let lease_lives = match lease {
        Some(lease) => client.time_to_live(lease).await.ok().map(|left| left.is_some()),
        None => None,
    };
    let value = lossy_text(&entry);
    Some(LastRecord { revision, value, lease: lease.map(|lease| lease.to_string()), lease_lives })
}
