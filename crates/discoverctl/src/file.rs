//! Reading the small files that an operator names.

use std::io;
use std::path::Path;

use crate::error::Error;

/// Reads a file that an option names, for example `--api-token-file`.
///
/// # Errors
/// [`Error::Usage`] with the option, the path and the way out.
pub(crate) fn read(option: &str, path: &Path) -> Result<Vec<u8>, Error> {
    read_small(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; run discoverctl as root, or name a copy of your own in ~/.config/haproxy-discover/discoverctl.toml"
            }
            _ => "",
        };
        Error::Usage(format!("{option} {} can't be read: {error}{hint}", path.display()))
    })
}

/// Reads a regular file of at most 1 MiB.
///
/// # Errors
/// The system's, or in words why the file is none to read.
pub(crate) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    regular_file::read(path, regular_file::SMALL)
}
