//! The old HAProxys that handover has cut off, because there were too many or they had too much memory. handover counts them in
//! a file, confgen shows the counters.
//!
//! The file is beside the masters' sockets, and a boot removes it. It always has the same size, so that a full disk doesn't
//! prevent an update.

use std::path::Path;
use std::time::SystemTime;

use crate::{left_file, masters};

/// The file's name in the directory of the masters' sockets.
pub const FILE: &str = "cut-off";

/// The file's size in bytes: two numbers of 20 digits, a blank and a line feed.
const SIZE: usize = 42;

/// The HAProxys that were cut off since the boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cutoffs {
    /// The number of HAProxys.
    pub processes: u64,
    /// The client connections that they had.
    pub connections: u64,
    /// The time of the last one. `None` if there was none.
    pub last: Option<SystemTime>,
}

impl Cutoffs {
    /// Parses the file's content. Anything else counts as no cut-off.
    pub fn parse(text: &str) -> Self {
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(processes)), Some(Ok(connections))) => Self { processes, connections, last: None },
            _ => Self::default(),
        }
    }

    /// Makes the file's whole content.
    pub fn encode(&self) -> String {
        format!("{:>20} {:>20}\n", self.processes, self.connections)
    }

    /// Adds one HAProxy with so many connections.
    #[must_use]
    pub fn with_another(self, connections: u64) -> Self {
        Self {
            processes: self.processes.saturating_add(1),
            connections: self.connections.saturating_add(connections),
            ..self
        }
    }
}

/// Reads the counters of the HAProxys on that socket. All are zero without handover.
pub fn read_cutoffs(runtime_socket: &Path) -> Cutoffs {
    let mut left =
        masters::candidate_directories(runtime_socket).filter_map(|dir| left_file::read_trusted(&dir.join(FILE), SIZE));
    let Some((bytes, modified)) = left.next() else { return Cutoffs::default() };
    let counted = Cutoffs::parse(&String::from_utf8_lossy(&bytes));
    Cutoffs { last: (counted.processes > 0).then_some(modified), ..counted }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        assert_eq!(read_cutoffs(&socket), Cutoffs::default(), "without handover");
        let masters = masters::nested_directory(&socket);
        std::fs::create_dir(&masters).unwrap();
        let two = Cutoffs::default().with_another(40).with_another(2);
        assert_eq!(two.encode().len(), SIZE);
        std::fs::write(masters.join(FILE), two.encode()).unwrap();
        let read = read_cutoffs(&socket);
        assert_eq!((read.processes, read.connections), (2, 42));
        assert!(read.last.is_some());
        std::fs::write(masters.join(FILE), "garbage").unwrap();
        assert_eq!(read_cutoffs(&socket), Cutoffs::default());
    }

    #[test]
    fn the_largest_numbers_have_room() {
        let most = Cutoffs { processes: u64::MAX, connections: u64::MAX, last: None };
        assert_eq!(most.encode().len(), SIZE);
        assert_eq!(Cutoffs::parse(&most.with_another(1).encode()), most);
    }
}
