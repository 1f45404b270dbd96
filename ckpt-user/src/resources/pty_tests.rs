//! Pseudoterminals of the test's own process, collected and made again in it once they are closed: a number can only be had once.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::pty::{OpenptyResult, openpty};
use nix::unistd::{read, ttyname, write};

use super::fd_trial::{Cut, collect, flags, wait_for};
use super::pty::PtyRecord;
use super::pty_pair::{self, PairRecord};
use super::pty_queue::Stopped;
use crate::sys::tty::{self, Termios2};

/// Of this process alone, also if it starts others.
fn pair() -> OpenptyResult {
    let pair = openpty(None, None).unwrap();
    for fd in [&pair.master, &pair.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    pair
}

fn set(slave: &OwnedFd, change: impl FnOnce(&mut Termios2)) {
    let mut settings = tty::settings(slave.as_fd()).unwrap();
    change(&mut settings);
    tty::set_settings(slave.as_fd(), &settings).unwrap();
}

/// Without echo, and with an end of line of its own.
fn quiet_lines(slave: &OwnedFd) {
    set(slave, |settings| {
        settings.local &= !libc::ECHO;
        settings.characters[libc::VEOL] = b';';
    });
}

fn raw(slave: &OwnedFd) {
    set(slave, |settings| (settings.input, settings.output, settings.local) = (0, 0, 0));
}

/// Reads what is there; EAGAIN once nothing is.
fn take(fd: &OwnedFd) -> Vec<Vec<u8>> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut reads = Vec::new();
    let mut buf = [0; 10000];
    loop {
        match read(fd, &mut buf) {
            Ok(n) => reads.push(buf[..n].to_vec()),
            Err(Errno::EAGAIN) => return reads,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What is typed is looked at by the kernel a moment later: waits until the slave has `bytes`.
fn arrived(cut: impl Fn() -> Cut, bytes: usize) -> Cut {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let cut = cut();
        let queues = record(&cut).queues;
        let input: usize = queues.input.iter().map(|piece| piece.data.len()).sum();
        if input == bytes && queues.typed.is_empty() {
            return cut;
        }
        assert!(std::time::Instant::now() < until, "{queues:?}");
    }
}

fn record(cut: &Cut) -> PairRecord {
    cut.objects.iter().find(|o| o.section.kind == pty_pair::KIND).unwrap().section.decode().unwrap()
}

fn both<'a>(pair: &'a OpenptyResult) -> [BorrowedFd<'a>; 2] {
    [pair.master.as_fd(), pair.slave.as_fd()]
}

fn restore<const N: usize>(cut: &Cut) -> [OwnedFd; N] {
    cut.restore_soon().try_into().unwrap()
}

#[test]
fn settings_of_both_sides() {
    let old = pair();
    set(&old.slave, |settings| {
        settings.input |= libc::IUTF8 | libc::IXANY;
        settings.characters[libc::VINTR] = 1;
        settings.control = settings.control & !libc::CBAUD | libc::BOTHER;
        settings.output_speed = 12345;
    });
    tty::set_window_size(old.master.as_fd(), &[50, 132, 7, 8]).unwrap();
    tty::set_packets(old.master.as_fd()).unwrap();
    tty::set_locked(old.master.as_fd(), true).unwrap();
    tty::set_exclusive(old.slave.as_fd()).unwrap();
    nix::sys::stat::fchmod(&old.slave, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    fcntl(&old.slave, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let look = |master: &OwnedFd, slave: &OwnedFd| {
        let (m, s) = (master.as_fd(), slave.as_fd());
        let marks = [tty::has_packets(m), tty::is_locked(m), tty::is_exclusive(m), tty::is_exclusive(s)].map(Result::unwrap);
        let node = File::from(slave.try_clone().unwrap()).metadata().unwrap();
        let windows = [m, s].map(|fd| tty::window_size(fd).unwrap());
        (
            tty::settings(s).unwrap(),
            windows,
            marks,
            node.mode(),
            node.rdev(),
            ttyname(slave).unwrap(),
            flags(master),
            flags(slave),
        )
    };
    let before = look(&old.master, &old.slave);
    assert_eq!(before.0.output_speed, 12345);
    assert_eq!(before.2, [true, true, false, true]);
    let cut = collect(&both(&old)).unwrap();
    drop(old);
    let [master, slave] = restore(&cut);
    assert_eq!(look(&master, &slave), before);
}

#[test]
fn bytes_in_both_directions() {
    let old = pair();
    raw(&old.slave);
    let input: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let output: Vec<u8> = (0..=255).rev().cycle().take(9000).collect();
    write(&old.master, &input).unwrap();
    assert_eq!(write(&old.slave, &output).unwrap(), 9000);
    let cut = arrived(|| collect(&both(&old)).unwrap(), 3000);
    assert_eq!(record(&cut).queues.output, output, "what lies in both buffers of the kernel");
    assert_eq!(record(&collect(&both(&old)).unwrap()), record(&cut), "nothing was taken away");
    let theirs = (take(&old.master).concat(), take(&old.slave).concat());
    drop(old);
    let [master, slave] = restore(&cut);
    wait_for(&slave, PollFlags::POLLIN);
    // Of what was written so much is ready at once; the rest comes as room is made.
    let mut ours = Vec::new();
    while ours.len() < output.len() {
        wait_for(&master, PollFlags::POLLIN);
        ours.extend(take(&master).concat());
    }
    assert_eq!((ours == output, take(&slave).concat() == input), (true, true));
    assert!(output.starts_with(&theirs.0) && theirs.1 == input);
    write(&master, b"more").unwrap();
    wait_for(&slave, PollFlags::POLLIN);
    assert_eq!(take(&slave).concat(), b"more");
}

/// Each line is read by itself, and what is not finished is finished by what is typed next.
#[test]
fn lines() {
    let old = pair();
    quiet_lines(&old.slave);
    // A quoted new line, an end of line of one's own, an end of file after something and one after nothing, and a beginning.
    write(&old.master, b"one\ntwo\x16\nand;three\x04\x04beg\x16\x04in").unwrap();
    let typed = b"one\ntwo\nand;three\0\0beg\x04in";
    let cut = arrived(|| collect(&both(&old)).unwrap(), typed.len());
    let lines = |fd: &OwnedFd| take(fd).iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>();
    let expected = ["one\n", "two\nand;", "three", ""];
    assert_eq!(lines(&old.slave), expected);
    write(&old.master, b"ning\n").unwrap();
    wait_for(&old.slave, PollFlags::POLLIN);
    assert_eq!(lines(&old.slave), ["beg\x04inning\n"]);
    drop(old);

    let [master, slave] = restore(&cut);
    assert_eq!(lines(&slave), expected);
    write(&master, b"nxx\x7f\x7fing\n").unwrap();
    wait_for(&slave, PollFlags::POLLIN);
    assert_eq!(lines(&slave), ["beg\x04inning\n"], "the beginning of the line can be edited on");
    assert_eq!(take(&master).concat(), b"", "nothing of that was echoed");
}

#[test]
fn output_that_was_stopped() {
    for by_call in [false, true] {
        let old = pair();
        quiet_lines(&old.slave);
        write(&old.slave, b"before").unwrap();
        if by_call {
            tty::suspend_output(old.slave.as_fd()).unwrap();
        } else {
            write(&old.master, b"\x13").unwrap();
        }
        let stopped = |fd: &OwnedFd| !crate::sys::queue::poll_now(fd.as_fd()).unwrap().contains(PollFlags::POLLOUT);
        while !stopped(&old.slave) {
            std::thread::yield_now();
        }
        let cut = collect(&both(&old)).unwrap();
        assert_eq!(record(&cut).queues.stopped, Some(if by_call { Stopped::Called } else { Stopped::Typed }));
        drop(old);
        let [master, slave] = restore(&cut);
        assert!(stopped(&slave));
        write(&master, b"\x11").unwrap();
        if by_call {
            nix::sys::termios::tcflow(&slave, nix::sys::termios::FlowArg::TCOON).unwrap();
        }
        wait_for(&slave, PollFlags::POLLOUT);
        assert_eq!(take(&master).concat(), b"before");
    }
}

#[test]
fn sides_that_are_closed() {
    // The slave was never opened: whoever reads waits for that.
    let master = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx").unwrap();
    let cut = collect(&[master.as_fd()]).unwrap();
    assert!(record(&cut).untouched);
    drop(master);
    let [master] = restore::<1>(&cut);
    assert_eq!(take(&master), Vec::<Vec<u8>>::new());
    drop(master);

    // It was, and is closed: what it has written can still be read, and then there is an error.
    let old = pair();
    write(&old.slave, b"last").unwrap();
    drop(old.slave);
    wait_for(&old.master, PollFlags::POLLHUP);
    let cut = collect(&[old.master.as_fd()]).unwrap();
    drop(old.master);
    let [master] = restore::<1>(&cut);
    let mut file = File::from(master);
    let mut buf = [0; 10];
    assert_eq!(file.read(&mut buf).unwrap(), 4);
    assert_eq!(file.read(&mut buf).unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(file);

    // The master is closed: nothing but the end can be read.
    let old = pair();
    drop(old.master);
    let cut = collect(&[old.slave.as_fd()]).unwrap();
    assert_eq!(cut.record::<PtyRecord>(0), PtyRecord::HungUp);
    let [slave] = restore::<1>(&cut);
    assert_eq!(read(&slave, &mut buf), Ok(0));
    assert_eq!(write(&slave, b"x"), Err(Errno::EIO));
}

/// The program knows its terminal by its name, so it must have the same one.
#[test]
fn a_number_is_chosen() {
    let lower: Vec<_> = (0..3).map(|_| pair()).collect();
    let old = pair();
    let name = ttyname(&old.slave).unwrap();
    let cut = collect(&both(&old)).unwrap();
    let said = cut.restore().unwrap_err().to_string();
    assert!(said.contains(&format!("{} is in use", name.display())), "{said}");
    drop((lower, old));
    let [_master, slave] = restore(&cut);
    assert_eq!(ttyname(&slave).unwrap(), name);
    let next = pair();
    assert!(ttyname(&next.slave).unwrap() != name, "numbers below it were given back");
}

#[test]
fn the_controlling_terminal_by_its_other_name() {
    let old = pair();
    raw(&old.slave);
    let place: OwnedFd = File::open("/dev/null").unwrap().into();
    tty::open_as_controlling(old.slave.as_fd(), libc::O_RDWR, place.as_fd()).unwrap();
    let fds = [old.master.as_fd(), old.slave.as_fd(), place.as_fd()];
    let cut = collect(&fds).unwrap();
    assert_eq!(record(&cut).session, None, "it controls nothing afterwards");
    drop((old, place));
    let [master, slave, place] = restore(&cut);
    let link = |fd: &OwnedFd| super::fd_trial::with_descriptor(fd.as_fd(), |d| d.link.clone());
    assert_eq!(link(&place), "/dev/tty");
    assert_eq!(tty::device(place.as_fd()).unwrap(), tty::device(slave.as_fd()).unwrap());
    write(&place, b"hello").unwrap();
    wait_for(&master, PollFlags::POLLIN);
    assert_eq!(take(&master).concat(), b"hello");
}

/// A job in a user's terminal: the master is the terminal emulator's.
#[test]
fn the_master_is_outside() {
    let old = pair();
    let mut holder = std::process::Command::new("sleep").arg("1000").stdin(old.master).spawn().unwrap();
    let cut = collect(&[old.slave.as_fd()]).unwrap();
    assert!(matches!(cut.record(0), PtyRecord::Outside(_)));
    let error = cut.restore().unwrap_err().to_string();
    assert!(error.contains("--inherit-fd") && error.contains("terminal"), "{error}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

/// The same where it was left open in the job.
#[test]
fn the_master_is_outside_as_well() {
    let old = pair();
    let theirs = old.master.try_clone().unwrap();
    let mut holder = std::process::Command::new("sleep").arg("1000").stdin(theirs).spawn().unwrap();
    let cut = collect(&both(&old)).unwrap();
    for n in 0..2 {
        assert!(matches!(cut.record(n), PtyRecord::Outside(_)));
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    let cut = collect(&both(&old)).unwrap();
    assert!(matches!(cut.record(0), PtyRecord::Master(_)));
}

#[test]
fn the_slave_is_open_outside_alone() {
    let old = pair();
    let mut holder = std::process::Command::new("sleep").arg("1000").stdin(old.slave).spawn().unwrap();
    let said = collect(&[old.master.as_fd()]).err().unwrap().to_string();
    assert!(said.contains("the pseudoterminal /dev/pts/") && said.contains("not in the cut"), "{said}");
    holder.kill().unwrap();
    holder.wait().unwrap();
}
