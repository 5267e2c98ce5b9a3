//! Unmaps pages of the program and its libraries, once confgen rests. Only the start needed most of them. This module changes no page.
//!
//! The start runs nearly all of the program once: options, regular expressions, TLS, the first listing. The kernel maps 16 pages for
//! each one that is touched, so nearly the whole program becomes resident, and only a shortage of memory would change that.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
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
    // After the mappings: a library that was loaded in between is in no mapping of the list.
    let segments = list_loaded_segments();
    let unchanged = mappings.iter().filter(|mapping| is_as_in_file(mapping) && is_loaded(mapping, &segments));
    unchanged.for_each(unmap_pages);
}

/// True if the mapping is a part of the program or of a library. Another thread may unmap any other file at any time, such as the
/// standard library while it prints a backtrace, and get private memory at the same addresses. Nothing unloads a library.
fn is_loaded(mapping: &MemoryMap, segments: &[Range<u64>]) -> bool {
    let (start, end) = mapping.address;
    segments.iter().any(|segment| segment.start < end && start < segment.end)
}

/// The addresses of the program and its libraries, by the dynamic loader.
fn list_loaded_segments() -> Vec<Range<u64>> {
    /// Adds the segments of one of them. `list` is the list below.
    #[expect(unsafe_code, reason = "the loader tells them in a callback")]
    unsafe extern "C" fn add_segments(info: *mut libc::dl_phdr_info, _: libc::size_t, list: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid description for the time of the call, with `dlpi_phnum` headers, and the list that
        // `dl_iterate_phdr` was given, which nothing else uses meanwhile.
        let (info, list) = unsafe { (&*info, &mut *list.cast::<Vec<Range<u64>>>()) };
        // SAFETY: as above.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
            let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
            list.push(start..start.saturating_add(header.p_memsz));
        }
        0
    }
    let mut segments: Vec<Range<u64>> = Vec::new();
    #[expect(unsafe_code, reason = "the standard library has no call for this")]
    // SAFETY: the callback takes the list as what it is, and doesn't panic but for a lack of memory, which aborts.
    unsafe {
        libc::dl_iterate_phdr(Some(add_segments), (&raw mut segments).cast());
    }
    segments
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
    // SAFETY: the mapping belongs to the program or a library, so it stays. It is read-only and has no private page, and only the
    // loader writes into such mappings, before it runs the library. So the kernel maps the same bytes again at the next access.
    unsafe {
        libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED);
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
    fn only_the_program_and_its_libraries_are_loaded() {
        let segments = list_loaded_segments();
        let mapping_at = |address: u64| {
            let mappings = Process::myself().unwrap().maps().unwrap();
            mappings.into_iter().find(|it| (it.address.0..it.address.1).contains(&address)).unwrap()
        };
        let own_code = mapping_at(release_program_pages as *const () as u64);
        assert!(is_loaded(&own_code, &segments), "{own_code:?}");
        let libc_code = mapping_at(libc::getpid as *const () as u64);
        assert!(is_loaded(&libc_code, &segments), "{libc_code:?}");
        // The same file a second time, as a backtrace maps it.
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let (no_hint, fd) = (std::ptr::null_mut(), std::os::fd::AsRawFd::as_raw_fd(&file));
        #[expect(unsafe_code, reason = "the test needs another mapping of the file")]
        // SAFETY: the kernel chooses a free address, and nothing writes there.
        let other = unsafe { libc::mmap(no_hint, 4_096, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
        assert_ne!(other, libc::MAP_FAILED);
        let mapping = mapping_at(other as u64);
        assert!(is_as_in_file_but_for_smaps(&mapping) && !is_loaded(&mapping, &segments), "{mapping:?}");
    }

    /// `maps` doesn't tell private pages.
    fn is_as_in_file_but_for_smaps(mapping: &MemoryMap) -> bool {
        matches!(mapping.pathname, MMapPath::Path(_)) && !mapping.perms.contains(MMPermissions::WRITE)
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
