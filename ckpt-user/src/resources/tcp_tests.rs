//! The kinds of TCP sockets, in the test's own process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;

use nix::poll::PollFlags;

use super::collector::CollectOptions;
use super::fd_trial::{Cut, collect, collect_with, flags, refusal, this_process, wait_for};
use super::socket;
use super::tcp::TcpRecord;
use super::tcp_connection::{self, TcpEnd};
use crate::image::model::Section;
use crate::sys::socket as raw;

fn collect_closing(fds: &[BorrowedFd<'_>]) -> Cut {
    let fds: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    collect_with(&CollectOptions { tcp_close: true, ..CollectOptions::default() }, this_process(), &fds).unwrap()
}

#[test]
fn listening_sockets() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let old = TcpListener::bind(address.parse::<SocketAddr>().unwrap()).unwrap();
        old.set_nonblocking(true).unwrap();
        raw::listen(old.as_fd(), 37).unwrap();
        let address = old.local_addr().unwrap();
        let cut = collect(&[old.as_fd()]).unwrap();
        let busy = cut.restore().unwrap_err().to_string();
        assert!(busy.contains("another program") && busy.contains(&address.to_string()), "{busy}");
        let status = flags(&old);
        drop(old);
        let new = cut.restore_soon().remove(0);
        assert_eq!(flags(&new), status);
        let again = collect(&[new.as_fd()]).unwrap();
        assert_eq!(again.record::<TcpRecord>(0), cut.record(0));
        let new = TcpListener::from(new);
        let mut client = TcpStream::connect(address).unwrap();
        wait_for(&new, PollFlags::POLLIN);
        new.set_nonblocking(false).unwrap();
        new.accept().unwrap().0.write_all(b"hello").unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop((client, new));
        // The other end of an accepted connection keeps the port busy for a while; that is no hindrance.
        cut.restore_soon();
    }
}

#[test]
fn multipath() {
    let old = raw::create(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
    let mut address = raw::local_address(old.as_fd()).unwrap();
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    raw::bind(old.as_fd(), &address).unwrap();
    raw::listen(old.as_fd(), 5).unwrap();
    let cut = collect(&[old.as_fd()]).unwrap();
    drop(old);
    let new = cut.restore_soon().remove(0);
    assert_eq!(collect(&[new.as_fd()]).unwrap().record::<TcpRecord>(0), cut.record(0));
}

#[test]
fn bound_or_not() {
    let fresh = raw::create(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
    raw::set_int_option(fresh.as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
    let bound = raw::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
    raw::bind(bound.as_fd(), &raw::local_address(bound.as_fd()).unwrap()).unwrap();
    let address = raw::local_address(bound.as_fd()).unwrap();
    assert_ne!(address[2..4], [0, 0]);
    let cut = collect(&[fresh.as_fd(), bound.as_fd()]).unwrap();
    drop((fresh, bound));
    let new = cut.restore_soon();
    assert!(socket::is_unbound(&raw::local_address(new[0].as_fd()).unwrap()));
    assert_eq!(raw::local_address(new[1].as_fd()).unwrap(), address);
    assert_eq!(raw::int_option(new[0].as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY).unwrap(), 1);
    assert_eq!(raw::int_option(new[1].as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 0);
}

/// Another program has the other end.
#[test]
fn connections_to_others() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let (accepted, _) = server.accept().unwrap();
    let mut other = Command::new("sleep").arg("1000").stdin(OwnedFd::from(accepted)).spawn().unwrap();
    client.set_nodelay(true).unwrap();
    let refused = refusal(&client);
    assert!(refused.contains("--tcp-close") && refused.contains(&server.local_addr().unwrap().to_string()), "{refused}");
    let new = collect_closing(&[client.as_fd()]).restore().unwrap().remove(0);
    wait_for(&new, PollFlags::POLLIN | PollFlags::POLLHUP);
    let mut new = TcpStream::from(new);
    assert!(new.nodelay().unwrap());
    assert_eq!(new.read(&mut [0; 10]).unwrap(), 0);
    assert_eq!(new.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Both ends are here. A queue that is more than the new connection takes at first waits at both of its ends.
#[test]
fn connections() {
    if !nix::unistd::geteuid().is_root() {
        return crate::skip::note("connections", "not root");
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    let bytes: Vec<u8> = (0..10_000_000u32).flat_map(|n| n.to_be_bytes()).collect();
    let mut sent = 0;
    while let Ok(count) = client.write(&bytes[sent..]) {
        sent += count;
    }
    accepted.write_all(b"back").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let names = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let cut = collect(&[accepted.as_fd(), client.as_fd()]).unwrap();
    drop((client, accepted));
    let mut new = cut.restore().unwrap().into_iter().map(TcpStream::from);
    let (mut accepted, mut client) = (new.next().unwrap(), new.next().unwrap());
    assert_eq!((client.local_addr().unwrap(), client.peer_addr().unwrap()), names);
    let mut read = Vec::new();
    accepted.read_to_end(&mut read).unwrap();
    assert!(read == bytes[..sent], "{} of {sent} bytes", read.len());
    let mut back = [0; 10];
    assert_eq!(client.read(&mut back).unwrap(), 4);
}

#[test]
fn what_is_left_of_a_connection() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let (accepted, _) = server.accept().unwrap();
    drop(accepted);
    wait_for(&client, PollFlags::POLLIN);
    client.shutdown(std::net::Shutdown::Both).unwrap();
    wait_for(&client, PollFlags::POLLHUP);
    let mut new = TcpStream::from(collect(&[client.as_fd()]).unwrap().restore().unwrap().remove(0));
    assert_eq!(new.read(&mut [0; 10]).unwrap(), 0);
}

#[test]
fn hostile_records_are_errors() {
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let changes: [fn(&mut TcpRecord); 5] = [
        |record| record.local = vec![0; 1000],
        |record| record.local = vec![1],
        |record| record.socket.domain = libc::AF_UNIX,
        |record| record.socket.kind = libc::SOCK_RAW,
        |record| record.socket.protocol = -1,
    ];
    for change in changes {
        let mut cut = collect(&[old.as_fd()]).unwrap();
        cut.edit(0, change);
        assert!(cut.restore().is_err());
    }
}

/// A connection that no kernel would have is an error, and no panic.
#[test]
fn hostile_connections_are_errors() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let (accepted, _) = server.accept().unwrap();
    let changes: [fn(&mut TcpEnd); 6] = [
        |end| end.local = vec![0; 1000],
        |end| end.local = Vec::new(),
        |end| end.peer = vec![1],
        |end| end.socket.protocol = libc::IPPROTO_MPTCP,
        |end| end.socket.domain = libc::AF_UNIX,
        |end| end.scales = Some((200, 200)),
    ];
    for change in changes {
        let mut cut = collect(&[client.as_fd(), accepted.as_fd()]).unwrap();
        for object in cut.objects.iter_mut().filter(|object| object.section.kind == tcp_connection::END) {
            let mut end: TcpEnd = object.section.decode().unwrap();
            change(&mut end);
            object.section = Section::encode(tcp_connection::END, &end).unwrap();
        }
        assert!(cut.restore().is_err());
    }
}
