//! `drain`, `ready`, `maint`, `weight`: an operator's overrides of upstreams. They stay whatever the announcer writes.

use std::collections::BTreeSet;

use clap::Args;
use discovery::{Key, Override, OverrideState, ServiceId, UpstreamId, Weight};

use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::target::UpstreamArg;

pub(crate) const DRAIN_EXAMPLES: &str = "Examples:
  discoverctl drain shop/node-1 && ssh node-1 reboot
  discoverctl drain shop/node-1 shop/node-2 --timeout 10m
  discoverctl drain shop/node-1 --no-wait

New clients go to other upstreams, and sticky clients stay. `maint` moves sticky clients too. The command ends when no request is
open on the upstream at any live balancer, in HAProxy processes from before a restart neither. It doesn't wait for a balancer that
is cut off from etcd, which sends requests until its own checks fail. `ready` takes the drain back.";

pub(crate) const MAINT_EXAMPLES: &str = "Examples:
  discoverctl maint shop/node-1
  discoverctl ready shop/node-1

The upstream gets no new requests, from sticky clients neither. The command waits until the open requests are finished.";

pub(crate) const READY_EXAMPLES: &str = "Examples:
  discoverctl ready shop/node-1

It takes `drain` and `maint` back, and keeps an overridden weight. The announcer's state, the color and HAProxy's checks still
count, as `discoverctl explain shop/node-1` shows.";

pub(crate) const WEIGHT_EXAMPLES: &str = "Examples:
  discoverctl weight shop/node-1 10
  discoverctl weight shop/node-1 default

The weight counts among the upstreams of the same color. Without an own weight an upstream has 100. With 0 it gets no new
clients. `default` takes the override's weight back.";

/// Options of `drain`, `ready` and `maint`.
#[derive(Debug, Args)]
pub(crate) struct ChangeState {
    /// The upstreams, each as SVC/ID
    #[arg(value_name = "SVC/ID", required = true)]
    upstreams: Vec<UpstreamArg>,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeWeight {
    /// The upstream, written as SVC/ID
    #[arg(value_name = "SVC/ID")]
    upstream: UpstreamArg,
    /// 0 to 256, or `default`
    #[arg(value_name = "N", value_parser = parse_weight)]
    weight: WeightArg,
    #[command(flatten)]
    changing: Changing,
}

/// A weight, or None for `default`, which deletes the override's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WeightArg(Option<Weight>);

impl ChangeState {
    /// Writes overrides with this state; None deletes their state.
    pub(crate) async fn run(self, context: &Context, state: Option<OverrideState>) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let mut edit = Edit::default();
        let mut named = BTreeSet::new();
        for upstream in &self.upstreams {
            let (service, id) = upstream.find_upstream(&store.topology)?;
            change_override(&mut edit, &store, &service, &id, |imposed| imposed.state = state)?;
            named.insert((service, id));
        }
        // `ready` puts upstreams back into service, so their requests need no end.
        let drained = if state.is_some() { named } else { BTreeSet::new() };
        context.apply_edit(&store, &edit, &self.changing, drained).await
    }
}

impl ChangeWeight {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let (service, id) = self.upstream.find_upstream(&store.topology)?;
        let mut edit = Edit::default();
        change_override(&mut edit, &store, &service, &id, |imposed| imposed.weight = self.weight.0)?;
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// Changes an override. One without state and weight is deleted.
fn change_override(
    edit: &mut Edit,
    store: &Store,
    service: &ServiceId,
    id: &UpstreamId,
    change: impl Fn(&mut Override),
) -> Result<(), Error> {
    let key = Key::Override { service: service.clone(), id: id.clone() };
    let standing = store.topology.services().get(service).and_then(|known| known.override_of(id));
    let mut imposed = match standing.map(|field| &field.value) {
        None => Override::default(),
        Some(Ok(imposed)) => imposed.clone(),
        // An unreadable override may mean more than this change. Writing over it could put an upstream back into
        // service.
        Some(Err(refusal)) => {
            return Err(Error::Refused(format!("{key} makes no sense, mend or delete it: {refusal}")));
        }
    };
    change(&mut imposed);
    match imposed {
        Override { state: None, weight: None, .. } => edit.delete(store, &key.to_string()),
        imposed => edit.put(store, &key, imposed.to_string()),
    }
    Ok(())
}

fn parse_weight(text: &str) -> Result<WeightArg, String> {
    match text {
        "default" => Ok(WeightArg(None)),
        number => number.parse().map(|weight| WeightArg(Some(weight))).map_err(|it: discovery::Refusal| it.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    fn imposed(standing: Option<&str>, change: impl Fn(&mut Override)) -> Option<Option<String>> {
        let key = "http-services/shop/overrides/a";
        let entry =
            |value: &str| Entry { key: key.into(), value: value.into(), create_revision: 1, mod_revision: 1, lease: 0 };
        let store = Store::from_snapshot(Snapshot {
            entries: standing.map(entry).into_iter().collect(),
            ..Snapshot::default()
        });
        let service = key.parse::<Key>().unwrap().service_id().unwrap().clone();
        let mut edit = Edit::default();
        change_override(&mut edit, &store, &service, &"a".parse().unwrap(), change).ok()?;
        Some(edit.changes().next().and_then(|(_, change)| change.after.clone()))
    }

    #[test]
    fn a_state_leaves_the_weight_alone_and_nothing_imposed_is_no_key() {
        let (drain, none) = (Some(OverrideState::Drain), None);
        assert_eq!(imposed(None, |it| it.state = drain).unwrap().unwrap(), r#"{"state":"drain"}"#);
        let both = imposed(Some(r#"{"weight":10}"#), |it| it.state = drain);
        assert_eq!(both.unwrap().unwrap(), r#"{"state":"drain","weight":10}"#);
        let weight = imposed(Some(r#"{"state":"drain","weight":10}"#), |it| it.state = none);
        assert_eq!(weight.unwrap().unwrap(), r#"{"weight":10}"#);
        assert_eq!(imposed(Some(r#"{"state":"drain"}"#), |it| it.state = none), Some(None));
        assert_eq!(imposed(Some("garbage"), |it| it.state = none), None, "refused");
    }
}
