//! One confgen a state directory: each would clear away what another has half written, and forget what it remembers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Error, failed};

/// Never removed: who has it open may be about to lock it.
const NAME: &str = "lock";
/// How often it is tried.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Takes it until it is dropped, or the process is dead, however it died. Whoever has it is waited for so long.
pub fn take(state_dir: &Path, within: Duration) -> Result<Flock<File>, Error> {
    let path = state_dir.join(NAME);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut lock = exclusive(file.map_err(failed("open", &path))?, within).map_err(|errno| match errno {
        Errno::EWOULDBLOCK => failed("use", state_dir)(refusal(&path)),
        errno => failed("lock", &path)(errno.into()),
    })?;
    // Whose it is, for people, and for the words of whoever is refused.
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", process::id()));
    if let Err(error) = written {
        // The lock holds all the same. A full disk must not keep confgen from its start.
        tracing::warn!("{}", failed("write", &path)(error));
    }
    Ok(lock)
}

fn exclusive(mut file: File, within: Duration) -> Result<Flock<File>, Errno> {
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

fn refusal(path: &Path) -> io::Error {
    let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let whose = pid.map(|pid| format!(", process {pid},")).unwrap_or_default();
    io::Error::other(format!(
        "another confgen{whose} works with it; stop that one, or give each a --state-dir of its own"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::Place;

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let place = Place::of(&[]);
        let take = || take(&place.path(""), Duration::ZERO);
        let lock = take().unwrap();
        let words = format!("another confgen, process {}, works with it;", process::id());
        let refused = take().unwrap_err().to_string();
        assert!(refused.starts_with(&format!("use {}: {words}", place.path("").display())), "{refused}");
        // Not even that can be told.
        File::create(place.path(NAME)).unwrap();
        let refused = take().unwrap_err().to_string();
        assert!(refused.contains(": another confgen works with it;"), "{refused}");
        drop(lock);
        take().unwrap();
    }

    #[test]
    fn one_that_ends_is_waited_for() {
        let place = Place::of(&[]);
        let lock = take(&place.path(""), Duration::ZERO).unwrap();
        let (begun, within) = (Instant::now(), Duration::from_millis(200));
        take(&place.path(""), within).unwrap_err();
        assert!(begun.elapsed() >= within, "{:?}", begun.elapsed());
        std::thread::scope(|scope| {
            let next = scope.spawn(|| take(&place.path(""), Duration::from_secs(30)).map(drop));
            drop(lock);
            next.join().unwrap().unwrap();
        });
    }
}
