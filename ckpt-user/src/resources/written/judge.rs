//! At a restart: how a file differs from what was recorded of it, and what is to be done about that.

use std::cmp::Ordering;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::{Saved, WrittenFile, evidence};
use crate::error::{Doing, FileChange, Result};
use crate::resources::named_file::is_absent;
use crate::resources::restorer::FilesPolicy;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fits,
    /// It only grew, and is cut back.
    CutBack,
    /// It gets its contents back.
    PutBack,
    /// It is gone, and is made again with its contents.
    MakeAgain,
    /// It cannot be used.
    Changed(FileChange),
}

const KEEP: &str = "--files keep takes it as it is";

/// Compares a file with its record. Changes nothing.
pub fn judge(record: &WrittenFile, policy: FilesPolicy) -> Result<Verdict> {
    let path = record.file.path();
    let doing = || format!("cannot look at {}", path.display());
    let changed =
        |what: String, advice: &str| Ok(Verdict::Changed(FileChange { path: path.clone(), what, advice: advice.to_owned() }));
    // What is beside a file goes with it: a journal is not put back that a newer database has not.
    if policy == FilesPolicy::Keep && record.of().is_some_and(|of| fs::symlink_metadata(of).is_ok()) {
        return Ok(Verdict::Fits);
    }
    let now = match fs::symlink_metadata(&path) {
        Err(error) if is_absent(&error) && record.saved != Saved::No => return Ok(Verdict::MakeAgain),
        Err(error) if is_absent(&error) && record.of().is_some() => {
            tracing::warn!("{} was there at the checkpoint, and is gone; it was not saved", path.display());
            return Ok(Verdict::Fits);
        }
        Err(error) if is_absent(&error) => {
            let advice = "bring it back to its place; of checkpoints with --save-files it is made again";
            return changed(format!("was deleted or renamed after the checkpoint ({error})"), advice);
        }
        other => other.doing(doing)?,
    };
    if policy == FilesPolicy::Keep && record.saved != Saved::Memory && (now.is_file() || now.is_symlink()) {
        return Ok(Verdict::Fits);
    }
    if !now.is_file() {
        return changed("is no regular file any more".to_owned(), "bring it back to its place");
    }
    let puts_back = match record.saved {
        Saved::No => false,
        Saved::Mapped => policy == FilesPolicy::Rollback,
        Saved::Asked | Saved::Memory => true,
    };
    if puts_back {
        return Ok(Verdict::PutBack);
    }
    let Some((what, only_grew)) = difference(record, &now).doing(doing)? else { return Ok(Verdict::Fits) };
    match (policy, only_grew, record.saved) {
        (FilesPolicy::Rollback, true, _) => Ok(Verdict::CutBack),
        (_, true, _) => changed(what, &format!("--files rollback cuts it back, {KEEP}")),
        (_, _, Saved::Mapped) => changed(what, &format!("--files rollback puts back what it held, {KEEP}")),
        _ if record.of().is_some() => {
            changed(what, &format!("ckpt has not saved it: bring back what it held, or move it away if nothing needs it; {KEEP}"))
        }
        _ => changed(what, &format!("{KEEP}; of checkpoints with --save-files it gets back what it held")),
    }
}

/// What has become of the beginning of a file, which is all that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    Same,
    Changed,
    /// The evidence does not cover all of it, and the job could write anywhere.
    Unknown,
}

fn beginning(record: &WrittenFile) -> io::Result<Beginning> {
    let size = record.file.size;
    let Some(evidence) = &record.evidence else { return Ok(Beginning::Unknown) };
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(record.file.path())?;
    Ok(match evidence.holds(&file, size)? {
        false => Beginning::Changed,
        true if record.appended || evidence::is_whole(size) => Beginning::Same,
        true => Beginning::Unknown,
    })
}

/// How a file differs, in words, and whether it only grew. `None`: it is as it was.
fn difference(record: &WrittenFile, now: &Metadata) -> io::Result<Option<(String, bool)>> {
    let then = &record.file;
    let same_time = (now.mtime(), now.mtime_nsec()) == then.mtime;
    let sizes = format!("had {} bytes at the checkpoint and has {} now", then.size, now.size());
    let other_file = now.ino() != then.inode.1;
    if now.size() < then.size {
        return Ok(Some((sizes, false)));
    }
    let beginning = beginning(record)?;
    Ok(match (now.size().cmp(&then.size), beginning) {
        (Ordering::Equal, Beginning::Same) => None,
        (Ordering::Equal, Beginning::Unknown) if same_time => None,
        (Ordering::Equal, _) => {
            Some((format!("was written to after the checkpoint (its size is still {} bytes)", then.size), false))
        }
        _ if other_file => Some((format!("{sizes}, and is another file of that name"), false)),
        (_, Beginning::Same) => Some((sizes, true)),
        (_, Beginning::Changed) => Some((format!("{sizes}, and what it had was written to as well"), false)),
        (_, Beginning::Unknown) => {
            Some((format!("{sizes}, and may have been written to anywhere, as it was open for more than appending"), false))
        }
    })
}
