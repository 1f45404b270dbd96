//! Landlock: rules by which a program gives up rights for itself and its children (landlock(7)). Nothing in /proc tells of them.
//!
//! What tells is that a thread under rules may look into no process that is not under them, whatever else would let it. So it is made to look at a
//! *witness*: a process of its own user, without capabilities, that we have made, and that has ended: it is still someone. In between its user could look
//! into it, too, so it has nothing of ours: it becomes that user while nobody may look, and is then made into a program that does nothing but
//! end. Rules that we are under ourselves hold for the witness, too, and for what we restart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::child;
use super::clone::{self, Cloned};
use crate::ids::Pid;

/// LANDLOCK_CREATE_RULESET_VERSION (linux/landlock.h).
const CREATE_RULESET_VERSION: u32 = 1;
/// _LINUX_CAPABILITY_VERSION_3 (linux/capability.h).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// A program of which the kernel maps one page, and which calls exit_group(0).
const ENDS: &[u8] = &{
    let mut file = [0u8; 64 + 56 + 9];
    let parts: [(usize, &[u8]); 10] = [
        (0, b"\x7fELF\x02\x01\x01"),
        // ET_EXEC for x86-64, version 1; starts behind the headers.
        (16, &[2, 0, 62, 0, 1, 0, 0, 0, 120, 0, 0x40]),
        // Where the one program header is; the sizes of both headers.
        (32, &[64]),
        (52, &[64, 0, 56, 0, 1]),
        // PT_LOAD, to be read and executed, from the file's beginning to 0x400000; its length, in the file and in memory; alignment.
        (64, &[1, 0, 0, 0, 5]),
        (80, &[0, 0, 0x40]),
        (96, &[129]),
        (104, &[129]),
        (112, &[0, 0x10]),
        // xor edi, edi; mov eax, 231; syscall
        (120, &[0x31, 0xff, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]),
    ];
    let mut part = 0;
    while part < parts.len() {
        let (at, bytes) = parts[part];
        let mut n = 0;
        while n < bytes.len() {
            file[at + n] = bytes[n];
            n += 1;
        }
        part += 1;
    }
    file
};

/// By user and group: made once, and not waited for as long as we live. `None`: we may not become that user.
static WITNESSES: Mutex<BTreeMap<(u32, u32), Option<Pid>>> = Mutex::new(BTreeMap::new());

fn witnesses() -> MutexGuard<'static, BTreeMap<(u32, u32), Option<Pid>>> {
    // An entry is there or not: there is nothing to be half done.
    WITNESSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom a thread with these real ids may look at unless Landlock keeps it from that. `None`: this kernel has no Landlock, or nobody can be asked.
pub fn witness(user: u32, group: u32) -> io::Result<Option<Pid>> {
    let mut witnesses = witnesses();
    if let Some(&known) = witnesses.get(&(user, group)) {
        return Ok(known);
    }
    let made = if is_there() { make(user, group)? } else { None };
    witnesses.insert((user, group), made);
    Ok(made)
}

/// Is this child of ours one, which must stay?
pub fn is_witness(pid: Pid) -> bool {
    witnesses().values().any(|&witness| witness == Some(pid))
}

/// Does this kernel have it?
pub fn is_there() -> bool {
    // SAFETY: with this flag nothing is made, and no memory is read.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null::<u8>(), 0usize, CREATE_RULESET_VERSION) >= 1 }
}

fn make(user: u32, group: u32) -> io::Result<Option<Pid>> {
    let program = ends()?;
    let pid = match clone::silent_child()? {
        Cloned::Child => {
            let error = become_witness(user, group, program.as_fd());
            // SAFETY: _exit runs no handlers of the copied program.
            unsafe { libc::_exit(error.raw_os_error().unwrap_or(libc::EIO)) }
        }
        Cloned::Parent(pid) => pid,
    };
    let status = loop {
        if let Some(status) = child::peek_end(pid.leader(), libc::__WALL)? {
            break status;
        }
    };
    if status == 0 {
        return Ok(Some(pid));
    }
    if let Err(error) = child::answer(pid) {
        tracing::warn!(
            "whether programs of user {user} are under Landlock rules is not known, because ckpt cannot run one: {error}"
        );
    }
    Ok(None)
}

/// The program, in memory.
fn ends() -> io::Result<OwnedFd> {
    // Linux before 6.3 does not know MFD_EXEC, and needs none.
    let executable = MFdFlags::from_bits_retain(libc::MFD_CLOEXEC | libc::MFD_EXEC);
    let file = memfd_create(c"witness", executable)
        .or_else(|error| if error == Errno::EINVAL { memfd_create(c"witness", MFdFlags::MFD_CLOEXEC) } else { Err(error) })?;
    let mut file = File::from(file);
    file.write_all(ENDS)?;
    // Whoever holds a descriptor for writing keeps it from being executed.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map(OwnedFd::from)
}

/// In the new process: plain system calls alone. Returns why it is none.
fn become_witness(user: u32, group: u32, program: BorrowedFd<'_>) -> io::Error {
    let head = [CAPABILITY_VERSION_3, 0];
    let none = [0u32; 6];
    let nothing = [null::<u8>()];
    // SAFETY: numbers, and strings and arrays of the kernel's structs that outlive the calls. All descriptors are closed when it is executed.
    unsafe {
        let _ = libc::syscall(libc::SYS_chdir, c"/".as_ptr()) == 0
            && libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0
            && libc::syscall(libc::SYS_setresgid, group, group, group) == 0
            && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
            && libc::syscall(libc::SYS_capset, head.as_ptr(), none.as_ptr()) == 0
            // Otherwise root would have all capabilities again.
            && libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                nothing.as_ptr(),
                nothing.as_ptr(),
                libc::AT_EMPTY_PATH,
            ) == 0;
    }
    io::Error::last_os_error()
}
