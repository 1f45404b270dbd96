//! Copies of the kernel's own records, piece by piece: which records they are, user space finds out from what it has read before.
//!
//! The program is an iterator over tasks (BPF_TRACE_ITER) that writes once for each time it is run, whatever tasks there are: the
//! [`LENGTH`] bytes at [`ADDRESS`], or nothing where no memory is. If the address is 0, it writes the address of the first task's
//! task_struct, from which everything else is found.

/// The iterator program.
pub const PROGRAM: &str = "peek";
/// The map of what is asked: an array of two numbers.
pub const REQUEST: &str = "PEEK";

/// The index in [`REQUEST`] of the address.
pub const ADDRESS: u32 = 0;
/// The index in [`REQUEST`] of the number of bytes, at most [`LENGTH_MAX`].
pub const LENGTH: u32 = 1;

/// Bytes that are copied at a time.
pub const LENGTH_MAX: usize = 4096;
