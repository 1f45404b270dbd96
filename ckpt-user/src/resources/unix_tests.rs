//! Unix sockets of the test's own process, collected and made again in it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::MsgFlags;
use nix::unistd::{read, write};

use super::fd_trial::{Heir, again, collect, flags, refusal, this_process, wait_for};
use super::socket::SocketType;
use super::socket_options::SocketOptions;
use super::unix::{Alone, UnixRecord};
use super::unix_backlog::Arrival;
use super::unix_name::UnixName;
use crate::ids::ObjRef;
use crate::skip;
use crate::sys::queue;
use crate::sys::socket as raw;

const UNIX: i32 = libc::AF_UNIX;

#[test]
fn a_stream_with_contents_both_ways() {
    let (mut a, mut b) = UnixStream::pair().unwrap();
    b.set_nonblocking(true).unwrap();
    a.write_all(b"to b, ").unwrap();
    a.write_all(b"in two writes").unwrap();
    b.write_all(b"to a").unwrap();
    a.shutdown(std::net::Shutdown::Write).unwrap();
    let before = (flags(&a), flags(&b));
    let [new_b, new_a] = again([b.as_fd(), a.as_fd()]);
    assert_eq!((flags(&new_a), flags(&new_b)), before);
    let (mut new_a, mut new_b) = (UnixStream::from(new_a), UnixStream::from(new_b));
    let mut text = String::new();
    new_b.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to b, in two writes");
    assert_eq!(new_a.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
    new_b.write_all(b" and more").unwrap();
    let mut buf = [0; 13];
    new_a.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"to a and more");
    text.clear();
    b.read_to_string(&mut text).unwrap();
    assert_eq!(text, "to b, in two writes", "the target was not changed");
}

/// A look passes over the urgent byte, and would show it as any other the next time.
#[test]
fn urgent_data_is_refused() {
    let (a, b) = UnixStream::pair().unwrap();
    let send = |bytes: &[u8], flags| nix::sys::socket::send(a.as_fd().as_raw_fd(), bytes, flags);
    send(b"abc", MsgFlags::empty()).unwrap();
    match send(b"d", MsgFlags::MSG_OOB) {
        Err(Errno::EOPNOTSUPP) => {
            return skip::note("urgent_data_is_refused", "no urgent data in unix sockets here (CONFIG_AF_UNIX_OOB)");
        }
        other => assert_eq!(other, Ok(1)),
    }
    assert!(refusal(&b).contains("out-of-band"), "{}", refusal(&b));
    send(b"ef", MsgFlags::empty()).unwrap();
    assert!(refusal(&b).contains("out-of-band"), "{}", refusal(&b));
}

#[test]
fn messages_keep_their_boundaries() {
    for kind in [libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
        let (a, b) = raw::pair(UNIX, kind | libc::SOCK_NONBLOCK).unwrap();
        let sent: [&[u8]; 5] = [b"one", b"", b"two", &[7; 50_000], b"three"];
        for message in sent {
            assert_eq!(raw::send_now(a.as_fd(), message).unwrap(), message.len());
        }
        raw::set_int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, 5).unwrap();
        let [_new_a, new_b] = again([a.as_fd(), b.as_fd()]);
        assert!(refusal(&b).contains("an empty message"), "{}", refusal(&b));
        for fd in [&new_b, &b] {
            assert_eq!(raw::int_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap(), 5);
            let mut buf = vec![0; 100_000];
            for message in sent {
                let n = read(fd, &mut buf).unwrap();
                assert_eq!(&buf[..n], message);
            }
            assert_eq!(read(fd, &mut buf), Err(Errno::EAGAIN));
        }
    }
}

#[test]
fn full_buffers() {
    let (a, b) = raw::pair(UNIX, libc::SOCK_STREAM).unwrap();
    let mut sent = 0;
    for size in [100_000, 1].into_iter().cycle() {
        match raw::send_now(a.as_fd(), &vec![9; size]) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    let size = raw::int_option(a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap();
    let [new_a, new_b] = again([a.as_fd(), b.as_fd()]);
    assert_eq!(queue::readable(new_b.as_fd()).unwrap(), sent);
    assert_eq!(raw::int_option(new_a.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF).unwrap(), size);
    assert_eq!(raw::int_option(new_a.as_fd(), libc::SOL_SOCKET, libc::SO_BUF_LOCK).unwrap(), 0);
}

#[test]
fn the_other_end_is_gone() {
    let (a, mut b) = UnixStream::pair().unwrap();
    b.write_all(b"last words").unwrap();
    drop(b);
    wait_for(&a, PollFlags::POLLHUP);
    let [new] = again([a.as_fd()]);
    let mut text = String::new();
    UnixStream::from(new.try_clone().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    assert_eq!(raw::send_now(new.as_fd(), b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));

    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(b"never read").unwrap();
    drop(b);
    wait_for(&a, PollFlags::POLLERR);
    let [new] = again([a.as_fd()]);
    wait_for(&new, PollFlags::POLLERR);
    assert_eq!(read(&new, &mut [0; 4]), Err(Errno::ECONNRESET));
    assert_eq!(a.read(&mut [0; 4]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET), "the target was not changed");

    let (a, b) = UnixDatagram::pair().unwrap();
    drop(b);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while collect(&[a.as_fd()]).is_err() {
        assert!(std::time::Instant::now() < until);
    }
    let [new] = again([a.as_fd()]);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while write(&new, b"x") != Err(Errno::ECONNREFUSED) {
        assert!(std::time::Instant::now() < until);
    }
}

#[test]
fn a_listening_socket_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let old = UnixListener::bind(&path).unwrap();
    raw::listen(old.as_fd(), 7).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
    let cut = collect(&[old.as_fd()]).unwrap();
    let busy = cut.restore().unwrap_err().to_string();
    assert!(busy.contains("another program has the socket"), "{busy}");
    let name = raw::local_address(old.as_fd()).unwrap();
    drop(old);
    let new = cut.restore_soon().remove(0);
    assert_eq!(raw::local_address(new.as_fd()).unwrap(), name);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions()) & 0o777, 0o620);
    let spare = new.try_clone().unwrap();
    let mut heir = Heir::of([&new, &spare, &spare]);
    cut.attach(0, &mut heir.task(), 0).unwrap();
    let new = UnixListener::from(new);
    let mut client = UnixStream::connect(&path).unwrap();
    let peer = nix::sys::socket::getsockopt(&client, nix::sys::socket::sockopt::PeerCredentials).unwrap();
    assert_eq!(peer.pid(), heir.pid().0, "the task listens, not ckpt");
    wait_for(&new, PollFlags::POLLIN);
    let UnixRecord::Alone(listener) = collect(&[new.as_fd()]).unwrap().record(0) else { panic!("it is not a socket of its own") };
    let inode = nix::sys::stat::fstat(&client).unwrap().st_ino as u32;
    match &listener.waiting[..] {
        [Arrival::Silent(waiting)] => assert!(!nix::unistd::geteuid().is_root() && *waiting == inode),
        [Arrival::Seen(seen)] => assert_eq!((seen.client, &seen.queue[..]), (inode, &[][..])),
        other => panic!("{other:?}"),
    }
    let (mut accepted, _) = new.accept().unwrap();
    accepted.write_all(b"hello").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    let seen = collect(&[new.as_fd()]).unwrap();
    let [now, before] = [&seen, &cut].map(|cut| {
        let UnixRecord::Alone(mut alone) = cut.record(0) else { panic!("it is not a socket of its own") };
        let listener = alone.listener.take().expect("nobody listens");
        (listener.credentials.pid, alone)
    });
    assert_eq!((now.0, before.0), (heir.pid().0, this_process().0), "the task listens, not ckpt");
    assert_eq!(now.1, before.1);

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "in the way").unwrap();
    assert!(cut.restore().unwrap_err().to_string().contains("something else is there"));
}

#[test]
fn names_of_other_sorts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gone");
    let deleted = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let unnamed = raw::create(UNIX, libc::SOCK_STREAM, 0).unwrap();
    let abstract_one = raw::create(UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
    raw::bind(abstract_one.as_fd(), &[&1u16.to_ne_bytes()[..], b"\0ckpt-test-", this_process().to_string().as_bytes()].concat())
        .unwrap();
    let relative = raw::create(UNIX, libc::SOCK_DGRAM, 0).unwrap();
    let cwd = std::env::current_dir().unwrap();
    let up: std::path::PathBuf = std::iter::repeat_n("..", cwd.components().count() - 1).collect();
    let deep = up.join(folder.path().strip_prefix("/").unwrap()).join("r");
    let address = [&1u16.to_ne_bytes()[..], deep.to_str().unwrap().as_bytes(), b"\0"].concat();
    raw::bind(relative.as_fd(), &address).unwrap();
    raw::connect(unnamed.as_fd(), b"x").unwrap_err();
    let old = [deleted.as_fd(), unnamed.as_fd(), abstract_one.as_fd(), relative.as_fd()];
    let names = old.map(|fd| raw::local_address(fd).unwrap());
    let cut = collect(&old).unwrap();
    drop((deleted, unnamed, abstract_one, relative));
    let new = cut.restore_soon();
    assert_eq!(new.iter().map(|fd| raw::local_address(fd.as_fd()).unwrap()).collect::<Vec<_>>(), names);
    assert!(!path.exists());
    UnixDatagram::unbound().unwrap().send_to(b"x", folder.path().join("r")).unwrap();
}

#[test]
fn a_socket_whose_file_was_renamed() {
    let folder = tempfile::tempdir().unwrap();
    let [first, last] = ["sock.tmp", "sock"].map(|name| folder.path().join(name));
    let old = UnixListener::bind(&first).unwrap();
    std::fs::rename(&first, &last).unwrap();
    let name = raw::local_address(old.as_fd()).unwrap();
    let cut = collect(&[old.as_fd()]).unwrap();
    drop(old);
    let new = cut.restore_soon().remove(0);
    assert_eq!(raw::local_address(new.as_fd()).unwrap(), name);
    raw::listen(new.as_fd(), 1).unwrap();
    UnixStream::connect(&last).unwrap();
    assert!(!first.exists(), "the first name is left behind");
}

#[test]
fn datagrams_to_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let server = UnixDatagram::bind(&path).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.connect(&path).unwrap();
    client.send(b"waits").unwrap();
    let cut = collect(&[client.as_fd(), server.as_fd()]).unwrap();
    drop((client, server));
    let new = cut.restore_soon();
    let mut heir = Heir::of([&new[0], &new[1], &new[1]]);
    cut.attach(0, &mut heir.task(), 0).unwrap();
    cut.attach(1, &mut heir.task(), 1).unwrap();
    let [client, server] = <[OwnedFd; 2]>::try_from(new).unwrap().map(UnixDatagram::from);
    client.send(b"comes").unwrap();
    let mut buf = [0; 10];
    for text in [b"waits", b"comes"] {
        assert_eq!(server.recv(&mut buf).unwrap(), 5);
        assert_eq!(&buf[..5], text);
    }
    let named = UnixDatagram::bind(folder.path().join("sender")).unwrap();
    named.send_to(b"x", &path).unwrap();
    drop(named);
    assert!(refusal(&server).contains("messages of other sockets"));
}

#[test]
fn a_sender_with_a_name_sends_again() {
    let folder = tempfile::tempdir().unwrap();
    let [to, from] = ["server", "sender"].map(|name| folder.path().join(name));
    let [server, sender] = [&to, &from].map(|path| UnixDatagram::bind(path).unwrap());
    sender.send_to(b"waits", &to).unwrap();
    let cut = collect(&[server.as_fd(), sender.as_fd()]).unwrap();
    let record: UnixRecord = cut.record(0);
    let UnixRecord::Alone(alone) = record else { panic!("{record:?}") };
    assert_eq!(alone.queue[0].from, raw::local_address(sender.as_fd()).unwrap());
    sender.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(refusal(&server).contains("messages of other sockets"), "it could not send again");
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let (mine, theirs) = UnixStream::pair().unwrap();
    let mut child = std::process::Command::new("sleep").arg("1000").stdin(OwnedFd::from(theirs)).spawn().unwrap();
    assert!(refusal(&mine).contains("not being checkpointed"), "{}", refusal(&mine));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Whose server is not in the cut; and whom nobody could connect again.
#[test]
fn connections_that_nobody_has_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let server = UnixListener::bind(&path).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"early").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&server).contains("its file was deleted"), "{}", refusal(&server));
    drop(server);
    let [lone] = again([client.as_fd()]);
    assert_eq!(raw::send_now(lone.as_fd(), b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE), "its server is gone");
}

#[test]
fn hostile_records_are_errors() {
    let (a, b) = UnixStream::pair().unwrap();
    let changes: [fn(&mut UnixRecord); 4] = [
        |record| {
            if let UnixRecord::Paired(paired) = record {
                paired.end = 7;
            }
        },
        |record| {
            if let UnixRecord::Paired(paired) = record {
                paired.end ^= 1;
            }
        },
        |record| {
            if let UnixRecord::Paired(paired) = record {
                paired.pair = ObjRef(99);
            }
        },
        |record| *record = UnixRecord::Alone(Box::new(hostile())),
    ];
    for change in changes {
        let mut cut = collect(&[a.as_fd(), b.as_fd()]).unwrap();
        cut.edit(0, change);
        assert!(cut.restore().is_err());
    }
}

fn hostile() -> Alone {
    let socket = SocketType { domain: libc::AF_UNIX, kind: libc::SOCK_DGRAM, protocol: 0 };
    let name = Some(UnixName { address: vec![1], file: None });
    Alone {
        socket,
        name,
        backlog: None,
        listener: None,
        waiting: vec![],
        peer: vec![],
        queue: vec![],
        inode: None,
        shutdown: 0,
        options: SocketOptions::default(),
    }
}
