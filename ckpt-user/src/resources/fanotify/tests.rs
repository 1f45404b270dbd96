//! Groups of the test's own process, collected and made again.

use std::fs;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use super::super::fd_trial::{collect, flags, refusal, refusal_for_a_deleted_file};
use super::*;
use crate::skip;

const CLOEXEC_NONBLOCK: u32 = 0x3;
const OPEN: u64 = 0x20;
const MODIFY: u64 = 0x2;
const ON_CHILDREN: u64 = 0x0800_0000;

fn lines(fd: &OwnedFd) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let mut lines: Vec<String> = text.lines().filter(|line| line.starts_with("fanotify")).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A group for a test, or `None` where this is not allowed.
fn group(test: &str, flags: u32) -> Option<OwnedFd> {
    let made = fanotify::create(flags, (libc::O_RDWR | libc::O_NOATIME | libc::O_CLOEXEC) as u32);
    made.map_err(|error| skip::note(test, &format!("no fanotify here: {error}"))).ok()
}

#[test]
fn marks_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    // FAN_CLASS_CONTENT; FAN_REPORT_DFID_NAME.
    for class in [0, 0x4, 0xc00] {
        let Some(old) = group("marks_come_back", CLOEXEC_NONBLOCK | class) else { return };
        let mark = |flags, mask, path: &Path| fanotify::mark(old.as_fd(), FAN_MARK_ADD | flags, mask, path).unwrap();
        mark(0, MODIFY | ON_CHILDREN | 0x4000_0000, folder.path());
        mark(0, OPEN, &file);
        mark(FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, 0x10, &file);
        mark(FAN_MARK_IGNORED_MASK, 0x10, folder.path());
        let shm = Path::new("/dev/shm");
        if is_mount_point(shm).unwrap() {
            // FAN_OPEN_EXEC: others use it, too.
            mark(FAN_MARK_FILESYSTEM, 0x1000, shm);
            mark(FAN_MARK_MOUNT, 0x1000, shm);
            mark(FAN_MARK_MOUNT | FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY, OPEN, shm);
        }
        let [new] = collect(&[old.as_fd()]).unwrap().restore().unwrap().try_into().unwrap();
        assert_eq!(flags(&new), flags(&old));
        assert_eq!(lines(&new), lines(&old));
        assert_eq!(queue::readable(new.as_fd()).unwrap(), 0);
        File::open(&file).unwrap();
        assert_ne!(queue::readable(new.as_fd()).unwrap(), 0);
    }
}

#[test]
fn events_that_wait_and_permissions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (waits, asks) = (folder.path().join("waits"), folder.path().join("asks"));
    fs::write(&waits, "").unwrap();
    fs::write(&asks, "").unwrap();
    let Some(fd) = group("events_that_wait_and_permissions_are_refused", CLOEXEC_NONBLOCK | 0x4) else { return };
    fanotify::mark(fd.as_fd(), FAN_MARK_ADD, OPEN, &waits).unwrap();
    File::open(&waits).unwrap();
    assert!(!that_ask(super::super::fd_trial::this_process()).unwrap().contains(&fd.as_raw_fd()));
    let refused = || refusal(&fd);
    assert!(refused().contains("events") && refused().contains("try again"), "{}", refused());
    match fanotify::mark(fd.as_fd(), FAN_MARK_ADD, 0x10000, &asks) {
        Ok(()) => {
            assert!(refused().contains("decides what other programs may open"), "{}", refused());
            assert!(that_ask(super::super::fd_trial::this_process()).unwrap().contains(&fd.as_raw_fd()));
        }
        Err(error) => skip::note("events_that_wait_and_permissions_are_refused", &format!("no permission events here: {error}")),
    }
}

#[test]
fn a_deleted_file_is_refused() {
    let refused = refusal_for_a_deleted_file(|path| {
        let fd = group("a_deleted_file_is_refused", CLOEXEC_NONBLOCK)?;
        fanotify::mark(fd.as_fd(), FAN_MARK_ADD, OPEN, path).unwrap();
        Some(fd)
    });
    // Without the right to have a group, there is none.
    assert!(refused.as_ref().is_none_or(|refused| refused.contains("no name can be found")), "{refused:?}");
}

#[test]
fn hostile_records_are_errors() {
    let options = super::super::restorer::RestoreOptions::default();
    let mut cx = Restorer::new(&options, Vec::new());
    let mark = |on, path: &[u8], mask| Mark { on, path: path.to_vec(), mask, ignored: 0, flags: 0 };
    let Some(_) = group("hostile_records_are_errors", 0) else { return };
    for marks in [
        vec![mark(On::Inode, b"/no/such/file", 2)],
        vec![mark(On::Inode, b"/no\0name", 2)],
        vec![mark(On::Mount, b"/usr/bin", 2)],
        vec![mark(On::FileSystem, b"/usr/bin", 2)],
        vec![mark(On::Inode, b"/", 0x8000_0000)],
    ] {
        let record = FanotifyRecord { marks, ..FanotifyRecord::default() };
        let made = Fanotify::restore(&mut cx, &OpenFile::default(), &record);
        assert!(made.and_then(|fd| Fanotify::finish(&mut cx, fd.as_fd(), &record)).is_err(), "{record:?}");
    }
    assert!(
        Fanotify::restore(&mut cx, &OpenFile::default(), &FanotifyRecord { flags: !0, ..FanotifyRecord::default() }).is_err()
    );
}
