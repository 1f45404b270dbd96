//! Every kind of open file, most specific first.

use super::file::FileKindEntry;
use super::{
    content, device, directory, epoll, eventfd, external, fanotify, fifo, inotify, mqueue, netlink, pidfd, pipe, process_file,
    pty, regular, signalfd, socket, tcp, timerfd, tun, udp, unix, view,
};

/// See the module. A descriptor that no kind claims is refused by name.
pub const FILE_KINDS: &[FileKindEntry] = &[
    FileKindEntry::of::<pty::Pty>(),
    FileKindEntry::of::<external::External>(),
    FileKindEntry::of::<device::Device>(),
    FileKindEntry::of::<tun::Tun>(),
    FileKindEntry::of::<mqueue::Mqueue>(),
    FileKindEntry::of::<process_file::ProcessFile>(),
    FileKindEntry::of::<content::Memfd>(),
    FileKindEntry::of::<content::Deleted>(),
    FileKindEntry::of::<view::View>(),
    FileKindEntry::of::<regular::Regular>(),
    FileKindEntry::of::<directory::Directory>(),
    FileKindEntry::of::<pipe::Pipe>(),
    FileKindEntry::of::<fifo::Fifo>(),
    FileKindEntry::of::<eventfd::Eventfd>(),
    FileKindEntry::of::<timerfd::Timerfd>(),
    FileKindEntry::of::<signalfd::Signalfd>(),
    FileKindEntry::of::<inotify::Inotify>(),
    FileKindEntry::of::<fanotify::Fanotify>(),
    FileKindEntry::of::<pidfd::PidFd>(),
    FileKindEntry::of::<epoll::Epoll>(),
    FileKindEntry::of::<tcp::Tcp>(),
    FileKindEntry::of::<udp::Udp>(),
    FileKindEntry::of::<netlink::Netlink>(),
    FileKindEntry::of::<unix::Unix>(),
    FileKindEntry::of::<socket::OtherSocket>(),
];
