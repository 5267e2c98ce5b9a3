//! Reads a file whose path a person gave. The crate refuses everything that is not a regular file of a bounded length, so
//! that a FIFO, a device or an endless file can neither block a program nor fill its memory. It also has the only way in which
//! the programs replace a file: [`Temporary`].

mod temporary;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

pub use temporary::Temporary;

/// 1 MiB. Enough for a certificate with its chain, a bundle of CA certificates, a password or a token. Debian's whole
/// bundle (`ca-certificates.crt`) has 220 kB.
pub const SMALL: u64 = 1 << 20;

/// 16 MiB. Enough for a configuration file or a document that a person or a script writes.
pub const LARGE: u64 = 16 << 20;

/// Reads a regular file of at most `longest` bytes. Links are followed. A pipe that a shell hands over is read too, as in
/// `--cacert <(pass show ca)`: the shell has opened its other end already.
///
/// # Errors
/// If the path leads to something else than a regular file, if the file is longer, or if the system refuses.
pub fn read(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    if is_handed_over(path)? {
        return read_at_most(File::open(path)?, longest);
    }
    read_at_most(open(path, longest)?, longest)
}

/// True if a regular file has just this content, which is in pieces, one after another. It reads only a file of this length, and
/// that up to the first difference.
///
/// # Errors
/// As [`read`], except that a longer file has other content.
pub fn has_content<'a>(path: &Path, content: impl IntoIterator<Item = &'a [u8]> + Clone) -> io::Result<bool> {
    let file = open(path, u64::MAX)?;
    if file.metadata()?.len() != content.clone().into_iter().map(|piece| piece.len() as u64).sum::<u64>() {
        return Ok(false);
    }
    let mut file = BufReader::with_capacity(16 * 1024, file);
    for mut left in content {
        while !left.is_empty() {
            let found = fill_buffer(&mut file)?;
            let (part, rest) = left.split_at(found.len().min(left.len()));
            if part.is_empty() || !found.starts_with(part) {
                return Ok(false);
            }
            file.consume(part.len());
            left = rest;
        }
    }
    Ok(fill_buffer(&mut file)?.is_empty())
}

/// The bytes that were read and not consumed, or the next ones. Empty at the end of the file.
fn fill_buffer(file: &mut BufReader<File>) -> io::Result<&[u8]> {
    while file.buffer().is_empty() {
        match file.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    Ok(file.buffer())
}

/// Opens a regular file of at most `longest` bytes.
fn open(path: &Path, longest: u64) -> io::Result<File> {
    // Opening has an effect on some devices: a watchdog starts, a tape winds back. So the kind is asked for first.
    check_kind_and_length(&fs::metadata(path)?, longest)?;
    // The file may be replaced in between. `O_NONBLOCK` opens a FIFO without waiting for its writer, and has no effect
    // on a regular file. The standard library adds `O_CLOEXEC`.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    check_kind_and_length(&file.metadata()?, longest)?;
    Ok(file)
}

/// Reads the text of a regular file of at most `longest` bytes.
///
/// # Errors
/// As [`read`], or if the file is not UTF-8.
pub fn read_text(path: &Path, longest: u64) -> io::Result<String> {
    String::from_utf8(read(path, longest)?).map_err(|_| invalid_input("it is not UTF-8 text"))
}

/// True for a pipe that is one of this process's own descriptors.
fn is_handed_over(path: &Path) -> io::Result<bool> {
    let is_descriptor = ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder));
    Ok(is_descriptor && fs::metadata(path)?.file_type().is_fifo())
}

/// A file may grow while it is read, and files below `/proc` say that they have no length at all.
fn read_at_most(file: File, longest: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let length = file.take(longest.saturating_add(1)).read_to_end(&mut content)?;
    if u64::try_from(length).unwrap_or(u64::MAX) > longest { Err(too_long_error(longest)) } else { Ok(content) }
}

fn check_kind_and_length(found: &Metadata, longest: u64) -> io::Result<()> {
    let kind = found.file_type();
    let special = [
        (kind.is_dir(), "directory"),
        (kind.is_fifo(), "FIFO"),
        (kind.is_socket(), "socket"),
        (kind.is_char_device(), "character device"),
        (kind.is_block_device(), "block device"),
    ];
    if let Some((_, name)) = special.iter().find(|(is, _)| *is) {
        return Err(invalid_input(&format!("it is a {name}, not a regular file")));
    }
    if !kind.is_file() {
        return Err(invalid_input("it is not a regular file"));
    }
    if found.len() > longest { Err(too_long_error(longest)) } else { Ok(()) }
}

fn too_long_error(longest: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {longest} bytes, the most that is read"))
}

fn invalid_input(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn refusal(path: &Path) -> String {
        read(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn a_regular_file_is_read_whole_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "0123456789").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 10).unwrap(), b"0123456789");
        assert_eq!(read(&file, 9).unwrap_err().to_string(), "it is longer than 9 bytes, the most that is read");
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(read_text(&file, 10).unwrap_err().to_string(), "it is not UTF-8 text");
        fs::write(&file, "").unwrap();
        assert_eq!(read_text(&file, 10).unwrap(), "");
    }

    #[test]
    fn a_file_has_its_content_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (file, long) = (dir.path().join("file"), "0123456789".repeat(4_000));
        fs::write(&file, &long).unwrap();
        let has = |content: &[&[u8]]| has_content(&file, content.iter().copied());
        assert!(has(&[long.as_bytes()]).unwrap());
        let (begin, rest) = long.as_bytes().split_at(20_001);
        assert!(has(&[begin, b"", rest]).unwrap() && !has(&[rest, begin]).unwrap() && !has(&[begin]).unwrap());
        let others =
            [String::new(), long.clone() + "0", long.split_at(39_999).0.to_owned(), long.replacen('0', "1", 1)];
        assert!(others.iter().all(|other| !has(&[other.as_bytes()]).unwrap()));
        fs::write(&file, "").unwrap();
        assert!(has(&[b""]).unwrap() && has(&[]).unwrap() && !has(&[b"0"]).unwrap());
        assert!(has_content(dir.path(), [&b""[..]]).is_err(), "a directory");
    }

    #[test]
    fn special_files_are_refused_by_name_and_block_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        symlink(path("fifo"), path("to-fifo")).unwrap();
        symlink(path("loop"), path("loop")).unwrap();
        for (name, words) in [
            ("fifo", "it is a FIFO"),
            ("to-fifo", "it is a FIFO"),
            ("socket", "it is a socket"),
            (".", "it is a directory"),
            ("/dev/zero", "it is a character device"),
            ("/dev/stdin/..", ""),
            ("loop", "symbolic links"),
            ("nothing", "No such file"),
        ] {
            assert!(refusal(&path(name)).contains(words), "{name}: {}", refusal(&path(name)));
        }
    }

    #[test]
    fn a_pipe_that_a_shell_hands_over_is_read() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"secret").unwrap();
        drop(writer);
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        assert_eq!(read(Path::new(&path), 10).unwrap(), b"secret");
    }

    #[test]
    fn a_file_without_a_length_is_read_up_to_its_bound_too() {
        // The system gives its length as 0, and it has more than ten bytes.
        assert!(refusal(Path::new("/proc/self/stat")).starts_with("it is longer"));
        assert!(read(Path::new("/proc/self/stat"), SMALL).is_ok_and(|content| !content.is_empty()));
    }
}
