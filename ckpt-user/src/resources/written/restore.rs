//! At a restart: every file that the image names is compared with what it was, all that differ are told at once, and what will be put back gets a
//! place to be read into.

use std::collections::HashSet;
use std::path::Path;

use super::judge::{Verdict, judge};
use super::{KIND, Rollback, Saved, Worth, WrittenFile, siblings};
use crate::error::{Doing, Error, FileChange, Result};
use crate::ids::ObjRef;
use crate::resources::Restorer;
use crate::resources::file::{FileBody, FileKind};
use crate::resources::named_file::NamedFile;
use crate::resources::regular::Regular;

/// Looks at the files, and prepares what is to become of them ([`Restorer::rollback`]). No file of the job is changed.
///
/// Errors: [`Error::FilesChanged`] with all files that are not as they were, and cannot or shall not be changed back.
pub fn prepare(cx: &mut Restorer<'_>) -> Result<()> {
    let written: Vec<(ObjRef, WrittenFile)> = cx.all(KIND)?;
    let mut changes = Vec::new();
    let mut to_do = Vec::new();
    for (owner, record) in &written {
        match judge(record, cx.options.files)? {
            Verdict::Changed(change) => changes.push(change),
            verdict => to_do.push((*owner, record, verdict)),
        }
    }
    changes.extend(of_others(cx, &written)?);
    if !changes.is_empty() {
        return Err(Error::FilesChanged(changes));
    }
    for (owner, record, verdict) in to_do {
        plan(cx, owner, record, &verdict)?;
    }
    Ok(())
}

/// Changes of files that the job could only read.
fn of_others(cx: &Restorer<'_>, written: &[(ObjRef, WrittenFile)]) -> Result<Vec<FileChange>> {
    let known: HashSet<(u64, u64)> = written.iter().map(|(_, record)| record.file.inode).collect();
    let mut seen = HashSet::new();
    let mut changes = Vec::new();
    for (_, body) in cx.all::<FileBody<NamedFile>>(Regular::KIND)? {
        let file = body.record;
        if !known.contains(&file.inode) && seen.insert(file.path.clone()) {
            changes.extend(file.change(cx.options.files)?);
        }
    }
    Ok(changes)
}

fn plan(cx: &mut Restorer<'_>, owner: ObjRef, record: &WrittenFile, verdict: &Verdict) -> Result<()> {
    let file = &record.file;
    let worth = if record.saved == Saved::Memory { Worth::Memory } else { Worth::File };
    let place = match verdict {
        Verdict::CutBack => {
            cx.rollback.cut_back(file);
            None
        }
        Verdict::PutBack => Some(cx.rollback.put_back(file, worth)?),
        Verdict::MakeAgain => Some(cx.rollback.make_again(file, worth)?),
        Verdict::Fits | Verdict::Changed(_) => None,
    };
    match place {
        Some(place) => cx.expect_content(owner, place.into()),
        // Taken as it is: what the image has of it is passed over.
        None if record.saved != Saved::No => cx.ignore_content(owner),
        None => {}
    }
    if worth == Worth::File && record.of().is_none() && matches!(verdict, Verdict::PutBack | Verdict::MakeAgain) {
        move_newer_aside(&mut cx.rollback, &file.path(), record)?;
    }
    Ok(())
}

fn move_newer_aside(rollback: &mut Rollback, path: &Path, record: &WrittenFile) -> Result<()> {
    let newer = siblings::newer(path, &record.siblings).doing(|| format!("cannot list what lies beside {}", path.display()))?;
    newer.into_iter().for_each(|sibling| rollback.move_aside(sibling));
    Ok(())
}
