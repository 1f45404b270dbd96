//! Calls that return when another thread does something.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

use ckpt_tests::sys::raw::{Arg, call};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::unistd::{gettid, mkfifo};

use super::{MASK, Wait, Wake};

/// The word that futex calls wait on.
static WORD: AtomicU32 = AtomicU32::new(1);
/// Room for what is read.
type Buffer = [u64; 64];

/// The call of this name and what wakes it, if there is one.
pub fn prepare(name: &str) -> Option<(Wait, Wake)> {
    if let Some(wait) = on_pipe(name) {
        return Some(wait);
    }
    Some(match name {
        "futex" => (
            Box::new(|| call(libc::SYS_futex, &[word().into(), libc::FUTEX_WAIT.into(), 1.into(), Arg::NULL])),
            Box::new(|| {
                WORD.store(2, Ordering::SeqCst);
                call(libc::SYS_futex, &[word().into(), libc::FUTEX_WAKE.into(), 1.into()]).expect("cannot wake");
            }),
        ),
        "futex-pi" => futex_pi(),
        "write-pipe" => full_pipe(),
        "read-eventfd" => {
            let event = leak(EventFd::new().expect("no eventfd").into());
            (Box::new(move || read(event, 8)), Box::new(move || write(event, &1u64.to_le_bytes())))
        }
        "read-signalfd" => {
            let mut set = 1u64 << (libc::SIGURG - 1);
            let fd =
                call(libc::SYS_signalfd4, &[(-1).into(), Arg::to(&mut set), 8.into(), 0.into()]).expect("no signalfd") as i32;
            (Box::new(move || read(fd, 512)), Box::new(|| send(Signal::SIGURG)))
        }
        "read-inotify" => {
            let inotify = Inotify::init(InitFlags::empty()).expect("no inotify");
            inotify
                .add_watch("watched", AddWatchFlags::IN_CREATE)
                .or_else(|_| {
                    std::fs::create_dir("watched").expect("cannot make a folder");
                    inotify.add_watch("watched", AddWatchFlags::IN_CREATE)
                })
                .expect("cannot watch a folder");
            let fd = leak(inotify.into());
            (Box::new(move || read(fd, 512)), Box::new(|| drop(File::create("watched/new").expect("cannot make a file"))))
        }
        "recvfrom" | "recvmsg" => on_socket(name),
        "accept" => {
            let listener = UnixListener::bind("socket").expect("cannot listen").into_raw_fd();
            let wake = || drop(UnixStream::connect("socket").expect("cannot connect"));
            (
                Box::new(move || call(libc::SYS_accept4, &[listener.into(), Arg::NULL, Arg::NULL, 0.into()]).map(|_| 0)),
                Box::new(wake),
            )
        }
        "open-fifo" => {
            mkfifo("fifo", nix::sys::stat::Mode::S_IRWXU).expect("cannot make a FIFO");
            let mut path = *b"fifo\0";
            let wait =
                move || call(libc::SYS_openat, &[libc::AT_FDCWD.into(), Arg::to(&mut path), libc::O_RDONLY.into()]).map(|_| 0);
            (Box::new(wait), Box::new(|| drop(File::options().write(true).open("fifo").expect("cannot open the FIFO"))))
        }
        "flock" => {
            let (holder, waiter) = locked_file(|fd| call(libc::SYS_flock, &[fd.into(), libc::LOCK_EX.into()]));
            let wake = move || {
                call(libc::SYS_flock, &[holder.into(), libc::LOCK_UN.into()]).expect("cannot unlock");
            };
            (Box::new(move || call(libc::SYS_flock, &[waiter.into(), libc::LOCK_EX.into()])), Box::new(wake))
        }
        "fcntl-lock" => {
            let (holder, waiter) = locked_file(|fd| lock(fd, libc::F_OFD_SETLK, libc::F_WRLCK));
            let wake = move || {
                lock(holder, libc::F_OFD_SETLK, libc::F_UNLCK).expect("cannot unlock");
            };
            (Box::new(move || lock(waiter, libc::F_OFD_SETLKW, libc::F_WRLCK)), Box::new(wake))
        }
        "pause" => (Box::new(|| call(libc::SYS_pause, &[])), to_this_thread(libc::SIGUSR2)),
        "sigsuspend" => {
            (Box::new(|| call(libc::SYS_rt_sigsuspend, &[Arg::to(&mut { MASK }), 8.into()])), to_this_thread(libc::SIGUSR2))
        }
        "sigwaitinfo" => {
            let mut set = 1u64 << (libc::SIGUSR2 - 1);
            (
                Box::new(move || call(libc::SYS_rt_sigtimedwait, &[Arg::to(&mut set), Arg::NULL, Arg::NULL, 8.into()])),
                to_this_thread(libc::SIGUSR2),
            )
        }
        _ => return None,
    })
}

/// Calls that wait until there is something in a pipe.
fn on_pipe(name: &str) -> Option<(Wait, Wake)> {
    let (reader, writer) = io::pipe().expect("no pipe");
    let fd = leak(reader.into());
    let mut set = [0u64; 16];
    set[0] = 1 << fd;
    let wait: Wait = match name {
        "read-pipe" => Box::new(move || read(fd, 512)),
        "readv-pipe" => Box::new(move || {
            let mut buffer: Buffer = [0; 64];
            let mut vector = [&raw mut buffer as usize, 100];
            call(libc::SYS_readv, &[fd.into(), Arg::to(&mut vector), 1.into()])
        }),
        "poll" => Box::new(move || call(libc::SYS_poll, &[Arg::to(&mut poll_for(fd)), 1.into(), (-1).into()])),
        "ppoll" => Box::new(move || {
            call(libc::SYS_ppoll, &[Arg::to(&mut poll_for(fd)), 1.into(), Arg::NULL, Arg::to(&mut { MASK }), 8.into()])
        }),
        "select" => {
            Box::new(move || call(libc::SYS_select, &[(fd + 1).into(), Arg::to(&mut set), Arg::NULL, Arg::NULL, Arg::NULL]))
        }
        "pselect" => Box::new(move || {
            let mut mask = MASK;
            let mut pair = [&raw mut mask as u64, 8];
            call(libc::SYS_pselect6, &[(fd + 1).into(), Arg::to(&mut set), Arg::NULL, Arg::NULL, Arg::NULL, Arg::to(&mut pair)])
        }),
        "epoll_wait" => {
            let epoll = epoll_for(fd);
            Box::new(move || call(libc::SYS_epoll_wait, &[epoll.into(), Arg::to(&mut [0u64; 8]), 4.into(), (-1).into()]))
        }
        "epoll_pwait" => {
            let epoll = epoll_for(fd);
            Box::new(move || {
                let (mut events, mut mask) = ([0u64; 8], MASK);
                let arguments = [epoll.into(), Arg::to(&mut events), 4.into(), (-1).into(), Arg::to(&mut mask), 8.into()];
                call(libc::SYS_epoll_pwait, &arguments)
            })
        }
        _ => return None,
    };
    let mut writer = writer;
    Some((wait, Box::new(move || writer.write_all(b"x").expect("cannot write"))))
}

fn poll_for(fd: i32) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// An epoll instance that waits for `fd`.
fn epoll_for(fd: i32) -> i32 {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("no epoll");
    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, 1);
    let arguments = [epoll.0.as_raw_fd().into(), libc::EPOLL_CTL_ADD.into(), fd.into(), Arg::to(&mut event)];
    call(libc::SYS_epoll_ctl, &arguments).expect("cannot add to epoll");
    leak(epoll.0)
}

/// A lock that the waking thread has, in the kernel's way of writing that.
fn futex_pi() -> (Wait, Wake) {
    let (tell, told) = std::sync::mpsc::channel();
    WORD.store(0, Ordering::SeqCst);
    let unlock = move || {
        call(libc::SYS_futex, &[word().into(), libc::FUTEX_UNLOCK_PI.into()]).expect("cannot unlock");
    };
    std::thread::spawn(move || {
        WORD.store(gettid().as_raw() as u32, Ordering::SeqCst);
        tell.send(()).expect("nobody waits");
        super::wake_on_request(Box::new(unlock));
        // Ends only with the program.
        loop {
            std::thread::park();
        }
    });
    told.recv().expect("the other thread has ended");
    let wait = || call(libc::SYS_futex, &[word().into(), libc::FUTEX_LOCK_PI.into(), 0.into(), Arg::NULL]);
    // Whoever else gets the request passes it on.
    (Box::new(wait), Box::new(|| send(Signal::SIGUSR1)))
}

/// A pipe with no room for a page.
fn full_pipe() -> (Wait, Wake) {
    let (reader, writer) = io::pipe().expect("no pipe");
    let (reader, writer) = (leak(reader.into()), leak(writer.into()));
    let size = call(libc::SYS_fcntl, &[writer.into(), libc::F_GETPIPE_SZ.into()]).expect("no size");
    for _ in 0..size / 4096 {
        write(writer, &[7; 4096]);
    }
    let wake = move || {
        call(libc::SYS_read, &[reader.into(), Arg::to(&mut [0u8; 65536]), 65536.into()]).expect("cannot read");
    };
    (Box::new(move || call(libc::SYS_write, &[writer.into(), Arg::to(&mut [8u8; 4096]), 4096.into()])), Box::new(wake))
}

fn on_socket(name: &str) -> (Wait, Wake) {
    let (ours, theirs) = UnixStream::pair().expect("no sockets");
    let (ours, theirs) = (ours.into_raw_fd(), theirs.into_raw_fd());
    let wait: Wait = if name == "recvfrom" {
        Box::new(move || {
            call(libc::SYS_recvfrom, &[ours.into(), Arg::to::<Buffer>(&mut [0; 64]), 512.into(), 0.into(), Arg::NULL, Arg::NULL])
        })
    } else {
        Box::new(move || {
            let mut buffer: Buffer = [0; 64];
            let mut vector = [&raw mut buffer as usize, 100];
            // struct msghdr: no name, one vector, no control data.
            let mut message = [0, 0, &raw mut vector as usize, 1, 0, 0, 0];
            call(libc::SYS_recvmsg, &[ours.into(), Arg::to(&mut message), 0.into()])
        })
    };
    (wait, Box::new(move || write(theirs, b"x")))
}

/// Two openings of a file, of which the first has a lock.
fn locked_file(lock: impl Fn(i32) -> io::Result<i64>) -> (i32, i32) {
    let open = || File::options().write(true).create(true).truncate(false).open("locked").expect("cannot make a file");
    let (holder, waiter) = (open().into_raw_fd(), open().into_raw_fd());
    lock(holder).expect("cannot lock");
    (holder, waiter)
}

fn lock(fd: i32, command: i32, kind: i32) -> io::Result<i64> {
    // SAFETY: all bytes zero are a valid struct flock: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    call(libc::SYS_fcntl, &[fd.into(), command.into(), Arg::to(&mut lock)])
}

/// Sends a signal to the calling thread, which is the one that waits, from another one.
fn to_this_thread(signal: i32) -> Wake {
    let (pid, tid) = (std::process::id(), gettid().as_raw());
    Box::new(move || {
        call(libc::SYS_tgkill, &[pid.into(), tid.into(), signal.into()]).expect("cannot send a signal");
    })
}

fn send(signal: Signal) {
    nix::sys::signal::kill(nix::unistd::getpid(), signal).expect("cannot send a signal");
}

fn word() -> usize {
    &raw const WORD as usize
}

/// Descriptors stay open until the program ends.
fn leak(fd: OwnedFd) -> i32 {
    fd.into_raw_fd()
}

fn read(fd: i32, length: usize) -> io::Result<i64> {
    call(libc::SYS_read, &[fd.into(), Arg::to::<Buffer>(&mut [0; 64]), length.into()])
}

fn write(fd: i32, bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let length = bytes.len();
    assert_eq!(
        call(libc::SYS_write, &[fd.into(), Arg::to(bytes.as_mut_slice()), length.into()]).ok(),
        Some(length as i64),
        "cannot write"
    );
}
