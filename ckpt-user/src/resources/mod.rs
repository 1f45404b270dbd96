//! One file per kind of kernel object, each with its record and the three verbs of SEED S19: collect (read it from a frozen task),
//! checkpoint (its record goes into the image, its pages into the streams), restore.
//!
//! Two families:
//! * *open files* ([`file::FileKind`]): what a descriptor refers to. Collected from outside, through a duplicate of the
//!   descriptor; restored by ckpt itself before the tasks are made, which inherit the descriptors and only put them in their places.
//! * *task state* ([`task::TaskResource`], [`task::ThreadResource`]): credentials, signals, timers, ... Collected from /proc and a
//!   batch of remote system calls; restored by remote system calls in the new task.
//!
//! A new kind is a new file and one line in `registry.rs`.

pub mod collector;
pub mod cpu;
pub mod file;
pub mod mm;
pub mod registry;
pub mod restorer;
pub mod task;
pub mod vma;

pub use collector::Collector;
pub use restorer::Restorer;
