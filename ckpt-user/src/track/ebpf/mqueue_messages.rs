//! The messages that wait in a POSIX message queue, which the kernel only gives to who takes them away: read where they lie (ipc/mqueue.c,
//! ipc/msgutil.c).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::kernel_memory::{KernelMemory, missing};
use super::{EbpfError, Result};
use crate::ids::PAGE_SIZE;
use crate::sys::btf::Btf;

const DOING: &str = "cannot read what waits in a message queue";

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedMessage {
    /// Its priority.
    pub priority: u32,
    /// Its text.
    pub text: Vec<u8>,
}

/// Offsets in bytes within the kernel's structs.
#[derive(Debug)]
struct Layout {
    inode_of_file: u64,
    inode: u64,
    tree: u64,
    left: u64,
    right: u64,
    node: u64,
    list: u64,
    priority: u64,
    length: u64,
    next_segment: u64,
    message_bytes: u64,
    segment_bytes: u64,
}

impl Layout {
    fn of(btf: &Btf) -> Result<Layout> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        Ok(Layout {
            inode_of_file: offset("file", "f_inode")?,
            inode: offset("mqueue_inode_info", "vfs_inode")?,
            tree: offset("mqueue_inode_info", "msg_tree")?,
            left: offset("rb_node", "rb_left")?,
            right: offset("rb_node", "rb_right")?,
            node: offset("posix_msg_tree_node", "rb_node")?,
            list: offset("posix_msg_tree_node", "msg_list")?,
            priority: offset("posix_msg_tree_node", "priority")?,
            length: offset("msg_msg", "m_ts")?,
            next_segment: offset("msg_msg", "next")?,
            message_bytes: btf.size_of("msg_msg").map_err(missing)?.into(),
            segment_bytes: btf.size_of("msg_msgseg").map_err(missing)?.into(),
        })
    }
}

static READER: Mutex<Option<(KernelMemory, Layout)>> = Mutex::new(None);

/// All messages in the queue behind a descriptor of ours, those of one priority in the order in which they were sent. `count`: how many there are.
pub fn mqueue_messages(queue: BorrowedFd<'_>, count: usize) -> Result<Vec<QueuedMessage>> {
    // A reader holds nothing that could be half done.
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    if reader.is_none() {
        let btf = Btf::of_kernel().map_err(missing)?;
        *reader = Some((KernelMemory::load(&btf)?, Layout::of(&btf)?));
    }
    let Some((memory, layout)) = reader.as_mut() else { return Err(EbpfError::unexpected(DOING, "there is no reader")) };
    let file = memory.open_file(queue.as_raw_fd())?;
    let inode = memory.number(file + layout.inode_of_file)?;
    let root = memory.number(inode - layout.inode + layout.tree)?;
    let (mut nodes, mut found) = (vec![root], Vec::new());
    while let Some(node) = nodes.pop() {
        if node == 0 {
            continue;
        }
        nodes.extend([memory.number(node + layout.left)?, memory.number(node + layout.right)?]);
        let leaf = node - layout.node;
        let priority = memory.number(leaf + layout.priority)? as u32;
        let head = leaf + layout.list;
        let mut message = memory.number(head)?;
        while message != head {
            if found.len() == count {
                return Err(EbpfError::unexpected(DOING, "it holds more than it should"));
            }
            found.push(QueuedMessage { priority, text: text(memory, layout, message)? });
            // m_list comes first in a message.
            message = memory.number(message)?;
        }
    }
    if found.len() != count {
        return Err(EbpfError::unexpected(DOING, "it holds less than it should"));
    }
    Ok(found)
}

/// A page begins with the message's own record, each further one with a pointer to the next.
fn text(memory: &mut KernelMemory, layout: &Layout, message: u64) -> Result<Vec<u8>> {
    let length = memory.number(message + layout.length)?;
    /// HARD_MSGSIZEMAX.
    const LENGTH_MAX: u64 = 16 << 20;
    if length > LENGTH_MAX {
        return Err(EbpfError::unexpected(DOING, "a message is longer than it can be"));
    }
    let mut rest = length as usize;
    let mut text = Vec::with_capacity(rest);
    let (mut at, mut before, mut next) = (message, layout.message_bytes, message + layout.next_segment);
    loop {
        let part = rest.min((PAGE_SIZE - before) as usize);
        text.extend(memory.bytes(at + before, part)?);
        rest -= part;
        if rest == 0 {
            return Ok(text);
        }
        at = memory.number(next)?;
        (before, next) = (layout.segment_bytes, at);
    }
}
