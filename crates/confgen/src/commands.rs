//! The one-shot commands: `once`, `render`, `diff`. `render` and `diff` write nothing.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;

use discovery::Snapshot;
use program::output::{print_answer, takes_colors};
use registry::Client;
use similar::{ChangeTag, TextDiff};

use crate::cli::Common;
use crate::event_loop::once;
use crate::publish::Publication;
use crate::reconcile::{Reconciler, RestartOutcome};
use crate::state_dir::OwnFile;
use crate::store::{StoreUpdate, bound_entry};

/// The exit code for wrong usage, as clap has it.
pub const USAGE: u8 = 2;
const STORE: u8 = 3;
const REJECTED: u8 = 4;
const NOT_LIVE: u8 = 5;

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<registry::Error>() {
        ExitCode::from(STORE)
    } else if error.is::<registry::ConfigError>()
        || error.is::<daemon::admin::ArgsError>()
        || error.is::<daemon::log::LogError>()
    {
        ExitCode::from(USAGE)
    } else {
        ExitCode::FAILURE
    }
}

pub async fn run_once(common: Common) -> anyhow::Result<ExitCode> {
    let snapshot = fetch_snapshot(common.store, None).await?;
    let run = move || {
        let mut reconciler = Reconciler::open(common.options, Box::new(|_| BTreeSet::new()), OwnFile::default())?;
        let replica = reconciler.replica_of(snapshot);
        once::run_once(reconciler, replica)
    };
    let outcome = tokio::task::spawn_blocking(run).await??;
    let code = match outcome {
        RestartOutcome::InSync | RestartOutcome::Restarted => {
            tracing::info!("{outcome}");
            return Ok(ExitCode::SUCCESS);
        }
        RestartOutcome::Rejected(_) => REJECTED,
        RestartOutcome::Stopped | RestartOutcome::NotLive(_) => NOT_LIVE,
    };
    tracing::error!("{outcome}");
    Ok(ExitCode::from(code))
}

pub async fn print_config(common: Common, at_revision: Option<i64>) -> anyhow::Result<ExitCode> {
    let publication = load_publication(common, at_revision).await?;
    let rendered = publication.render_config()?;
    for (key, reason) in publication.quarantined() {
        tracing::warn!(%key, %reason, "key quarantined");
    }
    print_answer(&rendered.cfg.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the differences between the files on disk and the needed ones.
pub async fn print_diff(common: Common) -> anyhow::Result<ExitCode> {
    let path = common.options.haproxy_cfg.display().to_string();
    let publication = load_publication(common, None).await?;
    let rendered = publication.render_config()?;
    let old = publication.read_current()?.unwrap_or_default();
    let edits = publication.pending_edits();
    let fills = edits.iter().map(|edit| {
        let (before, after) = (String::from_utf8_lossy(&edit.before), String::from_utf8_lossy(&edit.after));
        (before.into_owned(), after.into_owned(), edit.path.display().to_string())
    });
    let changed: Vec<_> =
        fills.chain([(old, rendered.cfg.to_string(), path)]).filter(|(old, new, _)| old != new).collect();
    for (old, new, path) in &changed {
        print_answer(&format_diff(old, new, path, takes_colors(&io::stdout())))?;
    }
    Ok(if changed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The publication that the store asks for. It writes nothing.
async fn load_publication(common: Common, at_revision: Option<i64>) -> anyhow::Result<Publication> {
    let snapshot = fetch_snapshot(common.store, at_revision).await?;
    tokio::task::spawn_blocking(move || {
        let mut reconciler = Reconciler::open_read_only(common.options)?;
        // An old revision counts as it was. The current one may lack keys that confgen retains since a reset.
        let current = if at_revision.is_some() { None } else { reconciler.replica_of(snapshot.clone()).take_update() };
        let update = current.unwrap_or_else(|| StoreUpdate::from_snapshot(&snapshot));
        reconciler.update_desired(&update)?;
        Ok(reconciler.publication())
    })
    .await?
}

async fn fetch_snapshot(store: registry::Args, at_revision: Option<i64>) -> anyhow::Result<Snapshot> {
    let client = Client::new(store.resolve()?);
    Ok(match at_revision {
        None => client.read_filtered_snapshot("", bound_entry).await?,
        Some(revision) => client.read_snapshot_at("", revision).await?,
    })
}

fn format_diff(old: &str, new: &str, path: &str, colors: bool) -> String {
    let mut text = format!("--- {path}\n+++ {path} (wanted)\n");
    let diff = TextDiff::from_lines(old, new);
    for hunk in diff.unified_diff().context_radius(3).iter_hunks() {
        text.push_str(&format!("{}\n", hunk.header()));
        for change in hunk.iter_changes() {
            let color = match change.tag() {
                ChangeTag::Delete => "\x1b[31m",
                ChangeTag::Insert => "\x1b[32m",
                ChangeTag::Equal => "",
            };
            let line = format!("{}{}", change.tag(), change.value().trim_end_matches('\n'));
            if colors && !color.is_empty() {
                text.push_str(&format!("{color}{line}\x1b[0m\n"));
            } else {
                text.push_str(&format!("{line}\n"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_reads_as_people_know_it() {
        let (old, new) = ("a\nb\nc\nd\ne\nf\n", "a\nb\nc\nd\nE\nf\n");
        expect_test::expect![[r"
            --- x
            +++ x (wanted)
            @@ -2,5 +2,5 @@
             b
             c
             d
            -e
            +E
             f
        "]]
        .assert_eq(&format_diff(old, new, "x", false));
        assert!(format_diff(old, new, "x", true).contains("\x1b[32m+E\x1b[0m"));
    }
}
