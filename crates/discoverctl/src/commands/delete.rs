//! `delete`: a service with all its keys.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use discovery::ServiceId;
use program::output;

use crate::balancer_api::ServiceInFull;
use crate::context::Context;
use crate::edit::Edit;
use crate::error::{Error, Outcome};
use crate::shared_options::Changing;
use crate::store::Store;
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl export shop > shop.yaml && discoverctl delete shop --yes
  discoverctl delete shop --dry-run

It deletes every key of the service: settings, overrides, records. While announcers register upstreams it is refused, because
they would leave upstreams without a host. Stop them first, or use --force. It warns of lines in operators' own HAProxy files
that name the service. The service stays there as an empty backend, which answers 503.";

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// Don't ask for confirmation at the terminal
    #[arg(long, short)]
    yes: bool,
    /// Delete a service although announcers still register it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    changing: Changing,
}

impl Delete {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let id = self.service.find_service(&store.topology)?;
        let entries: Vec<_> = store.topology.services().get(&id).iter().flat_map(|service| service.entries()).collect();
        let leased = entries.iter().filter(|entry| entry.lease != 0).count();
        // A running announcer keeps its record, and the upstream would stay without a host that leads to it.
        if leased > 0 && !self.force {
            let words = format!("announcers register {leased} of the upstreams of {id}");
            return Err(Error::Refused(format!("{words}: stop them first, or --force")));
        }
        warn_of_references(context, &store, &id).await?;
        if !self.yes && !self.changing.dry_run && !is_confirmed(&format!("delete {id}, {} keys?", entries.len()))? {
            return Err(Error::Refused("nothing was deleted".into()));
        }
        let mut edit = Edit::default();
        entries.iter().for_each(|entry| edit.delete(&store, &entry.key));
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }
}

/// Warns of lines in the operators' files that name the service's section. Their clients get 503 after the deletion. A
/// balancer that can't be asked is named, and doesn't stop the deletion.
async fn warn_of_references(context: &Context, store: &Store, id: &ServiceId) -> Result<(), Error> {
    let answers = context.balancer_api(store)?.ask_all::<ServiceInFull>(&format!("services/{id}")).await;
    for (node, answer) in answers {
        let warning = match answer {
            Ok(answer) if answer.service.named_by.is_empty() => continue,
            Ok(answer) => {
                let lines = answer.service.named_by.join(", ");
                format!("warning: {node}: {lines} names {id}; requests that it sends there will get 503")
            }
            Err(error) => format!("warning: {node} can't be asked if a file of its operator names {id}: {error}"),
        };
        output::print_message(&warning);
    }
    Ok(())
}

/// Asks for confirmation at the terminal.
///
/// # Errors
/// [`Error::Usage`] without a terminal.
fn is_confirmed(question: &str) -> Result<bool, Error> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Error::Usage(format!("{question} There is no terminal to ask at: --yes")));
    }
    // The operator has to see the warnings before the question.
    output::flush_stderr();
    let mut answer = String::new();
    let mut err = io::stderr().lock();
    let asked = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let read = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    read.map_err(|error| Error::Failed(format!("the terminal: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "yes" | "Y"))
}
