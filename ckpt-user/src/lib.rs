//! `ckpt`: incremental checkpoint and restart of running Linux processes, in user space, on a stock kernel.
//!
//! The three stories are [`checkpoint`], [`restart`] and (with a folder of images) [`watch`]; each reads top to bottom and calls
//! down into the layers below it, never up:
//!
//! ```text
//! cli -> checkpoint, restart, watch -> resources, pipeline, track -> tracee, image -> sys
//! ```
//!
//! The image layer knows nothing of ptrace, the tracee layer nothing of images, and nothing in this library prints.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("ckpt knows the registers, the vdso and the system calls of Linux on x86-64 only");

pub mod check;
pub mod checkpoint;
pub mod error;
pub mod ids;
pub mod image;
pub mod merge;
pub mod orphans;
pub mod page_set;
pub mod pipeline;
pub mod resources;
pub mod restart;
#[cfg(test)]
mod skip;
pub mod stand_in;
pub mod store;
pub mod sys;
pub mod tracee;
pub mod track;
pub mod watch;

pub use error::{Error, Refusal, Result};
