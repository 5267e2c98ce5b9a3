//! Reads the small files that an operator names. Never waits for a pipe without a writer.

use std::io;
use std::path::Path;

use crate::error::Error;

/// Reads a file that an option names, for example `--api-token-file`.
///
/// # Errors
/// [`Error::Usage`] with the option, the path and the remedy.
pub(crate) fn read_option_file(option: &str, path: &Path) -> Result<Vec<u8>, Error> {
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

/// Reads a file of at most 1 MiB.
///
/// # Errors
/// The system's error, or the reason why this is no file to read.
pub(crate) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    regular_file::read(path, regular_file::SMALL)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_regular_files_are_read_and_nothing_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("discoverctl-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        let put = |name: &str, bytes: &[u8]| File::create(path(name)).unwrap().write_all(bytes).unwrap();
        put("token", b"secret\n");
        put("large", &vec![b'x'; regular_file::SMALL as usize + 1]);
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read_small(&path("token")).unwrap(), b"secret\n");
        for (name, why) in [("pipe", "FIFO"), ("large", "longer"), (".", "directory"), ("none", "No such file")] {
            let error = read_option_file("--api-token-file", &path(name)).unwrap_err().to_string();
            assert!(error.starts_with("--api-token-file /") && error.contains(why), "{name}: {error}");
        }
        assert!(read_small(Path::new("/dev/zero")).unwrap_err().to_string().contains("device"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
