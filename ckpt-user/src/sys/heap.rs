//! What the C library's allocator does with memory that is given back to it.

/// Has it keep what was given back for whoever wants some next. Otherwise large pieces go back to the kernel at once, which has to clear new pages for those
/// that come after. In a cut of a job that writes a lot, while that stands still, this takes as long as all that is computed of the plan.
///
/// Only glibc can be told.
pub fn keep_what_is_freed() {
    #[cfg(target_env = "gnu")]
    {
        /// The most that glibc takes for this: half of what one of its heaps can have.
        const LARGEST_FROM_HEAP: libc::c_int = 32 << 20;
        /// Bytes at the end of a heap.
        const KEPT_MOST: libc::c_int = 128 << 20;
        for (setting, value) in [(libc::M_MMAP_THRESHOLD, LARGEST_FROM_HEAP), (libc::M_TRIM_THRESHOLD, KEPT_MOST)] {
            // SAFETY: it sets a number of the allocator's, under its lock.
            if unsafe { libc::mallopt(setting, value) } == 0 {
                tracing::debug!("malloc does not take {value} for its setting {setting}");
            }
        }
    }
}
