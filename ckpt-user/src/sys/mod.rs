//! The kernel's door: raw system calls, kernel structs with their layouts asserted, /proc, feature probes. The home of `unsafe`.

pub mod child;
pub mod clone;
pub mod deadline;
pub mod fcntl;
pub mod handle;
pub mod inotify;
pub mod kcmp;
pub mod mounts;
pub mod pagemap;
pub mod pidfd;
pub mod prctl;
pub mod probe;
pub mod procfs;
pub mod ptrace;
pub mod ptrace_state;
pub mod queue;
pub mod sched;
pub mod signal;
pub mod signalfd;
pub mod socket;
pub mod sparse;
pub mod task_file;
pub mod timerfd;
pub mod unix_diag;
pub mod vm;
