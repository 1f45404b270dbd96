//! Sockets: pairs within the process with something in them, and those that wait for others.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use ckpt_tests::checks::{Checks, said, same};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("unix-stream", stream());
    checks.add("unix-stream-half-closed", half_closed());
    checks.add("unix-datagram", datagram());
    checks.add("unix-seqpacket", seqpacket());
    checks.add("unix-listener", unix_listener());
    checks.add(
        "unix-unbound",
        UnixDatagram::unbound()
            .and_then(|socket| boxed(move || same("address", said("getsockname", socket.local_addr())?.is_unnamed(), true))),
    );
    checks.add("tcp-listener", tcp_listener());
    checks.add("tcp-listener-v6", tcp_listener_at("[::1]:0"));
    checks.add("udp", udp());
}

fn stream() -> Made {
    let (mut one, mut two) = UnixStream::pair()?;
    one.write_all(b"to two")?;
    two.write_all(b"to one, and more")?;
    one.set_nonblocking(true)?;
    boxed(move || {
        let (mut to_two, mut to_one) = ([0; 6], [0; 16]);
        said("read", two.read_exact(&mut to_two))?;
        said("read", one.read_exact(&mut to_one))?;
        same("contents", (&to_two, &to_one), (b"to two", b"to one, and more"))?;
        same("blocking", one.read(&mut [0]).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock))?;
        said("write", one.write_all(b"to two"))?;
        said("write", two.write_all(b"to one, and more"))
    })
}

/// One end has said that it will write no more.
fn half_closed() -> Made {
    let (mut one, mut two) = UnixStream::pair()?;
    one.write_all(b"the last")?;
    one.shutdown(std::net::Shutdown::Write)?;
    let mut expected = "the last";
    boxed(move || {
        let mut text = String::new();
        said("read", two.read_to_string(&mut text))?;
        same("contents", text.as_str(), expected)?;
        expected = "";
        said("write", two.write_all(b"x"))?;
        said("read", one.read_exact(&mut [0]))
    })
}

/// Messages keep their borders.
fn datagram() -> Made {
    let (one, two) = UnixDatagram::pair()?;
    let messages: [&[u8]; 3] = [b"first", b"", b"the third one"];
    for message in messages {
        one.send(message)?;
    }
    boxed(move || {
        for message in messages {
            let mut found = [0; 64];
            let length = said("recv", two.recv(&mut found))?;
            same("message", &found[..length], message)?;
        }
        messages.iter().try_for_each(|message| said("send", one.send(message)).map(drop))
    })
}

fn seqpacket() -> Made {
    let (one, two) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let raw = |fd: &OwnedFd| std::os::fd::AsRawFd::as_raw_fd(fd);
    let packets: [&[u8]; 2] = [b"one packet", b"another"];
    for packet in packets {
        send(raw(&one), packet, MsgFlags::empty())?;
    }
    boxed(move || {
        for packet in packets {
            let mut found = [0; 64];
            let length = said("recv", recv(raw(&two), &mut found, MsgFlags::MSG_DONTWAIT))?;
            same("packet", &found[..length], packet)?;
        }
        packets.iter().try_for_each(|packet| said("send", send(raw(&one), packet, MsgFlags::empty())).map(drop))
    })
}

fn unix_listener() -> Made {
    let listener = UnixListener::bind("listener")?;
    boxed(move || {
        let mut client = said("connect", UnixStream::connect("listener"))?;
        let (mut server, _) = said("accept", listener.accept())?;
        said("write", client.write_all(b"hello"))?;
        let mut found = [0; 5];
        said("read", server.read_exact(&mut found))?;
        same("contents", &found, b"hello")
    })
}

fn tcp_listener() -> Made {
    tcp_listener_at("127.0.0.1:0")
}

fn tcp_listener_at(address: &str) -> Made {
    let listener = TcpListener::bind(address)?;
    setsockopt(&listener, sockopt::KeepAlive, &true)?;
    setsockopt(&listener, sockopt::RcvBuf, &(100 * 1024))?;
    let options = |listener: &TcpListener| {
        let keep_alive = said("SO_KEEPALIVE", nix::sys::socket::getsockopt(listener, sockopt::KeepAlive))?;
        let reuse = said("SO_REUSEADDR", nix::sys::socket::getsockopt(listener, sockopt::ReuseAddr))?;
        let buffer = said("SO_RCVBUF", nix::sys::socket::getsockopt(listener, sockopt::RcvBuf))?;
        Ok::<_, String>((keep_alive, reuse, buffer))
    };
    let wanted = options(&listener).map_err(std::io::Error::other)?;
    let address = listener.local_addr()?;
    boxed(move || {
        same("address", said("getsockname", listener.local_addr())?, address)?;
        same("options", options(&listener)?, wanted)?;
        let mut client = said("connect", TcpStream::connect(address))?;
        let (mut server, _) = said("accept", listener.accept())?;
        said("write", client.write_all(b"hello"))?;
        let mut found = [0; 5];
        said("read", server.read_exact(&mut found))?;
        same("contents", &found, b"hello")
    })
}

/// Bound, and connected to itself.
fn udp() -> Made {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    boxed(move || {
        same("address", said("getsockname", socket.local_addr())?, address)?;
        same("broadcast", said("SO_BROADCAST", nix::sys::socket::getsockopt(&socket.as_fd(), sockopt::Broadcast))?, true)?;
        said("send", socket.send_to(b"to myself", address))?;
        let mut found = [0; 64];
        let (length, from) = said("recv", socket.recv_from(&mut found))?;
        same("message", (&found[..length], from), (b"to myself".as_slice(), address))
    })
}
