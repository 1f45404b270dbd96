//! Unix connections that wait to be accepted: the kernel has made the server's end of each, and no program has a descriptor of it. What the clients
//! have sent, and who they are, is read where it lies (net/unix/af_unix.c, include/net/af_unix.h).

use std::os::fd::BorrowedFd;

use super::kernel_memory::missing;
use super::tcp_queue::{Reader, field, with_reader};
use super::{EbpfError, Result};
use crate::ids::Pid;
use crate::sys::btf::Btf;
use crate::sys::peer::Identity;
use crate::sys::scm::Credentials;

const DOING: &str = "cannot read what was sent over a unix connection that waits to be accepted";
/// A struct pid knows so many namespaces at most (MAX_PID_NS_LEVEL).
const NAMESPACES_MAX: u64 = 32;
/// No process has more groups (NGROUPS_MAX).
const GROUPS_MAX: u32 = 65536;
/// The longest address of a unix socket: its family, and 108 bytes.
const ADDRESS_MAX: u32 = 110;

/// Offsets in bytes within the kernel's structs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    made: u64,
    peer: u64,
    address: u64,
    address_length: u64,
    address_name: u64,
    /// `None`: this kernel knows no urgent data here.
    urgent: Option<u64>,
    client_pid: u64,
    client_credentials: u64,
    user: u64,
    group: u64,
    groups: u64,
    groups_count: u64,
    groups_list: u64,
    level: u64,
    numbers: u64,
    number: u64,
    namespace: u64,
    number_bytes: u64,
    of_task: u64,
    sender: u64,
    sender_user: u64,
    sender_group: u64,
    files: u64,
    consumed: u64,
}

impl Layout {
    /// Found out at the first use.
    fn known(reader: &mut Reader) -> Result<Layout> {
        match reader.unix {
            Some(layout) => Ok(layout),
            None => Ok(*reader.unix.insert(Layout::of(&Btf::of_kernel().map_err(missing)?)?)),
        }
    }

    fn of(btf: &Btf) -> Result<Layout> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let (unix, sock) = (|path: &str| offset("unix_sock", path), |path: &str| offset("sock", path));
        let sent = |path: &str| offset("unix_skb_parms", path);
        Ok(Layout {
            made: offset("sk_buff", "sk")?,
            peer: unix("peer")?,
            address: unix("addr")?,
            address_length: offset("unix_address", "len")?,
            address_name: offset("unix_address", "name")?,
            urgent: unix("oob_skb").ok(),
            client_pid: sock("sk_peer_pid")?,
            client_credentials: sock("sk_peer_cred")?,
            user: offset("cred", "euid")?,
            group: offset("cred", "egid")?,
            groups: offset("cred", "group_info")?,
            groups_count: offset("group_info", "ngroups")?,
            groups_list: offset("group_info", "gid")?,
            level: offset("pid", "level")?,
            numbers: offset("pid", "numbers")?,
            number: offset("upid", "nr")?,
            namespace: offset("upid", "ns")?,
            number_bytes: btf.size_of("upid").map_err(missing)?.into(),
            of_task: offset("task_struct", "thread_pid")?,
            sender: sent("pid")?,
            sender_user: sent("uid")?,
            sender_group: sent("gid")?,
            files: sent("fp")?,
            consumed: sent("consumed")?,
        })
    }
}

/// The server's end of a connection that waits to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixArrived {
    /// Who has connected. Without a process, if it is of another pid namespace.
    pub client: Identity,
    /// The address of the client's socket. Empty: it has none.
    pub name: Vec<u8>,
    /// What the client has sent.
    pub sent: Vec<UnixSent>,
    /// There is urgent data among it.
    pub is_urgent: bool,
}

/// What was sent at once, or (stream) a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSent {
    /// The bytes.
    pub data: Vec<u8>,
    /// Who has sent it, if that was noted.
    pub credentials: Option<Credentials>,
    /// Descriptors travel with it.
    pub has_files: bool,
}

/// Has all loaded that it takes, so that a freeze need not wait for it.
pub fn prepare_for_unix() -> Result<()> {
    with_reader(|reader| Layout::known(reader).map(drop))
}

/// The connections that wait to be accepted by the listening socket behind a descriptor of ours, in their order. Nobody may send to them meanwhile.
pub fn unix_waiting(listener: BorrowedFd<'_>) -> Result<Vec<UnixArrived>> {
    with_reader(|reader| {
        let layout = Layout::known(reader)?;
        let head = reader.sock(listener)? + reader.layout.received;
        let records = reader.records(head)?;
        let mut look = Look { reader, layout };
        records.iter().map(|record| look.arrived(field(record, layout.made)?)).collect()
    })
}

struct Look<'r> {
    reader: &'r mut Reader,
    layout: Layout,
}

impl Look<'_> {
    fn arrived(&mut self, sock: u64) -> Result<UnixArrived> {
        let Layout { urgent, client_pid, client_credentials, .. } = self.layout;
        let (pid, cred) = (self.reader.kernel.number(sock + client_pid)?, self.reader.kernel.number(sock + client_credentials)?);
        let client = self.identity(pid, cred)?;
        let name = self.client_name(sock)?;
        let is_urgent = match urgent {
            Some(urgent) => self.reader.kernel.number(sock + urgent)? != 0,
            None => false,
        };
        let sent = self.reader.records(sock + self.reader.layout.received)?;
        let sent = sent.iter().map(|record| self.sent(record)).collect::<Result<_>>()?;
        Ok(UnixArrived { client, name, sent, is_urgent })
    }

    fn client_name(&mut self, sock: u64) -> Result<Vec<u8>> {
        let Layout { peer, address, address_length, address_name, .. } = self.layout;
        // A socket that was closed stays until the other end is closed, too.
        let client = self.reader.kernel.number(sock + peer)?;
        let address = if client == 0 { 0 } else { self.reader.kernel.number(client + address)? };
        if address == 0 {
            return Ok(Vec::new());
        }
        let length = self.reader.word(address + address_length)?;
        if length > ADDRESS_MAX {
            return Err(EbpfError::unsupported(DOING, "an address is longer than it can be"));
        }
        self.reader.kernel.bytes(address + address_name, length as usize)
    }

    /// A struct pid and a struct cred. Without namespaces of our own ids are the kernel's: eBPF is for nobody else.
    fn identity(&mut self, pid: u64, cred: u64) -> Result<Identity> {
        let Layout { user, group, groups, groups_count, groups_list, .. } = self.layout;
        let credentials =
            Credentials { pid: self.pid_of(pid)?, uid: self.reader.word(cred + user)?, gid: self.reader.word(cred + group)? };
        let list = self.reader.kernel.number(cred + groups)?;
        let count = self.reader.word(list + groups_count)?;
        if count > GROUPS_MAX {
            return Err(EbpfError::unsupported(DOING, "a process has more groups than it can have"));
        }
        let groups = self.reader.kernel.bytes(list + groups_list, count as usize * 4)?;
        Ok(Identity { credentials, groups: groups.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect() })
    }

    /// The number of a struct pid in our namespace. 0: it has none there.
    fn pid_of(&mut self, pid: u64) -> Result<i32> {
        let Layout { level, numbers, number, namespace, number_bytes, of_task, .. } = self.layout;
        let own = self.reader.kernel.task(Pid(std::process::id() as i32))?;
        let own = self.reader.kernel.number(own + of_task)?;
        let (depth, theirs) = (u64::from(self.reader.word(own + level)?), u64::from(self.reader.word(pid + level)?));
        if depth.max(theirs) > NAMESPACES_MAX {
            return Err(EbpfError::unsupported(DOING, "a process is in more namespaces than it can be"));
        }
        let at = numbers + depth * number_bytes;
        if theirs < depth
            || self.reader.kernel.number(own + at + namespace)? != self.reader.kernel.number(pid + at + namespace)?
        {
            return Ok(0);
        }
        Ok(self.reader.word(pid + at + number)? as i32)
    }

    /// What is in a buffer, whose sender has noted who he is.
    fn sent(&mut self, record: &[u8]) -> Result<UnixSent> {
        let Layout { sender, sender_user, sender_group, files, consumed, .. } = self.layout;
        let control = self.reader.layout.control;
        let word = |at: u64| Ok::<u32, EbpfError>(field(record, control + at)? as u32);
        let pid = field(record, control + sender)?;
        let credentials = match pid {
            0 => None,
            pid => Some(Credentials { pid: self.pid_of(pid)?, uid: word(sender_user)?, gid: word(sender_group)? }),
        };
        if word(consumed)? != 0 {
            return Err(EbpfError::unexpected(DOING, "somebody has read a part of it"));
        }
        Ok(UnixSent { data: self.reader.contents(record)?, credentials, has_files: field(record, control + files)? != 0 })
    }
}
