//! `accept-store`: a wiped store is meant as it is.

use clap::Args;
use discovery::{Acceptance, Balancers, Key};

use super::Outcome;
use crate::args::Changing;
use crate::ctl::Ctl;
use crate::edit::Edit;
use crate::error::Error;
use crate::wait::Awaited;

pub(crate) const EXAMPLES: &str = "Examples:
  What is held, and what would be written?
      discoverctl accept-store --dry-run
  The store is meant as it is:
      discoverctl accept-store

After a wiped or restored store, balancers go on serving every key of before, until that very key is written again. This
says that what is missing is meant to be missing: they let go of all of it, at once, on every balancer. Nothing else lets
them. It counts for the wipe that was noticed before it, and for no later one.";

/// Options of `accept-store`.
#[derive(Debug, Args)]
pub(crate) struct AcceptStore {
    #[command(flatten)]
    changing: Changing,
}

impl AcceptStore {
    /// Does it.
    pub(crate) async fn run(self, ctl: &Ctl) -> Result<Outcome, Error> {
        let store = ctl.store().await?;
        let word = Acceptance { cluster: store.cluster, revision: store.revision };
        let mut edit = Edit::default();
        edit.put(&store, &Key::AcceptStore, word.to_string());
        if !ctl.screen.is_for_programs() {
            ctl.screen.print(&says(&store.balancers));
        }
        let awaited = Awaited { lets_go: true, ..Awaited::default() };
        ctl.carry_out_awaiting(&store, &edit, &self.changing, awaited).await
    }
}

/// Who holds how much, in words.
fn says(balancers: &Balancers) -> String {
    let holds = balancers.nodes().filter_map(|(node, said)| {
        let (held, cut) = (said?.held.len(), said?.more.contains("held"));
        (held > 0).then(|| format!("{node} holds {held}{} upstreams", if cut { " or more" } else { "" }))
    });
    let holds: Vec<String> = holds.collect();
    if holds.is_empty() {
        return "no balancer says that it holds upstreams; keys of services may be held all the same".into();
    }
    format!("{}: what the store lacks of it goes now", holds.join(", "))
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Snapshot};

    use super::*;

    #[test]
    fn who_holds_what_is_said() {
        let said = |held: &str| {
            let value = format!(r#"{{"cluster":"7","applied":1,"pending":[],"held":[{held}],"draining":{{}}}}"#);
            let entry = Entry {
                key: "balancers/lb1".into(),
                value: value.into(),
                create_revision: 1,
                mod_revision: 1,
                lease: 7,
            };
            says(&Balancers::of(&Snapshot { cluster: 7, revision: 9, raft_term: 1, entries: vec![entry] }))
        };
        assert!(said("").starts_with("no balancer says"));
        assert_eq!(said(r#""http-a/x","http-a/y""#), "lb1 holds 2 upstreams: what the store lacks of it goes now");
    }
}
