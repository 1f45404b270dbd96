//! The collecting side of a checkpoint: the object table, and what the kinds may ask while they read a frozen task.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::mapped_file::LookedAt;
use super::written::{Stamp, Written};
use crate::error::{Error, Refusal, Result};
use crate::ids::{ObjRef, PageRange, Pid};
use crate::image::model::{Object, Section};

/// What makes two appearances of a kernel object the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// An inode, on its device, seen by the kind named: a pipe, the contents of a deleted file, a memfd.
    Inode(&'static str, u64, u64),
    /// An open file description: the first task and descriptor number it was found under (kcmp decides who else has it).
    File(Pid, i32),
    /// An address space, descriptor table, ... of the task it was first seen in.
    Task(&'static str, Pid),
}

/// The contents of a file that must travel in the image because nothing outside will hold them as they are: a deleted file, a memfd, a file that
/// the job goes on to write.
#[derive(Debug)]
pub struct Content {
    /// The object that the pages belong to.
    pub owner: ObjRef,
    /// A descriptor to read them from with pread.
    pub source: OwnedFd,
    /// Which pages hold data (the last may be partly beyond the end: it is filled up with zeros). The others are holes.
    pub pages: Vec<PageRange>,
    /// Length in bytes.
    pub size: u64,
    /// Which file: by this it is found in the next cut.
    pub id: FileId,
    /// If it is the same in the next cut, so are the contents.
    pub stamp: Option<Stamp>,
    /// `source` is a copy that nobody writes to: it can be read after the target goes on.
    pub is_copy: bool,
}

/// A file, for as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
}

/// Options of the user that kinds must know while collecting.
#[derive(Debug, Clone, Default)]
pub struct CollectOptions {
    /// `--tcp-close`: established TCP connections are saved as closed ones instead of being refused.
    pub tcp_close: bool,
    /// The checkpoint will not be tried again if something stands against it that may be over in a moment.
    pub last_try: bool,
    /// `--save-files`: the contents of regular files that could be written to are saved.
    pub save_files: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Collector<'a> {
    /// What the user asked for.
    pub options: &'a CollectOptions,
    /// Every process of the cut.
    pub pids: Vec<Pid>,
    /// Objects whose other end is outside of the cut.
    pub external: HashSet<ObjRef>,
    /// Files that could be written to.
    pub written: Written,
    /// Files behind mappings that were looked at before.
    pub looked_at: Option<&'a LookedAt>,
    /// The processes are looked at while they run (`ckpt check`): what waits in queues is of no interest, and does not stand still.
    pub is_running: bool,
    in_flight: Vec<u32>,
    objects: Vec<Object>,
    /// Where each object stands in the table.
    places: HashMap<ObjRef, usize>,
    numbers: HashMap<ObjectKey, ObjRef>,
    next: u32,
    contents: Vec<Content>,
    refusals: Vec<Refusal>,
    passing: bool,
    facts: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl<'a> Collector<'a> {
    /// An empty object table for a cut of `pids`.
    pub fn new(options: &'a CollectOptions, pids: Vec<Pid>) -> Collector<'a> {
        Collector {
            options,
            pids,
            external: HashSet::new(),
            written: Written::default(),
            looked_at: None,
            is_running: false,
            in_flight: Vec::new(),
            objects: Vec::new(),
            places: HashMap::new(),
            numbers: HashMap::new(),
            next: 1,
            contents: Vec::new(),
            refusals: Vec::new(),
            passing: false,
            facts: HashMap::new(),
        }
    }

    /// What a thread has just answered is true of this moment only, or could change without a trace in what the kernel keeps of it for
    /// [`crate::track::ebpf::ThreadState`].
    pub fn is_passing(&mut self) {
        self.passing = true;
    }

    /// Was it said so since this was asked last?
    pub fn take_passing(&mut self) -> bool {
        std::mem::take(&mut self.passing)
    }

    /// Something about the whole cut (who holds which pipe, ...) that `find` finds out from its processes, the first time that it is
    /// asked for.
    pub fn fact<T: Any + Send + Sync>(&mut self, find: impl FnOnce(&[Pid]) -> Result<T>) -> Result<Arc<T>> {
        let known = self.facts.get(&TypeId::of::<T>()).cloned().and_then(|fact| fact.downcast().ok());
        if let Some(fact) = known {
            return Ok(fact);
        }
        let fact = Arc::new(find(&self.pids)?);
        self.facts.insert(TypeId::of::<T>(), fact.clone());
        Ok(fact)
    }

    /// The number of the object `key`. The first time it is met, `make` collects it, and its record takes its place in the
    /// table after whatever `make` itself has met (SEED S15: an object stands before what refers to it).
    pub fn intern(&mut self, key: ObjectKey, make: impl FnOnce(&mut Self, ObjRef) -> Result<Section>) -> Result<ObjRef> {
        if let Some(&objref) = self.numbers.get(&key) {
            return Ok(objref);
        }
        let objref = ObjRef(self.next);
        self.next += 1;
        self.numbers.insert(key, objref);
        let section = make(self, objref)?;
        self.places.insert(objref, self.objects.len());
        self.objects.push(Object { objref, section });
        Ok(objref)
    }

    /// The number of an object that was met before.
    pub fn lookup(&self, key: &ObjectKey) -> Option<ObjRef> {
        self.numbers.get(key).copied()
    }

    /// The kind of an object that was collected.
    pub fn kind_of(&self, objref: ObjRef) -> Option<&str> {
        self.places.get(&objref).map(|&at| self.objects[at].section.kind.as_str())
    }

    /// Takes note of a unix socket, by its inode, whose queue is saved and has descriptors in it.
    pub fn note_in_flight(&mut self, inode: u32) {
        if !self.in_flight.contains(&inode) {
            self.in_flight.push(inode);
        }
    }

    /// Those that were noted, in order.
    pub fn in_flight(&self) -> &[u32] {
        &self.in_flight
    }

    /// Has pages saved that no file outside will hold.
    pub fn add_content(&mut self, content: Content) {
        self.contents.push(content);
    }

    /// Contents that are to be saved, so far.
    pub fn contents(&self) -> &[Content] {
        &self.contents
    }

    /// An error that says what cannot be saved, why, and what the user can do.
    pub fn refuse<T>(
        &self,
        pid: Pid,
        object: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<T> {
        Err(refused(pid, object, reason, advice, false))
    }

    /// The same for what may well be over in a moment: with such reasons alone, the checkpoint is tried again.
    pub fn refuse_for_now<T>(
        &self,
        pid: Pid,
        object: impl Into<String>,
        reason: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<T> {
        Err(refused(pid, object, reason, advice, true))
    }

    /// Runs one part of the collection; a refusal is kept, so that `ckpt check PID` can list them all, and the rest goes on.
    pub fn attempt<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        match part(self) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Refused(refusal)) => {
                self.refusals.push(refusal);
                Ok(None)
            }
            Err(Error::RefusedAll(refusals)) => {
                self.refusals.extend(refusals);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Everything collected, or every reason why not.
    pub fn finish(self) -> Result<Collected> {
        if self.refusals.is_empty() {
            Ok(Collected { objects: self.objects, contents: self.contents })
        } else {
            Err(Error::RefusedAll(self.refusals))
        }
    }

    /// The reasons found so far why this cannot be checkpointed.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }
}

fn refused(pid: Pid, object: impl Into<String>, reason: impl Into<String>, advice: impl Into<String>, passing: bool) -> Error {
    Error::Refused(Refusal { pid, object: object.into(), reason: reason.into(), advice: advice.into(), passing })
}

/// What a collection yields.
#[derive(Debug)]
pub struct Collected {
    /// The object table, in order of appearance.
    pub objects: Vec<Object>,
    /// Contents that go into the page streams.
    pub contents: Vec<Content>,
}
