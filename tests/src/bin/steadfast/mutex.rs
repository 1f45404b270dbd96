//! Mutexes of the C library that the kernel knows of: robust ones, and those with priority inheritance.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter under a mutex. It is leaked: its users are all threads of the program.
pub struct Counter {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    value: AtomicU64,
}

// SAFETY: a pthread mutex is made to be used from several threads.
unsafe impl Sync for Counter {}

/// What kind of mutex.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The kernel marks it when its holder dies.
    Robust,
    /// The kernel queues those who wait.
    PriorityInheritance,
}

impl Counter {
    /// A new one, at zero.
    pub fn new(kind: Kind) -> &'static Counter {
        let mut attributes = MaybeUninit::uninit();
        let mut mutex = MaybeUninit::uninit();
        // SAFETY: each object is initialised before it is used.
        unsafe {
            expect_zero(libc::pthread_mutexattr_init(attributes.as_mut_ptr()));
            expect_zero(match kind {
                Kind::Robust => libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST),
                Kind::PriorityInheritance => {
                    libc::pthread_mutexattr_setprotocol(attributes.as_mut_ptr(), libc::PTHREAD_PRIO_INHERIT)
                }
            });
            expect_zero(libc::pthread_mutex_init(mutex.as_mut_ptr(), attributes.as_ptr()));
            // It must not be moved once it is in use, so its place is on the heap.
            Box::leak(Box::new(Counter { mutex: UnsafeCell::new(mutex.assume_init()), value: AtomicU64::new(0) }))
        }
    }

    /// The result of pthread_mutex_lock.
    pub fn lock(&self) -> i32 {
        // SAFETY: the mutex is initialised and never moves.
        unsafe { libc::pthread_mutex_lock(self.mutex.get()) }
    }

    /// The result of pthread_mutex_unlock.
    pub fn unlock(&self) -> i32 {
        // SAFETY: as above.
        unsafe { libc::pthread_mutex_unlock(self.mutex.get()) }
    }

    /// Adds one, in two steps that only the mutex makes one.
    pub fn increment(&self) -> Result<(), String> {
        let locked = self.lock();
        let value = self.value.load(Ordering::Relaxed);
        self.value.store(value + 1, Ordering::Relaxed);
        let unlocked = self.unlock();
        if (locked, unlocked) == (0, 0) { Ok(()) } else { Err(format!("a mutex gave {locked} and {unlocked}")) }
    }

    /// How often it was incremented.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

fn expect_zero(result: i32) {
    assert_eq!(result, 0, "cannot make a mutex");
}
