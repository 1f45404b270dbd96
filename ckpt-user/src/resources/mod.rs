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

pub mod affinity;
pub mod answer;
pub mod build_id;
pub mod capabilities;
pub mod collector;
pub mod comm;
pub mod content;
pub mod controlling;
pub mod coredump_filter;
pub mod cpu;
pub mod credentials;
pub mod descriptors;
pub mod device;
pub mod directory;
pub mod dumpable;
pub mod epoll;
pub mod eventfd;
pub mod external;
pub mod fanotify;
pub mod fd_table;
#[cfg(test)]
mod fd_trial;
pub mod fifo;
pub mod file;
pub mod file_system;
pub mod fs_state;
pub mod gaps;
pub mod hierarchy;
pub mod holders;
pub mod in_flight;
pub mod inode_name;
pub mod inotify;
pub mod ioprio;
pub mod itimer;
pub mod lock;
pub mod lsm;
pub mod machine;
pub mod mapped_file;
pub mod membarrier;
pub mod memory;
pub mod mempolicy;
pub mod mm;
pub mod mqueue;
pub mod multicast;
pub mod named_file;
pub mod netlink;
pub mod oom;
pub mod outsiders;
pub mod pages;
pub mod pdeathsig;
pub mod pending;
pub mod personality;
pub mod pidfd;
pub mod pipe;
pub mod pipe_queue;
pub mod placeholder;
pub mod posix_timer;
pub mod preflight;
pub mod process_file;
pub mod process_flags;
pub mod pty;
pub mod pty_masters;
pub mod pty_pair;
pub mod pty_queue;
#[cfg(test)]
mod pty_tests;
pub mod registry;
pub mod regular;
pub mod restorer;
pub mod reuseport;
pub mod rlimit;
pub mod robust_list;
pub mod rseq;
pub mod sched;
pub mod seccomp;
pub mod sharing;
pub mod sigaltstack;
pub mod signalfd;
pub mod signals;
pub mod socket;
pub mod socket_options;
pub mod speculation;
pub mod sysv;
pub mod sysv_msg;
pub mod sysv_sem;
pub mod sysv_shm;
pub mod task;
pub mod task_registry;
pub mod tcp;
pub mod tcp_backlog;
pub mod tcp_connection;
pub mod tcp_ended;
pub mod tcp_restore;
pub mod tcp_sockets;
#[cfg(test)]
mod tcp_tests;
pub mod tcp_way;
pub mod terminals;
pub mod thread_flags;
pub mod tid_address;
pub mod timerfd;
pub mod timerslack;
pub mod tun;
pub mod tun_link;
pub mod udp;
pub mod unix;
pub mod unix_backlog;
pub mod unix_name;
pub mod unix_pair;
pub mod unix_peek;
pub mod unix_peer;
pub mod unix_queue;
pub mod unix_reconnect;
pub mod unix_senders;
#[cfg(test)]
mod unix_tests;
pub mod view;
pub mod vma;
pub mod written;

#[cfg(test)]
pub(crate) mod trial;
pub mod x86;

pub use collector::Collector;
pub use restorer::Restorer;
