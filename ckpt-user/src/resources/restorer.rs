//! The restoring side: decoded objects, what was made of them so far, and the wishes of the user.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use serde::de::DeserializeOwned;

use super::in_flight::Flights;
use super::pty_masters::Masters;
use super::reuseport::Groups;
use super::unix_peer::Pool;
use super::unix_senders::Senders;
use super::written::Rollback;
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::{Object, Section};

/// What to do with a file that is not as it was at the checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FilesPolicy {
    /// It is an error that names the file, unless its contents were saved (--save-files) and are put back.
    #[default]
    Fail,
    /// The same, but a file that the job could write to and that only grew is cut back to its recorded size; what is cut off is kept beside it.
    Rollback,
    /// Take it as it is.
    Keep,
}

/// Options of the user that kinds must know while restoring.
#[derive(Debug, Default)]
pub struct RestoreOptions {
    /// `--files`.
    pub files: FilesPolicy,
    /// `--discard-changes`: what a rollback takes from files is not kept beside them.
    pub discard_changes: bool,
    /// `--inherit-fd`: descriptor number in the image -> descriptor of ours to use for it.
    pub inherit: HashMap<RawFd, OwnedFd>,
    /// Other descriptors that ckpt was started with: one that led outside gets its number here, if that is of the same type.
    pub ambient: HashMap<RawFd, OwnedFd>,
}

/// See the module.
pub struct Restorer<'a> {
    /// What the user asked for.
    pub options: &'a RestoreOptions,
    /// What becomes of the files that the program wrote.
    pub rollback: Rollback,
    /// Pairs of unix sockets that are made together.
    pub pairs: Pool,
    /// Unix sockets that may have to send again what waits elsewhere.
    pub senders: Senders,
    /// TCP sockets that share a port.
    pub groups: Groups,
    /// Pseudoterminals that are not made yet.
    pub masters: Masters,
    sections: HashMap<ObjRef, Section>,
    shared: HashMap<ObjRef, Box<dyn Any>>,
    content_fds: HashMap<ObjRef, OwnedFd>,
    ignored_contents: HashSet<ObjRef>,
    deferred: Vec<Deferred>,
    once_open: Vec<OnceOpen>,
    attached: HashSet<ObjRef>,
}

/// A change of the world outside that waits until everything else was checked.
type Deferred = Box<dyn FnOnce() -> Result<()>>;

/// What needs the files in flight.
type OnceOpen = Box<dyn FnOnce(&Flights<'_>) -> Result<()>>;

impl std::fmt::Debug for Restorer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restorer").field("options", &self.options).field("objects", &self.sections.len()).finish_non_exhaustive()
    }
}

impl<'a> Restorer<'a> {
    /// A restorer for the objects of one image.
    pub fn new(options: &'a RestoreOptions, objects: Vec<Object>) -> Restorer<'a> {
        Restorer {
            options,
            rollback: Rollback::default(),
            pairs: Pool::default(),
            senders: Senders::default(),
            groups: Groups::default(),
            masters: Masters::default(),
            sections: objects.into_iter().map(|o| (o.objref, o.section)).collect(),
            shared: HashMap::new(),
            content_fds: HashMap::new(),
            ignored_contents: HashSet::new(),
            deferred: Vec::new(),
            once_open: Vec::new(),
            attached: HashSet::new(),
        }
    }

    /// Has something changed outside of the new process (a file cut back) only once all files were opened and found to fit.
    pub fn defer(&mut self, change: impl FnOnce() -> Result<()> + 'static) {
        self.deferred.push(Box::new(change));
    }

    /// Has something done once every file is open and every process there, in the order in which it was asked for.
    pub fn when_open(&mut self, fill: impl FnOnce(&Flights<'_>) -> Result<()> + 'static) {
        self.once_open.push(Box::new(fill));
    }

    /// Takes what was asked for. With it go our copies of sockets, which would keep them open.
    pub(super) fn once_open(&mut self) -> Vec<OnceOpen> {
        self.senders = Senders::default();
        std::mem::take(&mut self.once_open)
    }

    /// Notes that a process has the open file in its place. Is it the first one?
    pub fn is_first_to_attach(&mut self, objref: ObjRef) -> bool {
        self.attached.insert(objref)
    }

    /// Makes the changes that were deferred.
    pub fn settle(&mut self) -> Result<()> {
        std::mem::take(&mut self.deferred).into_iter().try_for_each(|change| change())
    }

    /// The record of an object; an image that refers to one it does not hold is damaged.
    pub fn section(&self, objref: ObjRef) -> Result<Section> {
        self.sections
            .get(&objref)
            .cloned()
            .ok_or_else(|| Error::Restart(format!("the image refers to object {objref}, which it does not hold")))
    }

    /// The record of an object that must be of this kind.
    pub fn record<T: DeserializeOwned>(&self, objref: ObjRef, kind: &str) -> Result<T> {
        let section = self.section(objref)?;
        if section.kind != kind {
            return Err(Error::Restart(format!("the image uses object {objref}, a '{}', as a '{kind}'", section.kind)));
        }
        Ok(section.decode()?)
    }

    /// Every object of this kind, in the order of their numbers.
    pub fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<(ObjRef, T)>> {
        let of_kind = self.sections.iter().filter(|(_, section)| section.kind == kind);
        let mut found = of_kind.map(|(&objref, section)| Ok((objref, section.decode()?))).collect::<Result<Vec<_>>>()?;
        found.sort_by_key(|(objref, _)| *objref);
        Ok(found)
    }

    /// The state that several open files share (both ends of a pipe, ...), made by `make` the first time.
    pub fn shared<T: Any>(&mut self, objref: ObjRef, make: impl FnOnce(&mut Self) -> Result<T>) -> Result<&mut T> {
        if !self.shared.contains_key(&objref) {
            let state = make(self)?;
            self.shared.insert(objref, Box::new(state));
        }
        self.shared
            .get_mut(&objref)
            .and_then(|state| state.downcast_mut())
            .ok_or_else(|| Error::Restart(format!("the image uses object {objref} as two different kinds")))
    }

    /// Says that the pages of `owner` in the image's streams are the contents of this file, to be written with pwrite.
    pub fn expect_content(&mut self, owner: ObjRef, fd: OwnedFd) {
        self.content_fds.insert(owner, fd);
    }

    /// Says that the pages of `owner` are the contents of a file that is taken as it is.
    pub fn ignore_content(&mut self, owner: ObjRef) {
        self.ignored_contents.insert(owner);
    }

    /// Whose pages nobody wants.
    pub fn ignored_contents(&self) -> &HashSet<ObjRef> {
        &self.ignored_contents
    }

    /// Where the pages of `owner` go, if they are the contents of a file.
    pub fn content_fd(&self, owner: ObjRef) -> Option<BorrowedFd<'_>> {
        self.content_fds.get(&owner).map(AsFd::as_fd)
    }

    /// Every file that pages go to: duplicates of the descriptors.
    pub fn contents(&self) -> Result<Vec<(ObjRef, OwnedFd)>> {
        let each =
            self.content_fds.iter().map(|(&owner, fd)| Ok((owner, fd.try_clone().doing(|| "cannot duplicate a descriptor")?)));
        each.collect()
    }
}
