//! glibc's heap: one for all threads, trimmed when confgen rests. It allocates nothing itself.
//!
//! A reconcile takes several times the memory of its result, and different threads render and publish. glibc would give each thread
//! a heap, and each heap would keep the memory of its largest action: 103 MB after some minutes of changes to 2,000 services, with
//! 22 MB in use. musl gives memory back by itself.

/// Makes all threads share one heap. To be called before there are any. Threads rarely allocate at the same time, so none waits.
#[cfg(target_env = "gnu")]
pub fn share_heap() {
    #[expect(unsafe_code, reason = "glibc's only other way is an environment variable of the process")]
    // SAFETY: no other thread exists yet, and nothing but malloc's own settings is touched.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns free memory to the kernel. The call takes a millisecond, or some tens after a long burst, and other threads that
/// allocate wait for it. So call it only while there is no work.
#[cfg(target_env = "gnu")]
pub fn trim_heap() {
    #[expect(unsafe_code, reason = "the standard library has no call for this")]
    // SAFETY: malloc_trim takes malloc's own locks, and touches only free memory.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
pub fn share_heap() {}

#[cfg(not(target_env = "gnu"))]
pub fn trim_heap() {}
