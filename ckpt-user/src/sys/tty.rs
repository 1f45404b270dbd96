//! ioctl(2) on terminals, where nix has no type for what is asked (ioctl_tty(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::clone::CloneArgs;

/// struct termios2 (asm-generic/termbits.h): settings with the speeds as numbers, and the line discipline.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termios2 {
    /// c_iflag.
    pub input: u32,
    /// c_oflag.
    pub output: u32,
    /// c_cflag.
    pub control: u32,
    /// c_lflag.
    pub local: u32,
    /// c_line: N_TTY is 0.
    pub line: u8,
    /// c_cc, by VINTR, VQUIT, ...
    pub characters: [u8; 19],
    /// c_ispeed, baud.
    pub input_speed: u32,
    /// c_ospeed, baud.
    pub output_speed: u32,
}

/// struct winsize: rows, columns, and both in pixels.
pub type WindowSize = [u16; 4];

// asm-generic/ioctls.h
const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
const TIOCGPTN: libc::c_ulong = 0x8004_5430;
const TIOCSPTLCK: libc::c_ulong = 0x4004_5431;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
const TIOCGPKT: libc::c_ulong = 0x8004_5438;
const TIOCGPTLCK: libc::c_ulong = 0x8004_5439;
const TIOCGEXCL: libc::c_ulong = 0x8004_5440;
const TIOCGPTPEER: libc::c_ulong = 0x5441;

const _: () = assert!(size_of::<Termios2>() == 44);

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn get<T: Default>(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<T> {
    let mut value = T::default();
    // SAFETY: each request is only asked with the type that it fills, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) }).map(|_| value)
}

fn set<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, value: &T) -> io::Result<()> {
    // SAFETY: each request is only made with the type that it reads, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const *value) }).map(drop)
}

fn flag(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<bool> {
    get::<i32>(fd, request).map(|value| value != 0)
}

/// TIOCGPTN: the number of the slave of a master.
pub fn number(master: BorrowedFd<'_>) -> io::Result<u32> {
    get(master, TIOCGPTN)
}

/// TIOCGDEV: the number of the terminal behind a descriptor, which for /dev/tty is the controlling one: major and minor.
pub fn device(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let number = u64::from(get::<u32>(fd, TIOCGDEV)?);
    Ok((nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

/// TIOCGPTLCK: the slave cannot be opened.
pub fn is_locked(master: BorrowedFd<'_>) -> io::Result<bool> {
    flag(master, TIOCGPTLCK)
}

/// TIOCSPTLCK.
pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> io::Result<()> {
    set(master, TIOCSPTLCK, &i32::from(locked))
}

/// TIOCGPKT: reads of the master begin with a byte that tells what has happened.
pub fn has_packets(master: BorrowedFd<'_>) -> io::Result<bool> {
    flag(master, TIOCGPKT)
}

/// TIOCPKT.
pub fn set_packets(master: BorrowedFd<'_>) -> io::Result<()> {
    set(master, libc::TIOCPKT, &1i32)
}

/// TIOCGEXCL: nobody else may open it.
pub fn is_exclusive(fd: BorrowedFd<'_>) -> io::Result<bool> {
    flag(fd, TIOCGEXCL)
}

/// TIOCEXCL.
pub fn set_exclusive(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCEXCL) }).map(drop)
}

/// TCGETS2: of a master, those of its slave.
pub fn settings(fd: BorrowedFd<'_>) -> io::Result<Termios2> {
    get(fd, TCGETS2)
}

/// TCSETS2: at once, and nothing that waits is thrown away.
pub fn set_settings(fd: BorrowedFd<'_>, settings: &Termios2) -> io::Result<()> {
    set(fd, TCSETS2, settings)
}

/// TIOCGWINSZ.
pub fn window_size(fd: BorrowedFd<'_>) -> io::Result<WindowSize> {
    get(fd, libc::TIOCGWINSZ)
}

/// TIOCSWINSZ.
pub fn set_window_size(fd: BorrowedFd<'_>, size: &WindowSize) -> io::Result<()> {
    set(fd, libc::TIOCSWINSZ, size)
}

/// TIOCGPGRP of a master: the process group in the foreground of its slave.
pub fn foreground(master: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    match get::<i32>(master, libc::TIOCGPGRP) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        other => other.map(|group| (group != 0).then_some(group)),
    }
}

/// TIOCGSID of a master: the session whose controlling terminal its slave is.
pub fn session(master: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    match get::<i32>(master, libc::TIOCGSID) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        other => other.map(Some),
    }
}

/// TIOCGPTPEER: opens the slave of a master with these flags.
pub fn open_slave(master: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let fd = check(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags | libc::O_NOCTTY) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // Asked for with the flags, O_CLOEXEC would stay among those of the open file (Linux 6.18).
    // SAFETY: only numbers are passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// TCOOFF of tcflow(3): what is written waits.
pub fn suspend_output(slave: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::tcflow(slave.as_raw_fd(), libc::TCOOFF) }).map(drop)
}

/// Has the descriptor `place` become an opening of /dev/tty, for which a process must have `slave` as its controlling terminal: one that shares
/// our descriptors, and does nothing else. The terminal must not control a session yet, and does not afterwards.
pub fn open_as_controlling(slave: BorrowedFd<'_>, flags: i32, place: BorrowedFd<'_>) -> io::Result<()> {
    let args = CloneArgs { flags: libc::CLONE_FILES as u64, ..CloneArgs::default() };
    // SAFETY: the struct outlives the call. Without CLONE_VM the child has its own copy of everything but the descriptors.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: only system calls that are safe after a fork of a process with threads; _exit runs no handlers of the copied program.
            // The status tells the error.
            unsafe {
                let done = |result: i32| {
                    if result < 0 {
                        libc::_exit(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
                    }
                    result
                };
                done(libc::setsid());
                done(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0));
                let opened = done(libc::open(c"/dev/tty".as_ptr(), flags | libc::O_CLOEXEC));
                done(libc::dup3(opened, place.as_raw_fd(), libc::O_CLOEXEC));
                libc::close(opened);
                libc::_exit(0)
            }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` outlives the call; the pid is our child's.
            check(unsafe { libc::waitpid(child as i32, &raw mut status, libc::__WALL) })?;
            match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
                (true, 0) => Ok(()),
                (true, error) => Err(io::Error::from_raw_os_error(error)),
                (false, _) => Err(io::Error::other("the process that was to open it was killed")),
            }
        }
    }
}
