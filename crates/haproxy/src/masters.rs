//! Where the masters of a HAProxy under handover listen.
//!
//! Each start has a master with a socket of its own. It answers for its worker until that has ended, while a
//! worker's own stats socket falls silent as soon as it is told to finish.

use std::path::{Path, PathBuf};

/// How a master's socket is called: the name of its start, and this.
pub const SUFFIX: &str = ".sock";

/// The directory of the masters' sockets: `handover/` beside the runtime socket.
pub fn directory(runtime_socket: &Path) -> PathBuf {
    runtime_socket.with_file_name("handover")
}
