//! `drain`, `ready`, `maint`, `weight`: an operator's overrides of upstreams. They stay whatever the announcer writes.

mod host;
mod host_report;

use std::collections::BTreeSet;

use clap::Args;
use discovery::{Key, Override, OverrideState, ServiceId, UpstreamId, Weight};

use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::target::UpstreamArg;
use crate::target::host::HostArg;

pub(crate) const DRAIN_EXAMPLES: &str = "Examples:
  discoverctl drain shop/node-1 && ssh node-1 reboot
  discoverctl drain shop/node-1 shop/node-2 --timeout 10m
  discoverctl drain shop/node-1 --no-wait
  discoverctl drain --host web-1 --timeout 10m && ssh web-1 reboot
  discoverctl drain --host web-1 --dry-run

New clients go to other upstreams, and sticky clients stay. `maint` moves sticky clients too. The command ends when no request is
open on the upstream at any live balancer, in HAProxy processes from before a restart neither. It doesn't wait for a balancer that
is cut off from etcd, which sends requests until its own checks fail. `ready` takes the drain back.

--host takes all upstreams of all services whose records name that host. A record that names none is on the host that the other
records with its address name. If they name none, its host is called by the address. An upstream that comes on the host later is not
drained: run the command again. It is refused if a service would have no other upstream that serves, unless --force is given. With
--host a balancer whose key vanishes during the wait ends the command with exit code 5, unless it had followed before.";

pub(crate) const MAINT_EXAMPLES: &str = "Examples:
  discoverctl maint shop/node-1
  discoverctl ready shop/node-1
  discoverctl maint --host web-1

The upstream gets no new requests, from sticky clients neither. The command waits until the open requests are finished. --host takes
all upstreams of a host, as `drain` does.";

pub(crate) const READY_EXAMPLES: &str = "Examples:
  discoverctl ready shop/node-1
  discoverctl ready --host web-1

It takes `drain` and `maint` back, and keeps an overridden weight. The announcer's state, the color and HAProxy's checks still
count, as `discoverctl explain shop/node-1` shows. --host takes back what `drain --host` and `maint --host` did, also for upstreams
that have not come back yet. An upstream that was drained by itself stays so.";

pub(crate) const WEIGHT_EXAMPLES: &str = "Examples:
  discoverctl weight shop/node-1 10
  discoverctl weight shop/node-1 default

The weight counts among the upstreams of the same color. Without an own weight an upstream has 100. With 0 it gets no new
clients. `default` takes the override's weight back.";

/// The upstreams of `drain`, `ready` and `maint`.
#[derive(Debug, Args)]
struct Selection {
    /// The upstreams, each as SVC/ID
    #[arg(value_name = "SVC/ID", required_unless_present = "host", conflicts_with = "host")]
    upstreams: Vec<UpstreamArg>,
    /// Take all upstreams of this host instead, by the name in their records, or by the address of records without a name
    #[arg(long, value_name = "NAME")]
    host: Option<HostArg>,
}

/// Options of `drain` and `maint`.
#[derive(Debug, Args)]
pub(crate) struct TakeOut {
    #[command(flatten)]
    selection: Selection,
    /// With --host, take the host out although a service has no other upstream that serves
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    changing: Changing,
}

/// Options of `ready`.
#[derive(Debug, Args)]
pub(crate) struct PutBack {
    #[command(flatten)]
    selection: Selection,
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

impl TakeOut {
    pub(crate) async fn run(self, context: &Context, state: OverrideState) -> Result<Outcome, Error> {
        match &self.selection.host {
            Some(host) => host::take_out(context, host, state, self.force, &self.changing).await,
            // clap drops `requires` for an option that conflicts with what is given.
            None if self.force => Err(Error::Usage("--force is for --host: a single upstream is never refused".into())),
            None => change_states(context, &self.selection.upstreams, Some(state), &self.changing).await,
        }
    }
}

impl PutBack {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        match &self.selection.host {
            Some(host) => host::put_back(context, host, &self.changing).await,
            None => change_states(context, &self.selection.upstreams, None, &self.changing).await,
        }
    }
}

/// Writes overrides with this state; None deletes their state.
async fn change_states(
    context: &Context,
    upstreams: &[UpstreamArg],
    state: Option<OverrideState>,
    changing: &Changing,
) -> Result<Outcome, Error> {
    let store = context.read_store().await?;
    let mut edit = Edit::default();
    let mut named = BTreeSet::new();
    for upstream in upstreams {
        let (service, id) = upstream.find_upstream(&store.topology)?;
        // An override of one upstream isn't the host's, and `ready --host` leaves it alone.
        change_override(&mut edit, &store, &service, &id, |imposed| (imposed.state, imposed.host) = (state, None))?;
        named.insert((service, id));
    }
    // `ready` puts upstreams back into service, so their requests need no end.
    let drained = if state.is_some() { named } else { BTreeSet::new() };
    context.apply_edit(&store, &edit, changing, drained).await
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
    let mut imposed = find_override(store, service, id)?.cloned().unwrap_or_default();
    change(&mut imposed);
    match imposed {
        Override { state: None, weight: None, .. } => edit.delete(store, &key.to_string()),
        imposed => edit.put(store, &key, imposed.to_string()),
    }
    Ok(())
}

/// Finds an upstream's override; None without one.
///
/// # Errors
/// [`Error::Refused`] if it can't be read. It may mean more than a change of it, and writing over it could put an upstream back
/// into service.
fn find_override<'a>(store: &'a Store, service: &ServiceId, id: &UpstreamId) -> Result<Option<&'a Override>, Error> {
    let known = store.topology.services().get(service);
    let Some(field) = known.and_then(|known| known.override_of(id)) else { return Ok(None) };
    let unreadable = |refusal| format!("{} makes no sense, mend or delete it: {refusal}", field.entry.key);
    field.value.as_ref().map(Some).map_err(|refusal| Error::Refused(unreadable(refusal)))
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
