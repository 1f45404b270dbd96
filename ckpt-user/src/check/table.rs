//! The table of what ckpt uses of the kernel, and how each is tried. One more is one more row.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use super::Row;
use crate::error::Error;
use crate::ids::{Addr, Pid, Tid};
use crate::sys::pagemap::PageMap;
use crate::sys::userfaultfd::{WP_ASYNC, WP_UNPOPULATED};
use crate::sys::vm::{self, Piece};
use crate::sys::{kcmp, pidfd, probe, ptrace, ptrace_state, soft_dirty};
use crate::track::ebpf::{TaskInspector, prepare_for_ptys};

/// For what the kernel is asked about in vain.
fn lacking() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSYS)
}

fn yes(_: ()) -> String {
    String::new()
}

/// The errors of this library carry those of the kernel.
fn os(error: Error) -> io::Error {
    error.errno().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

fn myself() -> Pid {
    Pid(std::process::id() as i32)
}

const PTRACE_RIGHT: &str = "CAP_SYS_PTRACE, or the same user and a lower /proc/sys/kernel/yama/ptrace_scope";

pub(super) const TABLE: &[Row] = &[
    Row {
        name: "ptrace: PTRACE_SEIZE and PTRACE_INTERRUPT",
        essential: true,
        probe: |bench| bench.tracee().map(|_| String::new()),
        since: "Linux 3.4",
        right: PTRACE_RIGHT,
        lost: "everything",
    },
    Row {
        name: "ptrace of other users' processes",
        essential: false,
        probe: |_| other_users(),
        since: "",
        right: "CAP_SYS_PTRACE",
        lost: "checkpoints of processes that belong to others",
    },
    Row {
        name: "ptrace: extended state (NT_X86_XSTATE)",
        essential: true,
        probe: |bench| ptrace::get_xstate(bench.tracee()?).map(|area| format!("{} bytes", area.len())),
        since: "Linux 2.6.34",
        right: PTRACE_RIGHT,
        lost: "the vector registers of the threads",
    },
    Row {
        name: "ptrace: blocked signals (PTRACE_GETSIGMASK)",
        essential: true,
        probe: |bench| ptrace::get_sigmask(bench.tracee()?).map(|_| String::new()),
        since: "Linux 3.11",
        right: PTRACE_RIGHT,
        lost: "the signal masks of the threads",
    },
    Row {
        name: "ptrace: PTRACE_GET_RSEQ_CONFIGURATION",
        essential: false,
        probe: |bench| ptrace_state::rseq_configuration(bench.tracee()?)?.map(|_| String::new()).ok_or_else(lacking),
        since: "Linux 5.13 with CONFIG_RSEQ",
        right: PTRACE_RIGHT,
        lost: "restartable sequences (glibc 2.35 and newer registers one per thread): they are taken for not registered",
    },
    Row {
        name: "ptrace: PTRACE_SECCOMP_GET_FILTER",
        essential: false,
        probe: |bench| seccomp_filters(bench.tracee()?),
        since: "CONFIG_SECCOMP_FILTER and CONFIG_CHECKPOINT_RESTORE",
        right: "CAP_SYS_ADMIN",
        lost: "programs with seccomp filters",
    },
    Row {
        name: "ptrace: PTRACE_O_SUSPEND_SECCOMP",
        essential: false,
        probe: |bench| ptrace::set_options(bench.tracee()?, ptrace::O_SUSPEND_SECCOMP).map(yes),
        since: "Linux 4.3 with CONFIG_CHECKPOINT_RESTORE",
        right: "CAP_SYS_ADMIN",
        lost: "programs with seccomp filters",
    },
    Row {
        name: "process_vm_readv",
        essential: true,
        probe: |bench| read_memory(bench.dummy.pid),
        since: "Linux 3.2 with CONFIG_CROSS_MEMORY_ATTACH",
        right: PTRACE_RIGHT,
        lost: "everything",
    },
    Row {
        name: "clone3 with set_tid",
        essential: false,
        probe: |_| probe::choose_pid().map(yes),
        since: "Linux 5.5",
        right: "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        lost: "restarts: a process must get its pid back",
    },
    Row {
        name: "prctl PR_SET_MM_MAP",
        essential: false,
        probe: |_| probe::set_mm_map().map(|size| format!("{size} bytes")),
        since: "CONFIG_CHECKPOINT_RESTORE",
        right: "CAP_SYS_RESOURCE",
        lost: "restarts: brk, arguments and environment must be where they were",
    },
    Row {
        name: "arch_prctl ARCH_MAP_VDSO_64",
        essential: false,
        probe: |_| probe::map_vdso().map(yes),
        since: "Linux 4.8 with CONFIG_CHECKPOINT_RESTORE",
        right: "",
        lost: "restarts: the vdso must be where it was",
    },
    Row {
        name: "pidfd_getfd",
        essential: true,
        probe: |bench| pidfd::open(bench.dummy.pid).and_then(|fd| pidfd::get_fd(fd.as_fd(), 2)).map(|_| String::new()),
        since: "Linux 5.6",
        right: PTRACE_RIGHT,
        lost: "a look at what a process has open",
    },
    Row {
        name: "kcmp",
        essential: true,
        probe: |bench| kcmp::files(myself(), 2, bench.dummy.pid, 2).map(|_| String::new()),
        since: "CONFIG_KCMP",
        right: PTRACE_RIGHT,
        lost: "knowing which descriptors share one open file",
    },
    Row {
        name: "/proc/PID/map_files",
        essential: false,
        probe: |_| map_files(),
        since: "Linux 4.3",
        right: "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        lost: "mappings of files that were deleted",
    },
    Row {
        name: "/proc/PID/task/TID/children",
        essential: true,
        probe: |_| fs::read(format!("/proc/self/task/{}/children", std::process::id())).map(|_| String::new()),
        since: "CONFIG_PROC_CHILDREN",
        right: "",
        lost: "knowing whether a process has children",
    },
    Row {
        name: "/proc/PID/timers",
        essential: false,
        probe: |_| fs::read("/proc/self/timers").map(|_| String::new()),
        since: "CONFIG_CHECKPOINT_RESTORE and CONFIG_POSIX_TIMERS",
        right: "",
        lost: "programs with POSIX timers",
    },
    Row {
        name: "prctl PR_TIMER_CREATE_RESTORE_IDS",
        essential: false,
        probe: |_| probe::timer_ids().map(yes),
        since: "Linux 6.15",
        right: "",
        lost: "speed, where a program has POSIX timers: their numbers are then counted up to, and very high ones refused",
    },
    Row {
        name: "timerfd: TFD_IOC_SET_TICKS",
        essential: false,
        probe: |_| probe::timerfd_ticks().map(yes),
        since: "Linux 3.17 with CONFIG_CHECKPOINT_RESTORE",
        right: "",
        lost: "expirations of a timerfd that were not read yet",
    },
    Row {
        name: "inotify: INOTIFY_IOC_SETNEXTWD",
        essential: false,
        probe: |_| probe::inotify_next_watch().map(yes),
        since: "Linux 4.16 with CONFIG_CHECKPOINT_RESTORE",
        right: "",
        lost: "speed, where a program has inotify watches: their numbers are then reached by adding and removing watches",
    },
    Row {
        name: "ioctl PAGEMAP_SCAN",
        essential: false,
        probe: |_| PageMap::open(myself()).map_err(os)?.has_scan().then(String::new).ok_or_else(lacking),
        since: "Linux 6.7",
        right: "",
        lost: "--tracker scan and live, and speed: /proc/PID/pagemap is read instead, where pages of zeros that were only read look like others",
    },
    Row {
        name: "madvise MADV_GUARD_INSTALL",
        essential: false,
        probe: |_| probe::guard_pages().map(yes),
        since: "Linux 6.13",
        right: "",
        lost: "nothing here: no program can have such guard pages; images with them cannot be restarted",
    },
    Row {
        name: "TCP_REPAIR",
        essential: false,
        probe: |_| probe::tcp_repair().map(yes),
        since: "CONFIG_INET",
        right: "CAP_NET_ADMIN",
        lost: "established TCP connections: they can be checkpointed, but not restarted",
    },
    Row {
        name: "time namespaces",
        essential: false,
        probe: |_| probe::time_namespace().map(yes),
        since: "Linux 5.6 with CONFIG_TIME_NS",
        right: "CAP_SYS_ADMIN",
        lost: "CLOCK_MONOTONIC that goes on where it was after a reboot or on another machine (a later version sees to it)",
    },
    Row {
        name: "userfaultfd: asynchronous write protection",
        essential: false,
        probe: |_| write_protection(),
        since: "Linux 6.7 with CONFIG_USERFAULTFD",
        right: "a seccomp policy that allows userfaultfd(2)",
        lost: "--tracker scan and live: what has changed is then found by soft-dirty bits or by comparing all pages (--tracker soft-dirty, hash)",
    },
    Row {
        name: "soft-dirty bits",
        essential: false,
        probe: |_| soft_dirty::trial().map(yes),
        since: "CONFIG_MEM_SOFT_DIRTY",
        right: "CAP_SYS_ADMIN, for the numbers of physical pages",
        lost: "--tracker soft-dirty: nothing where there is scan; else what has changed is found by comparing all pages (--tracker hash)",
    },
    Row {
        name: "eBPF on the tracepoint page_fault_user",
        essential: false,
        probe: |_| probe::raw_tracepoint(c"page_fault_user").map(yes),
        since: "CONFIG_BPF_SYSCALL and CONFIG_TRACEPOINTS",
        right: "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN",
        lost: "--tracker live: the pause then contains the copying",
    },
    Row {
        name: "eBPF iterator over threads",
        essential: false,
        probe: |_| TaskInspector::load().map(|_| String::new()).map_err(io::Error::other),
        since: "6.1, with CONFIG_DEBUG_INFO_BTF",
        right: "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN",
        lost: "the exact time that is left of sleeps; one that is saved again after a restart may end early, with EINTR",
    },
    Row {
        name: "eBPF iterator that copies kernel records",
        essential: false,
        probe: |_| prepare_for_ptys().map(yes).map_err(io::Error::other),
        since: "6.1, with CONFIG_DEBUG_INFO_BTF",
        right: "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN",
        lost: "what waits in pseudoterminals and POSIX message queues, what is on its way in TCP connections, and what SEM_UNDO is to undo",
    },
    Row {
        name: "ids of System V IPC (/proc/sys/kernel/shm_next_id)",
        essential: false,
        probe: |_| File::options().write(true).open("/proc/sys/kernel/shm_next_id").map(|_| String::new()),
        since: "Linux 3.9 with CONFIG_CHECKPOINT_RESTORE and CONFIG_SYSVIPC_SYSCTL",
        right: "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        lost: "System V shared memory, semaphores and message queues that are not left from before",
    },
    Row {
        name: "freezer cgroup",
        essential: false,
        probe: |_| freezer(),
        since: "CONFIG_CGROUP_FREEZER or cgroup v2, mounted",
        right: "",
        lost: "freezing by cgroup (a later version offers it); ptrace does it otherwise",
    },
];

fn other_users() -> io::Result<String> {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    let status = procfs::process::Process::myself().and_then(|p| p.status()).map_err(io::Error::other)?;
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    if scope.is_ok_and(|scope| scope.trim() == "3") || status.capeff & CAP_SYS_PTRACE == 0 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(String::new())
}

/// A thread without filters answers EINVAL to whoever may ask.
fn seccomp_filters(tid: Tid) -> io::Result<String> {
    match ptrace_state::seccomp_filter(tid, 0) {
        Ok(_) => Ok(String::new()),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(String::new()),
        Err(e) => Err(e),
    }
}

/// The child is a copy of us, so what it has where our buffer is can be read from it.
fn read_memory(child: Pid) -> io::Result<String> {
    let mut buffer = [0; 64];
    let piece = Piece { addr: Addr(buffer.as_ptr() as u64), len: buffer.len() };
    vm::read(child, &[piece], &mut buffer).map(|_| String::new())
}

fn map_files() -> io::Result<String> {
    let mapped = fs::read_dir("/proc/self/map_files")?.next().ok_or_else(lacking)??;
    File::open(mapped.path()).map(|_| String::new())
}

fn write_protection() -> io::Result<String> {
    let features = probe::userfaultfd()?;
    if features & (WP_UNPOPULATED | WP_ASYNC) == WP_UNPOPULATED | WP_ASYNC {
        Ok(format!("features {features:#x}"))
    } else {
        Err(lacking())
    }
}

fn freezer() -> io::Result<String> {
    let hierarchies = fs::read_to_string("/proc/cgroups")?;
    let of_freezer = hierarchies.lines().find_map(|line| line.strip_prefix("freezer")?.split_whitespace().next());
    if of_freezer.is_some_and(|hierarchy| hierarchy != "0") {
        return Ok("cgroup v1".to_owned());
    }
    // Every cgroup but the root has the file, whatever its controllers.
    let frozen = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| entry.path().join("cgroup.freeze").exists());
    if fs::read_dir("/sys/fs/cgroup")?.any(frozen) { Ok("cgroup v2".to_owned()) } else { Err(lacking()) }
}
