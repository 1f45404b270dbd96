//! Pipes and FIFOs whose ends are all in this process, with something in them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::raw::{Arg, call};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{mkfifo, pipe2};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("pipe", pipe());
    checks.add("pipe-full", full());
    checks.add("pipe-packets", packets());
    checks.add("pipe-without-writer", without_writer());
    checks.add("pipe-without-reader", without_reader());
    checks.add("fifo", fifo());
    checks.add("fifo-two-ends", fifo_two_ends());
}

fn ends(flags: OFlag) -> std::io::Result<(File, File)> {
    let (reader, writer) = pipe2(flags)?;
    Ok((reader.into(), writer.into()))
}

/// Takes all that is there, compares it, and puts it back.
fn look(reader: &mut File, writer: &mut File, expected: &[u8]) -> Result<(), String> {
    let mut available = 0i32;
    said("FIONREAD", call(libc::SYS_ioctl, &[reader.as_raw_fd().into(), libc::FIONREAD.into(), Arg::to(&mut available)]))?;
    same("bytes", available as usize, expected.len())?;
    let mut found = vec![0; expected.len()];
    said("read", reader.read_exact(&mut found))?;
    same("the contents are the same", found == expected, true)?;
    said("write", writer.write_all(expected))
}

fn pipe() -> Made {
    let (mut reader, mut writer) = ends(OFlag::O_CLOEXEC)?;
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(16384))?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let contents: Vec<u8> = (0..10_000u32).map(|n| (n * 7) as u8).collect();
    writer.write_all(&contents)?;
    boxed(move || {
        same("capacity", said("F_GETPIPE_SZ", fcntl(&reader, FcntlArg::F_GETPIPE_SZ))?, 16384)?;
        let flags = |file: &File| said("F_GETFL", fcntl(file, FcntlArg::F_GETFL));
        same("flags", (flags(&reader)?, flags(&writer)?), (libc::O_NONBLOCK, libc::O_WRONLY))?;
        look(&mut reader, &mut writer, &contents)
    })
}

fn full() -> Made {
    let (mut reader, mut writer) = ends(OFlag::O_NONBLOCK)?;
    // Odd pieces, so that no page is used up.
    let mut piece = [1u8; 777];
    while writer.write(&piece).is_ok() {
        piece = piece.map(|byte| byte.wrapping_add(1));
    }
    // How many bytes the last piece had room for is the pipe's business.
    let mut found = vec![0; 1 << 20];
    let length = reader.read(&mut found)?;
    found.truncate(length);
    writer.write_all(&found)?;
    boxed(move || look(&mut reader, &mut writer, &found))
}

/// O_DIRECT: what is written at once is read at once.
fn packets() -> Made {
    let (mut reader, mut writer) = ends(OFlag::O_DIRECT | OFlag::O_NONBLOCK)?;
    let packets: [&[u8]; 3] = [b"one", b"three words here", b"x"];
    for packet in packets {
        writer.write_all(packet)?;
    }
    boxed(move || {
        for packet in packets {
            let mut found = [0; 100];
            let length = said("read", reader.read(&mut found))?;
            same("packet", &found[..length], packet)?;
        }
        same("no more", reader.read(&mut [0; 100]).is_err(), true)?;
        packets.iter().try_for_each(|packet| said("write", writer.write_all(packet)))
    })
}

/// What is there can be read, and then the end.
fn without_writer() -> Made {
    let (mut reader, mut writer) = ends(OFlag::O_CLOEXEC)?;
    writer.write_all(b"the last words")?;
    drop(writer);
    let mut expected = "the last words";
    boxed(move || {
        let mut text = String::new();
        said("read", reader.read_to_string(&mut text))?;
        same("contents", text.as_str(), expected)?;
        expected = "";
        Ok(())
    })
}

fn without_reader() -> Made {
    let (reader, mut writer) = ends(OFlag::O_CLOEXEC)?;
    drop(reader);
    // SIGPIPE is blocked.
    boxed(move || same("write", writer.write(b"x").map_err(|error| error.raw_os_error()), Err(Some(libc::EPIPE))))
}

fn fifo() -> Made {
    mkfifo("fifo", nix::sys::stat::Mode::S_IRWXU)?;
    let mut both = File::options().read(true).write(true).open("fifo")?;
    both.write_all(b"in a fifo")?;
    boxed(move || {
        let mut again = said("dup", both.try_clone())?;
        look(&mut both, &mut again, b"in a fifo")
    })
}

fn fifo_two_ends() -> Made {
    mkfifo("fifo-two", nix::sys::stat::Mode::S_IRWXU)?;
    let mut reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("fifo-two")?;
    let mut writer = File::options().write(true).open("fifo-two")?;
    writer.write_all(b"from one end to the other")?;
    boxed(move || look(&mut reader, &mut writer, b"from one end to the other"))
}
