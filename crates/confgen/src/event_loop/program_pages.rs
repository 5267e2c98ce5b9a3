//! Unmaps pages of the program and its libraries, once confgen rests. Only the start needed most of them. This module changes no page.
//!
//! The start runs nearly all of the program once: options, regular expressions, TLS, the first listing. The kernel maps 16 pages for
//! each one that is touched, so nearly the whole program becomes resident, and only a shortage of memory would change that.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

/// confgen then touches some hundred groups of 16 pages again. The kernel maps each in a microsecond, without the disk.
const AT_MOST_EVERY: Duration = Duration::from_secs(3600);

/// The time of the last release. `None` before the first one.
static RELEASED_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// Unmaps all pages of the program and its libraries, unless it did so within the last hour. The code that runs is mapped again from
/// the kernel's page cache, which keeps all pages as long as it has room.
pub fn release_program_pages() {
    let mut released_at = RELEASED_AT.lock().unwrap_or_else(PoisonError::into_inner);
    if released_at.is_some_and(|at| at.elapsed() < AT_MOST_EVERY) {
        return;
    }
    *released_at = Some(Instant::now());
    // A kernel without this file keeps the pages. That costs only memory.
    let Ok(mappings) = Process::myself().and_then(|process| process.smaps()) else { return };
    mappings.iter().filter(|mapping| is_as_in_file(mapping)).for_each(unmap_pages);
}

/// True if the mapping has nothing but what its file has. Constants with addresses in them are not as in the file: the loader has
/// written the addresses. A debugger's breakpoints are private pages too.
fn is_as_in_file(mapping: &MemoryMap) -> bool {
    let is_file = matches!(mapping.pathname, MMapPath::Path(_));
    let is_shared_out = mapping.perms.intersects(MMPermissions::WRITE | MMPermissions::SHARED);
    is_file && !is_shared_out && mapping.extension.map.get("Anonymous") == Some(&0)
}

fn unmap_pages(mapping: &MemoryMap) {
    let (start, end) = mapping.address;
    let Ok(length) = usize::try_from(end - start) else { return };
    #[expect(unsafe_code, reason = "the standard library has no call for this")]
    // SAFETY: the mapping is read-only and has no private page, so the kernel maps the same bytes again at the next access.
    unsafe {
        nix::libc::madvise(start as *mut nix::libc::c_void, length, nix::libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use procfs::FromBufRead as _;
    use procfs::process::MemoryMaps;

    use super::*;

    #[test]
    fn only_mappings_that_are_as_in_their_files_are_unmapped() {
        let smaps = [
            ("r--p 00000000 fd:00 7 /usr/bin/confgen", 0, true),
            ("r-xp 00001000 fd:00 7 /usr/bin/confgen", 0, true),
            // A debugger has set a breakpoint.
            ("r-xp 00001000 fd:00 7 /usr/bin/confgen", 4, false),
            // The loader has written addresses into it.
            ("r--p 00002000 fd:00 7 /usr/bin/confgen", 400, false),
            ("rw-p 00003000 fd:00 7 /usr/bin/confgen", 0, false),
            ("rw-s 00000000 fd:00 7 /dev/shm/shared", 0, false),
            ("r--s 00000000 fd:00 7 /dev/shm/shared", 0, false),
            ("r--p 00000000 00:00 0 ", 0, false),
            ("r-xp 00000000 00:00 0 [vdso]", 0, false),
        ];
        for (mapping, anonymous, expected) in smaps {
            let text = format!("1000-2000 {mapping}\nRss: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr mw me\n");
            let mappings = MemoryMaps::from_buf_read(text.as_bytes()).unwrap();
            assert_eq!(mappings.iter().map(is_as_in_file).collect::<Vec<_>>(), [expected], "{text}");
        }
        let without = MemoryMaps::from_buf_read(&b"1000-2000 r-xp 00001000 fd:00 7 /usr/bin/confgen\n"[..]).unwrap();
        assert!(!without.iter().any(is_as_in_file), "a kernel that doesn't tell");
    }

    #[test]
    fn the_program_runs_on_without_its_pages() {
        let code = || {
            let mappings = Process::myself().unwrap().smaps().unwrap();
            let program = std::env::current_exe().unwrap();
            let is_code = |it: &&MemoryMap| {
                it.perms.contains(MMPermissions::EXECUTE) && it.pathname == MMapPath::Path(program.clone())
            };
            mappings.iter().filter(is_code).map(|it| it.extension.map["Rss"]).sum::<u64>()
        };
        let before = code();
        // Other tests run meanwhile, and touch their code again.
        let is_less = |_| {
            *RELEASED_AT.lock().unwrap() = None;
            release_program_pages();
            code() < before
        };
        assert!((0..100).any(is_less), "{before} bytes of code stay");
        release_program_pages();
        assert!(RELEASED_AT.lock().unwrap().is_some_and(|at| at.elapsed() < AT_MOST_EVERY));
    }
}
