//! Asynchronous write protection by userfaultfd, read and armed again by PAGEMAP_SCAN (Linux 6.7): what was written is what is not
//! protected any more.
//!
//! The descriptor is made in the process, whose address space it then belongs to, and lives here. When it is closed, by us or because ckpt
//! was killed, the kernel forgets all of it. Every cut registers what is not registered: new mappings, and those that have lost it (mremap,
//! munmap and mmap at one place). Their pages are not protected, so they count as written without further ado.
//!
//! The address space is that of the time when the descriptor was made. It may live on, with mappings at the same addresses, while the process
//! executes another program: so each cut proves first that the descriptor and the process still have the same.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use super::DirtyTracker;
use super::ebpf::AddressSpace;
use super::passed_over::{Passed, Touched, passed_over};
use super::presence::{Content, Presence, Run};
use crate::error::{Doing, Error, Result};
use crate::ids::{PAGE_SIZE, PageRange, Pid, union};
use crate::page_set::PageSet;
use crate::sys::pagemap::{Page, PageMap, Taken};
use crate::sys::userfaultfd::{USER_MODE_ONLY, WP_ASYNC, WP_UNPOPULATED, WriteNotes};
use crate::sys::{parallel, pidfd, probe};
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

/// Does a scan for what was written also tell of pages that are not there any more? Asked once.
fn tells_what_is_gone() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let tells = probe::scan_tells_what_is_gone().unwrap_or_else(|error| {
            tracing::debug!("cannot try what a scan of page tables tells: {error}");
            false
        });
        if !tells {
            tracing::info!(
                "the page tables of all of the memory are looked at at each cut: this kernel does not tell which pages are gone"
            );
        }
        tells
    })
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
    ours: PageSet,
    /// Registered since, while somebody changed the mappings: the page tables may say "protected" of pages there that anybody could write.
    unsure: Vec<PageRange>,
    /// `None`: the kernel tells too little for it.
    presence: Option<Presence>,
    /// That of the process when this was last tried to be that of the descriptor.
    space: Option<AddressSpace>,
    /// What was protected by the last cut, or by [`DirtyTracker::prearm`] since, of small pages without a file.
    prearmed: PageSet,
    /// What was touched since.
    touched: Option<Touched>,
    /// By the last cut.
    passed: Passed,
}

/// While the process runs, memory is protected again and again until so few pages were written meanwhile that the cut has little left to do: each pass is
/// quicker than the one before, unless the process writes faster than pages can be protected.
const SETTLED: u64 = 2048;
/// Each pass makes the process fault once more on pages that it writes all the time, so there is an end to it; and to go on, each must have found at the
/// most this part of what the one before did.
const PASSES_MOST: u32 = 6;
/// So many stretches of memory are worth a thread: each takes at least a microsecond.
const LEAST: usize = 128;
const LESS: (u64, u64) = (3, 4);

/// What is scanned at once: pages side by side of which the same is asked.
#[derive(Debug, Default)]
struct Scan {
    /// And whether they are of a file.
    stretches: Vec<(PageRange, bool)>,
    /// Of these, those that were not registered before, or were not for sure: nothing is known of their pages.
    fresh: Vec<PageRange>,
}

impl Scan {
    fn add(&mut self, mapping: &Mapping, noted: Noted) {
        let (pages, of_file) = (mapping.pages(), mapping.kind == MappingKind::File);
        // What is known of huge pages is not kept.
        if noted == Noted::Anew || mapping.page_size != PAGE_SIZE {
            self.fresh.push(pages);
        }
        match self.stretches.last_mut() {
            Some((stretch, like)) if *like == of_file && stretch.end() == pages.start => stretch.count += pages.count,
            _ => self.stretches.push((pages, of_file)),
        }
    }
}

/// Pages side by side that are looked at in the same way.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    pages: PageRange,
    of_file: bool,
    /// The log of write faults has them, each.
    is_listed: bool,
}

/// What a scan has found.
#[derive(Debug, Default)]
struct Found {
    /// And protected again.
    written: PageSet,
    /// Those that may have changed in another way, too.
    touched: Vec<PageRange>,
    there: Vec<Run>,
}

/// Whether writes to a mapping are noted from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// They were before.
    Still,
    /// Since now: all of it counts as written.
    Anew,
    /// The kernel cannot.
    Not,
}

impl ScanTracker {
    /// Makes the descriptor in the process of a stopped thread.
    ///
    /// Errors: the kernel has no asynchronous write protection, or lets nobody scan.
    pub fn start(task: &mut RemoteTask<'_>) -> Result<ScanTracker> {
        let pid = task.pid();
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        let call = (libc::SYS_userfaultfd, [flags as u64, 0, 0, 0, 0, 0]);
        let fetched = task.with_descriptor("cannot make a userfaultfd", call, |fd| {
            let fetched = pidfd::open(pid).and_then(|process| pidfd::get_fd(process.as_fd(), fd));
            fetched.doing(|| format!("cannot fetch the userfaultfd of pid {pid}"))
        })?;
        let notes = WriteNotes::begin(fetched);
        let notes = notes.doing(|| NO_PROTECTION)?;
        let page_map = PageMap::open(pid)?;
        can_scan(&page_map)?;
        let presence = tells_what_is_gone().then(Presence::default);
        let (protected, ours, unsure) = (Vec::new(), PageSet::new(), Vec::new());
        let (prearmed, touched, passed) = (PageSet::new(), None, Passed::default());
        let space = None;
        Ok(ScanTracker { pid, notes, page_map, protected, ours, unsure, presence, prearmed, touched, passed, space })
    }

    /// Can the kernel note writes to it from now on? Memory that others write, too, through mappings of their own, is noted in theirs.
    fn note(&self, mapping: &Mapping) -> Result<Noted> {
        let private = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::AnonymousHuge | MappingKind::File);
        if !private || mapping.shared {
            return Ok(Noted::Not);
        }
        // Also if it is registered already: that it is, in smaps, does not tell with whom, and another ckpt may watch the process, too.
        let pages = mapping.pages().numbers();
        let is_sure = !self.unsure.iter().any(|unsure| unsure.start < pages.end && pages.start < unsure.end());
        let was_registered = mapping.flags.contains(VmFlags::WRITES_NOTED) && is_sure;
        let doing = || format!("cannot track {} of pid {}", mapping.describe(), self.pid);
        match self.notes.register(mapping.pages()) {
            Ok(()) if was_registered => Ok(Noted::Still),
            Ok(()) => {
                // Where mremap has moved memory beside other memory, both have lost their registration, but page tables may still say
                // "protected" of pages that anybody could write since.
                self.notes.unprotect(mapping.pages()).doing(doing)?;
                Ok(Noted::Anew)
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EINVAL | libc::EPERM)) => {
                tracing::info!("{} of pid {} cannot be tracked: {e}", mapping.describe(), self.pid);
                Ok(Noted::Not)
            }
            Err(e) => Err(e).doing(doing),
        }
    }

    /// Takes what was written in memory that is registered, all of which is given, but for what is passed over; `lenient`: or was a moment ago.
    fn take(&mut self, scan: &Scan, lenient: bool) -> Result<PageSet> {
        let Found { written, touched, there } = self.find(&self.to_find(scan), lenient)?;
        if let Some(presence) = self.presence.as_mut() {
            update(presence, &self.page_map, scan, &touched, &there)?;
        }
        Ok(written)
    }

    /// What was written of this since it was taken a moment ago, while the process runs. How many pages that are is returned.
    fn take_again(&mut self, scan: &Scan, written: &mut PageSet) -> Result<u64> {
        let all: Vec<Stretch> =
            scan.stretches.iter().map(|&(pages, of_file)| Stretch { pages, of_file, is_listed: false }).collect();
        let found = self.find(&all, true)?;
        if let Some(presence) = self.presence.as_mut() {
            let touched: Vec<PageRange> = changed(&found.touched, &found.there).map(PageRange::from).collect();
            presence.update(presence.seen().clone(), &touched, &found.there);
        }
        let pages = found.written.count();
        written.extend(found.written);
        Ok(pages)
    }

    /// What is left of a scan, in order: what was not passed over, and the pages that the log has.
    fn to_find(&self, scan: &Scan) -> Vec<Stretch> {
        let left = self.passed.leave(&scan.stretches).into_iter();
        let left = left.map(|(pages, of_file)| Stretch { pages, of_file, is_listed: false });
        let listed = self.passed.written.iter().cloned().map(PageRange::from);
        let listed = listed.map(|pages| Stretch { pages, of_file: false, is_listed: true });
        let mut all: Vec<Stretch> = left.chain(listed).collect();
        all.sort_unstable_by_key(|stretch| stretch.pages.start);
        all
    }

    fn find(&self, stretches: &[Stretch], lenient: bool) -> Result<Found> {
        let (mut found, mut written) = (Found::default(), Vec::new());
        for part in parallel::slices(stretches, LEAST, |some| self.find_some(some, lenient)) {
            let (mut some, mut runs) = part?;
            found.touched.append(&mut some.touched);
            found.there.append(&mut some.there);
            written.append(&mut runs);
        }
        // Once for all of them.
        found.written = written.into_iter().collect();
        Ok(found)
    }

    /// The same, with what was written beside it, in order.
    fn find_some(&self, stretches: &[Stretch], lenient: bool) -> Result<(Found, Vec<Range<u64>>)> {
        let (mut found, mut written) = (Found::default(), Vec::new());
        for &Stretch { pages, of_file, is_listed } in stretches {
            let mut taken = Taken::default();
            let asked = if self.presence.is_some() { Content::asked(of_file) } else { Page::empty() };
            match lenient {
                _ if is_listed => self.page_map.take_listed(pages, asked, &mut taken)?,
                true => self.page_map.take_written_if_registered(pages, asked, &mut taken)?,
                false => self.page_map.take_written(pages, asked, &mut taken)?,
            }
            if of_file {
                self.take_dropped(pages, &mut taken)?;
            }
            written.extend(taken.there.iter().map(|(run, _)| run.numbers()));
            found.touched.append(&mut taken.touched);
            found.there.extend(taken.there.into_iter().filter_map(|(run, page)| Some((run, Content::of(page, of_file)?))));
        }
        Ok((found, written))
    }

    /// Of a mapping of a file: pages of the process's own that it has given up (MADV_DONTNEED). In their places the kernel leaves marks that they were
    /// protected, and tells of nothing: a mark looks like a page that is swapped out, and once the file's own page is there, that is protected, too.
    fn take_dropped(&self, pages: PageRange, taken: &mut Taken) -> Result<()> {
        let known: PageSet = match &self.presence {
            Some(presence) => {
                presence.within(pages).filter(|(_, is)| *is != Content::Guard).map(|(run, _)| run.numbers()).collect()
            }
            None => std::iter::once(pages.numbers()).collect(),
        };
        let (Some(first), Some(last)) = (known.iter().next(), known.iter().last()) else { return Ok(()) };
        let just_taken: PageSet = taken.there.iter().map(|(run, _)| run.numbers()).collect();
        let (mut touched, mut swapped) = (PageSet::new(), Vec::new());
        self.page_map.walk((first.start..last.end).into(), Page::PRESENT | Page::SWAPPED | Page::FILE, |run, page| {
            // Whether a mark or a page is there, to read it tells what the process would read.
            let is_swapped = page.contains(Page::SWAPPED) && !page.contains(Page::PRESENT);
            if !is_swapped && !page.contains(Page::FILE) {
                return;
            }
            for own in known.within(&run.numbers()) {
                for own in just_taken.gaps(&own) {
                    swapped.extend(is_swapped.then(|| (PageRange::from(own.clone()), page)));
                    touched.insert(own);
                }
            }
        })?;
        if !touched.is_empty() {
            touched.extend(taken.touched.iter().map(|range| range.numbers()));
            taken.touched = touched.into_iter().map(PageRange::from).collect();
            taken.there.append(&mut swapped);
            taken.there.sort_unstable_by_key(|(run, _)| run.start);
        }
        Ok(())
    }
}

/// Both together, in order.
fn changed(touched: &[PageRange], there: &[Run]) -> impl Iterator<Item = Range<u64>> {
    union(touched.iter().map(|range| range.numbers()), there.iter().map(|(run, _)| run.numbers())).into_iter()
}

/// Keeps what is known of the memory up to date: `touched` pages are as `there` says.
fn update(presence: &mut Presence, page_map: &PageMap, scan: &Scan, touched: &[PageRange], there: &[Run]) -> Result<()> {
    let seen: PageSet = scan.stretches.iter().map(|(pages, _)| pages.numbers()).collect();
    // Registered already, but not looked at the last time: the scan has told only what was written there.
    let mut told = presence.seen().clone();
    told.extend(scan.fresh.iter().map(|fresh| fresh.numbers()));
    let untold = |(pages, of_file): &(PageRange, bool)| {
        told.gaps(&pages.numbers()).map(|gap| (PageRange::from(gap), *of_file)).collect::<Vec<_>>()
    };
    let untold: Vec<(PageRange, bool)> = scan.stretches.iter().flat_map(untold).collect();
    let fresh = scan.fresh.iter().map(|range| range.numbers());
    let touched: Vec<PageRange> = union(changed(touched, there), fresh).into_iter().map(PageRange::from).collect();
    presence.update(seen.clone(), &touched, there);
    for (pages, of_file) in untold {
        let mut there = Vec::new();
        page_map.walk(pages, Content::asked(of_file), |run, page| {
            there.extend(Content::of(page, of_file).map(|content| (run, content)))
        })?;
        presence.update(seen.clone(), &[pages], &there);
    }
    Ok(())
}

impl DirtyTracker for ScanTracker {
    fn name(&self) -> &'static str {
        "scan"
    }

    /// Nothing is executed from here to the cut: every thread is stopped. The trial is made with memory of ckpt's own, which nobody else has
    /// registered: what is registered in the address space of the descriptor must be seen in that of the process.
    fn prepare(&mut self, task: &mut RemoteTask<'_>, space: Option<AddressSpace>) -> Result<()> {
        if space.is_some() && space == self.space {
            return Ok(());
        }
        let page_map = PageMap::open(self.pid)?;
        let own = task.own_pages()?;
        let lost = "it has another address space than before (another program was executed)";
        let doing = || format!("cannot track the memory of pid {}: {lost}", self.pid);
        self.notes.register(own).doing(doing)?;
        if !page_map.notes_writes(own)? {
            return Err(Error::Unexpected(doing()));
        }
        (self.page_map, self.space) = (page_map, space);
        Ok(())
    }

    fn prearm(&mut self, mappings: &[Mapping], as_left: bool) -> Result<PageSet> {
        // What is known of huge pages is not kept, so they are not taken more than once.
        let (mut scan, mut small) = (Scan::default(), Scan::default());
        self.protected.clear();
        self.passed = Passed::default();
        let mut prearmed = std::mem::take(&mut self.prearmed);
        prearmed.clear();
        for mapping in mappings {
            let noted = if mapping.flags.contains(VmFlags::WRITES_NOTED) {
                // Not registered again: if it has been moved since it was looked at, it is not registered any more, and what its page tables say of
                // protection means nothing. What another ckpt watches must not be taken from it.
                if !as_left && !self.ours.covers(&mapping.pages().numbers()) {
                    continue;
                }
                Noted::Still
            } else {
                match self.note(mapping) {
                    Ok(Noted::Not) => continue,
                    Ok(noted) => noted,
                    Err(error) => {
                        // It has been unmapped or moved in between, say. The cut looks at it again, with everything standing still.
                        tracing::debug!("{error}");
                        self.unsure.push(mapping.pages());
                        continue;
                    }
                }
            };
            scan.add(mapping, noted);
            if mapping.page_size == PAGE_SIZE {
                small.add(mapping, Noted::Still);
                self.protected.push(mapping.pages());
                // Where a page of a file's mapping is dropped, the kernel leaves a mark behind that looks as if it was there, and protected.
                if mapping.kind == MappingKind::Anonymous {
                    prearmed.insert(mapping.pages().numbers());
                }
            }
        }
        let mut written = self.take(&scan, true)?;
        let mut last = written.count();
        for _ in 1..PASSES_MOST {
            if last <= SETTLED {
                break;
            }
            let again = self.take_again(&small, &mut written)?;
            if again * LESS.1 > last * LESS.0 {
                break;
            }
            last = again;
        }
        self.prearmed = prearmed;
        Ok(written)
    }

    fn only_touched(&mut self, touched: &Touched) {
        self.touched = Some(touched.clone());
    }

    fn cut(&mut self, mappings: &mut [Mapping], as_left: bool) -> Result<PageSet> {
        let mut scan = Scan::default();
        let mut untracked = Vec::new();
        self.protected.clear();
        let prearmed = std::mem::take(&mut self.prearmed);
        let mut prearmed_again = PageSet::new();
        // Where mappings have changed, what the page tables say may mean nothing.
        self.passed = match (self.touched.take(), &self.presence) {
            (Some(touched), Some(presence)) if as_left => passed_over(presence, &prearmed, &touched),
            _ => Passed::default(),
        };
        for mapping in mappings {
            let pages = mapping.pages();
            // What was registered then still is, and need not be again.
            let is_left = as_left && mapping.flags.contains(VmFlags::WRITES_NOTED) && self.ours.covers(&pages.numbers());
            let noted = if is_left { Noted::Still } else { self.note(mapping)? };
            if noted == Noted::Not {
                mapping.flags -= VmFlags::WRITES_NOTED;
                untracked.extend((pages.count > 0).then_some(pages));
                continue;
            }
            mapping.flags |= VmFlags::WRITES_NOTED;
            if mapping.page_size == PAGE_SIZE {
                self.protected.push(pages);
                if mapping.kind == MappingKind::Anonymous {
                    prearmed_again.insert(pages.numbers());
                }
            }
            scan.add(mapping, noted);
        }
        let mut written = self.take(&scan, false)?;
        written.extend(untracked.into_iter().map(PageRange::numbers));
        written.extend(self.passed.written.iter().cloned());
        self.prearmed = prearmed_again;
        self.ours = scan.stretches.iter().map(|(pages, _)| pages.numbers()).collect();
        self.unsure.clear();
        Ok(written)
    }

    fn passed_over(&self) -> &[PageRange] {
        &self.passed.over
    }

    fn presence(&self) -> Option<&Presence> {
        self.presence.as_ref()
    }

    fn protected(&self) -> &[PageRange] {
        &self.protected
    }
}
