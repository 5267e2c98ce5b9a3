//! The lock of a state directory. Two processes of confgen would remove each other's temporary files and overwrite each other's state.
//! This module locks nothing else, such as haproxy.cfg.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Error, io_error};

/// The lock's file. It is never removed, since another process may have opened it and be about to lock it.
const NAME: &str = "lock";
/// The time between two attempts.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Takes the lock, and waits at most `within` for another process. The kernel releases it if this process dies.
pub fn take_lock(state_dir: &Path, within: Duration) -> Result<Flock<File>, Error> {
    let path = state_dir.join(NAME);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut lock = lock_within(file.map_err(io_error("open", &path))?, within).map_err(|errno| match errno {
        Errno::EWOULDBLOCK => io_error("lock", state_dir)(in_use_error(&path)),
        errno => io_error("lock", &path)(errno.into()),
    })?;
    // The pid is for operators, and for the error of a second confgen.
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", process::id()));
    if let Err(error) = written {
        // The lock holds all the same. A full disk must not keep confgen from its start.
        tracing::warn!(error = %io_error("write", &path)(error), "can't write the pid into the lock file");
    }
    Ok(lock)
}

fn lock_within(mut file: File, within: Duration) -> Result<Flock<File>, Errno> {
    let deadline = Instant::now() + within;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => file,
            Err((_, errno)) => return Err(errno),
        };
        sleep(TRY_EVERY);
    }
}

fn in_use_error(path: &Path) -> io::Error {
    let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    // The other process may not have written its pid yet, or its disk was full.
    let holder = pid.map_or("another confgen".to_owned(), |pid| format!("confgen (pid {pid})"));
    io::Error::other(format!("in use by {holder}; stop it, or set another --state-dir"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::TempFiles;

    #[test]
    fn a_second_confgen_is_told_the_pid_of_the_first() {
        let place = TempFiles::with_folders(&[]);
        let take = || take_lock(&place.path(""), Duration::ZERO);
        let lock = take().unwrap();
        let words = format!("in use by confgen (pid {});", process::id());
        let refused = take().unwrap_err().to_string();
        assert!(refused.starts_with(&format!("can't lock {}: {words}", place.path("").display())), "{refused}");
        // Without a pid in the file, the error names none.
        File::create(place.path(NAME)).unwrap();
        let refused = take().unwrap_err().to_string();
        assert!(refused.contains(": in use by another confgen; stop it"), "{refused}");
        drop(lock);
        take().unwrap();
    }

    #[test]
    fn a_lock_waits_for_a_confgen_that_ends() {
        let place = TempFiles::with_folders(&[]);
        let lock = take_lock(&place.path(""), Duration::ZERO).unwrap();
        let (begun, within) = (Instant::now(), Duration::from_millis(200));
        take_lock(&place.path(""), within).unwrap_err();
        assert!(begun.elapsed() >= within, "{:?}", begun.elapsed());
        std::thread::scope(|scope| {
            let next = scope.spawn(|| take_lock(&place.path(""), Duration::from_secs(30)).map(drop));
            drop(lock);
            next.join().unwrap().unwrap();
        });
    }
}
