//! What the tests, the demo and the virtual machine need beside Rust: real programs, which are checkpointed and restarted.

use anyhow::Result;

use crate::machine::{self, Prerequisite, Probe};

/// For the tests; one more is one more entry. Python comes first: it is all that the demo needs.
const TABLE: &[Prerequisite<'_>] = &[
    Prerequisite {
        name: "Python",
        probe: Probe::File("/usr/bin/python3"),
        package: "python3",
        why: "threads that hash are checkpointed, and the demo's computation",
    },
    Prerequisite {
        name: "NumPy for it",
        probe: Probe::Succeeds(&["/usr/bin/python3", "-c", "import numpy"]),
        package: "python3-numpy",
        why: "a numerical computation is checkpointed",
    },
    Prerequisite {
        name: "xz",
        probe: Probe::Program("xz"),
        package: "xz-utils",
        why: "a compression by two threads is checkpointed",
    },
    Prerequisite {
        name: "sqlite3",
        probe: Probe::Program("sqlite3"),
        package: "sqlite3",
        why: "a growing database is checkpointed",
    },
    Prerequisite {
        name: "redis-server",
        probe: Probe::Program("redis-server"),
        package: "redis-server",
        why: "a server with its data and its listening socket is checkpointed",
    },
    Prerequisite {
        name: "Node.js",
        probe: Probe::Program("node"),
        package: "nodejs",
        why: "a program with workers, a thread pool and a server is checkpointed",
    },
    Prerequisite {
        name: "a JDK",
        probe: Probe::Program("javac"),
        package: "default-jdk-headless",
        why: "a program with threads and a collector of garbage is checkpointed",
    },
    Prerequisite {
        name: "Perl",
        probe: Probe::Program("perl"),
        package: "perl",
        why: "an interpreter that takes signals is checkpointed",
    },
    Prerequisite {
        name: "gcc",
        probe: Probe::Program("gcc"),
        package: "gcc",
        why: "small programs in C, also static ones, are checkpointed",
    },
    Prerequisite {
        name: "libc for static programs",
        probe: Probe::Succeeds(&["sh", "-c", "test -f \"$(gcc -print-file-name=libc.a)\""]),
        package: "libc6-dev",
        why: "the same",
    },
    Prerequisite {
        name: "make",
        probe: Probe::Program("make"),
        package: "make",
        why: "two compilers at a time are checkpointed",
    },
    Prerequisite {
        name: "PostgreSQL",
        probe: Probe::Succeeds(&["sh", "-c", "ls /usr/lib/postgresql/*/bin/postgres"]),
        package: "postgresql",
        why: "a database with its server's processes and a benchmark is checkpointed",
    },
    Prerequisite {
        name: "nginx",
        probe: Probe::Program("nginx"),
        package: "nginx-light",
        why: "a server with workers is checkpointed",
    },
    Prerequisite {
        name: "mpirun",
        probe: Probe::Program("mpirun"),
        package: "openmpi-bin",
        why: "a computation of several processes that send to each other is checkpointed",
    },
    Prerequisite { name: "mpicc", probe: Probe::Program("mpicc"), package: "libopenmpi-dev", why: "the same" },
    Prerequisite {
        name: "tmux",
        probe: Probe::Program("tmux"),
        package: "tmux",
        why: "terminals with a shell and an editor are checkpointed",
    },
    Prerequisite {
        name: "mkfs.xfs",
        probe: Probe::Program("mkfs.xfs"),
        package: "xfsprogs",
        why: "files that share blocks are saved",
    },
    Prerequisite { name: "vim", probe: Probe::Program("vim.tiny"), package: "vim-tiny", why: "the same" },
];

/// For the virtual machine.
const VM: &[Prerequisite<'_>] = &[
    Prerequisite {
        name: "QEMU",
        probe: Probe::Program("qemu-system-x86_64"),
        package: "qemu-system-x86",
        why: "an older kernel is run in a virtual machine",
    },
    Prerequisite {
        name: "a static busybox",
        // The other one, which needs libraries, has a package of its own.
        probe: Probe::Succeeds(&["sh", "-c", "program=$(command -v busybox) && ! ldd \"$program\""]),
        package: "busybox-static",
        why: "the programs of that machine",
    },
];

/// Makes sure that everything is there that the tests need.
pub fn of_tests() -> Result<()> {
    machine::ensure("The tests need", TABLE)
}

/// Makes sure that everything is there that the demo needs.
pub fn of_demo() -> Result<()> {
    machine::ensure("The demo needs", &TABLE[..1])
}

/// Makes sure that everything is there that the virtual machine needs, but for its kernel.
pub fn of_vm() -> Result<()> {
    machine::ensure("The virtual machine needs", VM)
}
