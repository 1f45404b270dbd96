//! Asynchronous write protection by userfaultfd, read and armed again by PAGEMAP_SCAN (Linux 6.7): what was written is what is not
//! protected any more.
//!
//! The descriptor is made in the process, whose address space it then belongs to, and lives here. When it is closed, by us or because ckpt
//! was killed, the kernel forgets all of it. Every cut registers what is not registered: new mappings, and those that have lost it (mremap,
//! munmap and mmap at one place). Their pages are not protected, so they count as written without further ado.
//!
//! The address space is that of the time when the descriptor was made. It may live on, with mappings at the same addresses, while the process
//! executes another program: so each cut proves first that the descriptor and the process still have the same.

use std::os::fd::AsFd;

use rangemap::RangeSet;

use super::DirtyTracker;
use crate::error::{Doing, Error, Result};
use crate::ids::{PAGE_SIZE, PageRange, Pid};
use crate::sys::pagemap::PageMap;
use crate::sys::userfaultfd::{USER_MODE_ONLY, WP_ASYNC, WP_UNPOPULATED, WriteNotes};
use crate::sys::{pidfd, probe};
use crate::tracee::maps::{Mapping, MappingKind, VmFlags};
use crate::tracee::remote::RemoteTask;

const NO_PROTECTION: &str = "this kernel has no asynchronous write protection (Linux 6.7 has it)";
const NO_SCAN: &str = "this kernel has no PAGEMAP_SCAN (Linux 6.7 has it)";

/// Does this machine have what it takes, for the caller?
///
/// Errors: what is missing.
pub fn probe() -> Result<()> {
    let features = probe::userfaultfd().doing(|| "userfaultfd(2), which takes CONFIG_USERFAULTFD, is not there")?;
    if features & (WP_UNPOPULATED | WP_ASYNC) != WP_UNPOPULATED | WP_ASYNC {
        return Err(Error::Unexpected(NO_PROTECTION.to_owned()));
    }
    can_scan(&PageMap::open(Pid(std::process::id() as i32))?)
}

fn can_scan(page_map: &PageMap) -> Result<()> {
    if page_map.has_scan() { Ok(()) } else { Err(Error::Unexpected(NO_SCAN.to_owned())) }
}

/// See the module.
#[derive(Debug)]
pub struct ScanTracker {
    pid: Pid,
    notes: WriteNotes,
    page_map: PageMap,
    /// What was registered at the last cut or since, but for huge pages, which lose their protection as a whole.
    protected: Vec<PageRange>,
    /// What was registered at the last cut.
    ours: RangeSet<u64>,
    /// Registered since, while somebody changed the mappings: the page tables may say "protected" of pages there that anybody could write.
    unsure: Vec<PageRange>,
}

impl ScanTracker {
    /// Makes the descriptor in the process of a stopped thread.
    ///
    /// Errors: the kernel has no asynchronous write protection, or lets nobody scan.
    pub fn start(task: &mut RemoteTask<'_>) -> Result<ScanTracker> {
        let pid = task.pid();
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        let fd = task.call("cannot make a userfaultfd", libc::SYS_userfaultfd, [flags.into()])?;
        let doing = || format!("cannot fetch the userfaultfd of pid {pid}");
        let fetched = pidfd::open(pid).and_then(|process| pidfd::get_fd(process.as_fd(), fd as i32));
        task.call("cannot close the userfaultfd again", libc::SYS_close, [fd.into()])?;
        let notes = WriteNotes::begin(fetched.doing(doing)?);
        let notes = notes.doing(|| NO_PROTECTION)?;
        let page_map = PageMap::open(pid)?;
        can_scan(&page_map)?;
        Ok(ScanTracker { pid, notes, page_map, protected: Vec::new(), ours: RangeSet::new(), unsure: Vec::new() })
    }

    /// Can the kernel note writes to it from now on? Memory that others write, too, through mappings of their own, is noted in theirs.
    fn is_noted(&self, mapping: &Mapping) -> Result<bool> {
        let private = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::AnonymousHuge | MappingKind::File);
        if !private || mapping.shared {
            return Ok(false);
        }
        // Also if it is registered already: that it is, in smaps, does not tell with whom, and another ckpt may watch the process, too.
        let pages = mapping.pages().numbers();
        let is_sure = !self.unsure.iter().any(|unsure| unsure.start < pages.end && pages.start < unsure.end());
        let was_registered = mapping.flags.contains(VmFlags::WRITES_NOTED) && is_sure;
        let doing = || format!("cannot track {} of pid {}", mapping.describe(), self.pid);
        match self.notes.register(mapping.pages()) {
            Ok(()) if was_registered => Ok(true),
            Ok(()) => {
                // Where mremap has moved memory beside other memory, both have lost their registration, but page tables may still say
                // "protected" of pages that anybody could write since.
                self.notes.unprotect(mapping.pages()).doing(doing)?;
                Ok(true)
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINVAL | libc::EPERM)) => {
                tracing::info!("{} of pid {} cannot be tracked: {e}", mapping.describe(), self.pid);
                Ok(false)
            }
            Err(e) => Err(e).doing(doing),
        }
    }
}

/// Is all of `pages` in the set?
fn within(set: &RangeSet<u64>, pages: PageRange) -> bool {
    set.gaps(&pages.numbers()).next().is_none()
}

impl DirtyTracker for ScanTracker {
    fn name(&self) -> &'static str {
        "scan"
    }

    /// Nothing is executed from here to the cut: every thread is stopped. The trial is made with memory of ckpt's own, which nobody else has
    /// registered: what is registered in the address space of the descriptor must be seen in that of the process.
    fn prepare(&mut self, task: &mut RemoteTask<'_>) -> Result<()> {
        let page_map = PageMap::open(self.pid)?;
        let own = task.own_pages()?;
        let lost = "it has another address space than before (another program was executed)";
        let doing = || format!("cannot track the memory of pid {}: {lost}", self.pid);
        self.notes.register(own).doing(doing)?;
        if !page_map.notes_writes(own)? {
            return Err(Error::Unexpected(doing()));
        }
        self.page_map = page_map;
        Ok(())
    }

    fn prearm(&mut self, mappings: &[Mapping], as_left: bool) -> Result<RangeSet<u64>> {
        let mut written = RangeSet::new();
        self.protected.clear();
        for mapping in mappings {
            if mapping.flags.contains(VmFlags::WRITES_NOTED) {
                // Not registered again: if it has been moved since it was looked at, it is not registered any more, and what its page tables say of
                // protection means nothing. What another ckpt watches must not be taken from it.
                if !as_left && !within(&self.ours, mapping.pages()) {
                    continue;
                }
            } else {
                match self.is_noted(mapping) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) => {
                        // It has been unmapped or moved in between, say. The cut looks at it again, with everything standing still.
                        tracing::debug!("{error}");
                        self.unsure.push(mapping.pages());
                        continue;
                    }
                }
            }
            self.page_map.take_written_if_registered(mapping.pages(), &mut written)?;
            if mapping.page_size == PAGE_SIZE {
                self.protected.push(mapping.pages());
            }
        }
        Ok(written)
    }

    fn cut(&mut self, mappings: &mut [Mapping]) -> Result<RangeSet<u64>> {
        let mut written = RangeSet::new();
        self.protected.clear();
        // Runs of mappings side by side are scanned at once.
        let mut noted: Vec<PageRange> = Vec::new();
        for mapping in mappings {
            let pages = mapping.pages();
            if !self.is_noted(mapping)? {
                mapping.flags -= VmFlags::WRITES_NOTED;
                if pages.count > 0 {
                    written.insert(pages.start..pages.end());
                }
                continue;
            }
            mapping.flags |= VmFlags::WRITES_NOTED;
            if mapping.page_size == PAGE_SIZE {
                self.protected.push(pages);
            }
            match noted.last_mut() {
                Some(run) if run.end() == pages.start => run.count += pages.count,
                _ => noted.push(pages),
            }
        }
        noted.iter().try_for_each(|run| self.page_map.take_written(*run, &mut written))?;
        self.ours = noted.iter().map(|run| run.numbers()).collect();
        self.unsure.clear();
        Ok(written)
    }

    fn protected(&self) -> &[PageRange] {
        &self.protected
    }
}
