//! Reads the small files that handover leaves for confgen beside the masters' sockets. It knows nothing of their content.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Reads at most `limit` bytes of a regular file, and the time of its last change. `None` for a file that a lesser user may
/// have put there.
pub(crate) fn read_trusted(path: &Path, limit: usize) -> Option<(Vec<u8>, SystemTime)> {
    // confgen may be root, and a lesser user may have put something else there. So this follows no link, and waits for
    // no FIFO.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    // Without root's rights, confgen takes the file of any user: handover may run as a third one.
    let is_trusted = [0, geteuid().as_raw()].contains(&metadata.uid()) || !geteuid().is_root();
    if !metadata.is_file() || !is_trusted {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some((bytes, metadata.modified().ok()?))
}
