//! `export` and `import`: the durable keys as a document.

mod document;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;
use discovery::{Entry, ServiceId};
use program::output;

use crate::commands::export::document::{Document, Tree};
use crate::context::Context;
use crate::durable_keys::{KeyScope, check_claims};
use crate::error::{Error, Outcome};
use crate::print::{Block, Printable, to_yaml};
use crate::shared_options::Changing;
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl export > services.yaml
  discoverctl export shop db

It prints settings, overrides and records without a lease. Announcers write the other records again by themselves. With --output
json it prints JSON, which import reads too.";

pub(crate) const IMPORT_EXAMPLES: &str = "Examples:
  Print what would be written:
      discoverctl import services.yaml --dry-run
  Copy the services of one store to another:
      discoverctl export | ssh other discoverctl import
  Make the file's services exactly as they are in the file:
      discoverctl import services.yaml --prune

All keys are written in one transaction, or in one for each 110 keys. A value that no balancer could follow, and a domain or
port that another service has, are refused before anything is written.";

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Export these services instead of all
    #[arg(value_name = "SVC")]
    services: Vec<ServiceArg>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Read the document from this file; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Delete all other durable keys of the document's services
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    changing: Changing,
}

impl Export {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let ids = self
            .services
            .iter()
            .map(|named| named.find_service(&store.topology))
            .collect::<Result<BTreeSet<_>, _>>()?;
        let (tree, odd) = Tree::from_entries(select_exported(&store.entries, &ids));
        for key in odd {
            // Standard output is the document, so this goes to standard error.
            output::print_message(&format!("discoverctl: {key}: its value is no text, and left out"));
        }
        if context.screen.is_json() {
            context.screen.show(&tree)?;
        } else {
            // JSON has no comments, so only YAML says where it comes from.
            let yaml = to_yaml(&tree)?;
            let (prefix, revision) = (context.client.config().prefix(), store.revision);
            let head = format!("# Durable keys below {prefix} at revision {revision}; discoverctl import reads them.");
            context.screen.print(&format!("{head}\n{yaml}"));
        }
        Ok(Outcome::Yes)
    }
}

/// Selects the durable keys of these services, or of all if `ids` is empty.
fn select_exported<'a>(entries: &'a [Entry], ids: &BTreeSet<ServiceId>) -> Vec<&'a Entry> {
    if ids.is_empty() {
        return KeyScope::SettingsAndPermanent.select_entries(entries, None).into_values().collect();
    }
    let mut selected = Vec::new();
    for entry in entries.iter().filter(|entry| KeyScope::SettingsAndPermanent.has_entry(entry)) {
        let key = entry.key.parse::<discovery::Key>().ok();
        if key.as_ref().and_then(discovery::Key::service_id).is_some_and(|id| ids.contains(id)) {
            selected.push(entry);
        }
    }
    selected
}

impl Import {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let (name, text) = self.read_document()?;
        let document = Document::parse(&name, &text)?;
        let store = context.read_store().await?;
        let edit = document.to_edit(&store, self.prune)?;
        check_claims(&store, &edit)?;
        // Several transactions are not atomic, so the operator is told.
        let parts = edit.to_transactions().len();
        if parts > 1 {
            output::print_message(&format!("discoverctl: {} keys, in {parts} transactions", edit.changes().count()));
        }
        context.apply_edit(&store, &edit, &self.changing, BTreeSet::new()).await
    }

    fn read_document(&self) -> Result<(String, String), Error> {
        let is_standard = self.file.as_os_str() == "-";
        let name = if is_standard { "standard input".to_owned() } else { self.file.display().to_string() };
        let mut text = String::new();
        let read = match is_standard {
            true => std::io::stdin().read_to_string(&mut text).map(|_| text),
            false => regular_file::read_text(&self.file, regular_file::LARGE),
        };
        read.map_err(|error| Error::Usage(format!("{name} can't be read: {error}"))).map(|text| (name, text))
    }
}

impl Printable for Tree {
    fn to_blocks(&self) -> Vec<Block> {
        Vec::new()
    }
}
