//! glibc's heap, kept from growing with every burst of changes.
//!
//! A round takes several times the memory of what it leaves behind, and whichever thread is idle makes it. glibc would
//! give each thread a heap of its own, and keep in each what its largest round has taken: 103 MB after some minutes of
//! changes to 2,000 services, of which 22 MB were in use. musl gives memory back by itself.

/// Has all threads share one heap; to be called before there are any. They allocate little at once: none waits for it.
#[cfg(target_env = "gnu")]
pub fn share() {
    #[expect(unsafe_code, reason = "but for this, glibc listens only to a variable of whoever starts the process")]
    // SAFETY: no other thread exists yet, and nothing but malloc's own settings is touched.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free: a millisecond, some tens of them after a long burst, in which other threads that allocate
/// wait. For when nothing else is to be done.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    #[expect(unsafe_code, reason = "glibc has no safe way to be asked")]
    // SAFETY: it takes malloc's own locks, and touches only what is free.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
pub fn share() {}

#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
