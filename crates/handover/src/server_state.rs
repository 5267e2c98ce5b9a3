//! Writes the server state file of a start, from which the new HAProxy takes over the states of its servers. It follows no
//! link that a lesser user can change.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::Context;
use haproxy::command::CommandLine;
use haproxy::runtime::Socket;
use haproxy::{config, state_file};

use crate::directory::{Directory, Missing};

/// Writes an empty state if HAProxy would warn of the file because it is missing or empty. `haproxy -c` reads it too.
pub(crate) fn ensure_exists(path: &Path) -> anyhow::Result<()> {
    let (dir, name) = split_directory(path);
    // Only a regular file counts: HAProxy would wait for a FIFO.
    let exists = Directory::open(dir, Missing::Fail).is_ok_and(|dir| dir.has_nonempty_file(name));
    if exists { Ok(()) } else { write_file(path, state_file::EMPTY) }
}

/// Writes the state of the old HAProxy's servers. `None` if no old HAProxy answers.
pub(crate) fn save(path: &Path, command: &CommandLine, old: Option<&Socket>) -> anyhow::Result<()> {
    let text = match old.map(Socket::show_servers_state) {
        Some(Ok(state)) => {
            let files = config::read_files(&command.config_files()).context("can't save the servers' state")?;
            state_file::filter_servers(&state, &config::parse_servers(&files))
        }
        // Without the old state, HAProxy takes each server as up until its first check.
        Some(Err(_)) | None => state_file::EMPTY.to_owned(),
    };
    write_file(path, &text)
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let (dir, name) = split_directory(path);
    // The file holds addresses and states, and no secret.
    let written = Directory::open(dir, Missing::Fail).and_then(|dir| dir.replace_file(name, text, 0o644));
    written.with_context(|| format!("can't write {}", path.display()))
}

fn split_directory(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    (dir, path.file_name().unwrap_or_default())
}
