//! Files that have a name: regular ones, folders, devices, and how they are open.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use ckpt_tests::checks::{Checks, said, same};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("regular", regular());
    checks.add("append", append());
    checks.add("many-flags", many_flags());
    checks.add("path-only", path_only());
    checks.add("directory", directory());
    checks.add("duplicates", duplicates());
    checks.add("high-number", high_number());
    checks.add("close-on-exec", close_on_exec());
    checks.add("owner", owner());
    checks.add(
        "dev-null",
        device("/dev/null", |file| {
            said("write", file.write_all(b"gone"))?;
            same("read", said("read", file.read(&mut [0; 8]))?, 0)
        }),
    );
    checks.add(
        "dev-zero",
        device("/dev/zero", |file| {
            let mut bytes = [1; 8];
            said("read", file.read_exact(&mut bytes))?;
            same("zeros", bytes, [0; 8])
        }),
    );
    checks.add(
        "dev-full",
        device("/dev/full", |file| {
            same("write", file.write(b"x").map_err(|error| error.raw_os_error()), Err(Some(libc::ENOSPC)))
        }),
    );
    checks.add("dev-random", device("/dev/random", random));
    checks.add("dev-urandom", device("/dev/urandom", random));
    checks.add("proc", proc_file());
}

fn flags(file: impl AsFd) -> Result<OFlag, String> {
    let flags = said("F_GETFL", fcntl(&file, FcntlArg::F_GETFL))?;
    // What the C library and the kernel add by themselves.
    Ok(OFlag::from_bits_retain(flags) - OFlag::from_bits_retain(libc::O_LARGEFILE | 0o100_000))
}

fn regular() -> Made {
    fs::write("regular", "0123456789abcdefghij")?;
    let mut file = File::options().read(true).write(true).open("regular")?;
    file.seek(SeekFrom::Start(7))?;
    let mut at = 7;
    boxed(move || {
        same("flags", flags(&file)?, OFlag::O_RDWR)?;
        same("offset", said("lseek", file.stream_position())?, at)?;
        let mut byte = [0];
        said("read", file.read_exact(&mut byte))?;
        same("byte", byte[0], b"0123456789abcdefghij"[at as usize])?;
        at += 1;
        Ok(())
    })
}

fn append() -> Made {
    let mut file = File::options().append(true).create(true).open("appended")?;
    file.write_all(b"first\n")?;
    let mut expected = String::from("first\n");
    boxed(move || {
        same("flags", flags(&file)?, OFlag::O_WRONLY | OFlag::O_APPEND)?;
        said("lseek", file.rewind())?;
        said("write", file.write_all(b"more\n"))?;
        expected.push_str("more\n");
        same("contents", said("read", fs::read_to_string("appended"))?, expected.clone())
    })
}

fn many_flags() -> Made {
    let wanted = OFlag::O_NONBLOCK | OFlag::O_SYNC | OFlag::O_NOATIME | OFlag::O_APPEND;
    fs::write("flags", "x")?;
    let file = File::options().read(true).write(true).custom_flags(wanted.bits()).open("flags")?;
    boxed(move || same("flags", flags(&file)?, wanted | OFlag::O_RDWR))
}

fn path_only() -> Made {
    fs::write("path-only", "x")?;
    let file = File::options().read(true).custom_flags(libc::O_PATH).open("path-only")?;
    boxed(move || {
        same("flags", flags(&file)?, OFlag::O_PATH)?;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        same("contents", said("read", fs::read_to_string(link))?, "x".to_owned())
    })
}

fn directory() -> Made {
    fs::create_dir("directory")?;
    fs::write("directory/inside", "found")?;
    let folder = File::options().read(true).custom_flags(libc::O_DIRECTORY).open("directory")?;
    boxed(move || {
        same("flags", flags(&folder)?, OFlag::O_DIRECTORY)?;
        let opened = said("openat", nix::fcntl::openat(&folder, "inside", OFlag::O_RDONLY, nix::sys::stat::Mode::empty()))?;
        let mut text = String::new();
        said("read", File::from(opened).read_to_string(&mut text))?;
        same("contents", text.as_str(), "found")
    })
}

/// Two descriptors share one offset; a third of the same file has its own.
fn duplicates() -> Made {
    fs::write("duplicates", "0123456789")?;
    let mut one = File::open("duplicates")?;
    let mut two = one.try_clone()?;
    let mut other = File::open("duplicates")?;
    one.seek(SeekFrom::Start(3))?;
    other.seek(SeekFrom::Start(8))?;
    let mut at = 3;
    boxed(move || {
        same("offset of the duplicate", said("lseek", two.stream_position())?, at)?;
        at = (at + 1) % 8;
        said("lseek", two.seek(SeekFrom::Start(at)))?;
        same("offset after moving the duplicate", said("lseek", one.stream_position())?, at)?;
        same("offset of the other", said("lseek", other.stream_position())?, 8)
    })
}

/// A number far above all others.
fn high_number() -> Made {
    fs::write("high", "high")?;
    let low = File::open("high")?;
    let fd = fcntl(&low, FcntlArg::F_DUPFD(777))?;
    // SAFETY: the kernel has just given us this descriptor.
    let high = unsafe { OwnedFd::from_raw_fd(fd) };
    drop(low);
    boxed(move || {
        same("number", high.as_raw_fd(), 777)?;
        same("contents", said("read", fs::read_to_string("/proc/self/fd/777"))?, "high".to_owned())
    })
}

fn close_on_exec() -> Made {
    let with = File::open("/dev/null")?;
    let without = with.try_clone()?;
    fcntl(&without, FcntlArg::F_SETFD(FdFlag::empty()))?;
    boxed(move || {
        let flags = |file: &File| said("F_GETFD", fcntl(file, FcntlArg::F_GETFD));
        same("FD_CLOEXEC", (flags(&with)?, flags(&without)?), (libc::FD_CLOEXEC, 0))
    })
}

/// Who is told when something happens, and by what signal.
fn owner() -> Made {
    let (reader, mut writer) = std::io::pipe()?;
    let get = |command, file: &std::io::PipeReader| {
        ckpt_tests::sys::raw::call(libc::SYS_fcntl, &[file.as_raw_fd().into(), libc::c_int::into(command), 0.into()])
    };
    let set = |command: i32, value: i32| {
        ckpt_tests::sys::raw::call(libc::SYS_fcntl, &[reader.as_raw_fd().into(), command.into(), value.into()])
    };
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    set(libc::F_SETOWN, std::process::id() as i32)?;
    set(F_SETSIG, libc::SIGRTMIN() + 9)?;
    set(libc::F_SETFL, libc::O_ASYNC)?;
    boxed(move || {
        same("owner", said("F_GETOWN", get(libc::F_GETOWN, &reader))?, i64::from(std::process::id()))?;
        same("signal", said("F_GETSIG", get(F_GETSIG, &reader))?, i64::from(libc::SIGRTMIN() + 9))?;
        same("flags", flags(&reader)?, OFlag::O_ASYNC)?;
        said("write", writer.write_all(b"x"))?;
        let mut set = 1u64 << (libc::SIGRTMIN() + 8);
        let mut time = libc::timespec { tv_sec: 5, tv_nsec: 0 };
        use ckpt_tests::sys::raw::Arg;
        let arguments = [Arg::to(&mut set), Arg::NULL, Arg::to(&mut time), 8.into()];
        let signal = said("no signal came", ckpt_tests::sys::raw::call(libc::SYS_rt_sigtimedwait, &arguments))?;
        same("the signal", signal, i64::from(libc::SIGRTMIN() + 9))
    })
}

fn device(path: &str, mut check: impl FnMut(&mut File) -> Result<(), String> + 'static) -> Made {
    let mut file = File::options().read(true).write(true).open(path)?;
    boxed(move || check(&mut file))
}

fn random(file: &mut File) -> Result<(), String> {
    let mut bytes = [0; 32];
    said("read", file.read_exact(&mut bytes))?;
    same("all zero", bytes == [0; 32], false)
}

/// A file that the kernel makes up.
fn proc_file() -> Made {
    let mut file = File::open("/proc/sys/kernel/ostype")?;
    boxed(move || {
        let mut text = String::new();
        said("lseek", file.rewind())?;
        said("read", file.read_to_string(&mut text))?;
        same("contents", text.as_str(), "Linux\n")
    })
}
