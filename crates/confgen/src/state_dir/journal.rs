//! The format of `journal`: one line for each change of the saved state since `state.json` was written. Pure: no I/O.
//!
//! A line is a checksum of 16 hexadecimal digits, a blank, and JSON. The first line names the snapshot that the others change.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::desired::LastKnownGoodChange;
use crate::desired::fingerprint::hash_parts;
use crate::store::StoreChange;

/// One change of the saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateChange {
    pub memory: LastKnownGoodChange,
    pub store: StoreChange,
}

/// The first line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Header {
    snapshot: u64,
}

/// A journal as it was read.
#[derive(Debug, Default)]
pub struct Journal {
    /// The number of the snapshot that the changes apply to. `None` without a readable first line.
    pub snapshot: Option<u64>,
    /// The changes before the first damaged line, in their order.
    pub changes: Vec<StateChange>,
    /// The bytes from the first damaged line to the end. 0 if all lines are whole.
    pub damaged: usize,
}

/// The first line of a journal that changes this snapshot.
pub fn format_header(snapshot: u64) -> serde_json::Result<Vec<u8>> {
    format_line(&Header { snapshot })
}

/// The line of one change.
pub fn format_change(change: &StateChange) -> serde_json::Result<Vec<u8>> {
    format_line(change)
}

fn format_line(content: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    // JSON has no line break outside of strings here, and escapes those in strings.
    let json = serde_json::to_vec(content)?;
    let mut line = hash_parts([json.as_slice()]).into_bytes();
    line.push(b' ');
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

/// Parses a journal up to its first damaged line. A line after that may build on the damaged one, so no later line counts.
pub fn parse_journal(bytes: &[u8]) -> Journal {
    let mut journal = Journal::default();
    let mut whole = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let is_whole = match journal.snapshot {
            None => parse_line(line).map(|Header { snapshot }| journal.snapshot = Some(snapshot)),
            Some(_) => parse_line(line).map(|change| journal.changes.push(change)),
        };
        if is_whole.is_none() {
            break;
        }
        whole += line.len();
    }
    journal.damaged = bytes.len() - whole;
    journal
}

/// `None` if the line is cut short, has another checksum, or other JSON.
fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let line = line.strip_suffix(b"\n")?;
    let (checksum, json) = (line.get(..16)?, line.get(17..)?);
    let is_whole = line.get(16) == Some(&b' ') && hash_parts([json]).as_bytes() == checksum;
    is_whole.then(|| serde_json::from_slice(json).ok()).flatten()
}
