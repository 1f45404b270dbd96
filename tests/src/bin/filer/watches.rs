//! inotify.

use std::fs;
use std::path::Path;

use ckpt_tests::checks::{Checks, said, same};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("inotify", inotify());
    checks.add("inotify-empty", empty());
}

/// Watches with a gap in their numbers.
fn inotify() -> Made {
    for name in ["watched-1", "watched-2", "watched-3"] {
        fs::create_dir(name)?;
    }
    fs::write("watched-file", "x")?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let first = inotify.add_watch("watched-1", AddWatchFlags::IN_CREATE)?;
    let second = inotify.add_watch("watched-2", AddWatchFlags::IN_CREATE)?;
    let third = inotify.add_watch("watched-3", AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CREATE)?;
    let file = inotify.add_watch("watched-file", AddWatchFlags::IN_MODIFY)?;
    inotify.rm_watch(second)?;
    // That is told, too, but shall not be in the queue.
    inotify.read_events()?;
    let mut n = 0;
    boxed(move || {
        same("events so far", inotify.read_events().map(|events| events.len()), Err(Errno::EAGAIN))?;
        n += 1;
        for folder in ["watched-1", "watched-2", "watched-3"] {
            said("create", fs::write(Path::new(folder).join(format!("new-{n}")), ""))?;
        }
        said("write", fs::write("watched-file", "changed"))?;
        let events = said("read", inotify.read_events())?;
        let mut found: Vec<_> = events.iter().map(|event| (event.wd, event.mask)).collect();
        found.dedup();
        let (create, modify) = (AddWatchFlags::IN_CREATE, AddWatchFlags::IN_MODIFY);
        same("events", found, vec![(first, create), (third, create), (file, modify)])
    })
}

fn empty() -> Made {
    let inotify = Inotify::init(InitFlags::empty())?;
    fs::create_dir("watched-late")?;
    boxed(move || {
        let watch = said("inotify_add_watch", inotify.add_watch("watched-late", AddWatchFlags::IN_CREATE))?;
        said("inotify_rm_watch", inotify.rm_watch(watch))?;
        said("read", inotify.read_events()).map(drop)
    })
}
