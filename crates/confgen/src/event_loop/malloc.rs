//! glibc's heap: one for all threads, trimmed when confgen rests, and without large blocks. It allocates nothing itself.
//!
//! A reconcile takes several times the memory of its result, and different threads render and publish. glibc would give each thread
//! a heap, and each heap would keep the memory of its largest action: 103 MB after some minutes of changes to 2,000 services, with
//! 22 MB in use. musl gives memory back by itself.

#[cfg(target_env = "gnu")]
use std::fs;
#[cfg(target_env = "gnu")]
use std::sync::atomic::{AtomicU64, Ordering};

/// A block of this size, in bytes, is no part of the heap, so the kernel has its memory back once it is freed. HAProxy's lists and
/// haproxy.cfg have megabytes with thousands of servers. glibc by itself takes larger and larger blocks into the heap, up to 32 MiB.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: i32 = 256 << 10;

/// The kernel gets the end of the heap back once so much is free there, in bytes. Less would give back what the next action takes again.
#[cfg(target_env = "gnu")]
const FREE_END: i32 = 1 << 20;

/// Makes all threads share one heap, and keeps large blocks out of it. To be called before there are any threads. Threads rarely allocate
/// at the same time, so none waits.
#[cfg(target_env = "gnu")]
pub fn share_heap() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    #[expect(unsafe_code, reason = "glibc's only other way is an environment variable of the process")]
    // SAFETY: no other thread exists yet, and nothing but malloc's own settings is touched.
    unsafe {
        mallopt(M_ARENA_MAX, 1);
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK);
        mallopt(M_TRIM_THRESHOLD, FREE_END);
    }
}

/// The process may have this much more memory of its own than after the last trim. A trim costs more than a change of a few
/// upstreams, and the next change takes the memory again.
#[cfg(target_env = "gnu")]
const WORTH_A_TRIM: u64 = 1 << 20;

/// The memory of its own after the last trim, in bytes.
#[cfg(target_env = "gnu")]
static TRIMMED: AtomicU64 = AtomicU64::new(0);

/// Returns free memory to the kernel if the process has grown since the last call that did. A trim takes a millisecond, or some tens
/// after a long burst, and other threads that allocate wait for it. So call this only while there is no work.
#[cfg(target_env = "gnu")]
pub fn trim_heap() {
    if own_memory().is_some_and(|now| now < TRIMMED.load(Ordering::Relaxed).saturating_add(WORTH_A_TRIM)) {
        return;
    }
    #[expect(unsafe_code, reason = "the standard library has no call for this")]
    // SAFETY: malloc_trim takes malloc's own locks, and touches only free memory.
    unsafe {
        nix::libc::malloc_trim(0);
    }
    TRIMMED.store(own_memory().unwrap_or_default(), Ordering::Relaxed);
}

/// The resident memory of this process without the pages of files, in bytes. `None` if the kernel doesn't tell.
#[cfg(target_env = "gnu")]
fn own_memory() -> Option<u64> {
    // The second number counts resident pages, and the third those among them that are of files (proc(5)).
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut counts = statm.split(' ').skip(1).map_while(|count| count.parse::<u64>().ok());
    let pages = counts.next()?.checked_sub(counts.next()?)?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(not(target_env = "gnu"))]
pub fn share_heap() {}

#[cfg(not(target_env = "gnu"))]
pub fn trim_heap() {}
