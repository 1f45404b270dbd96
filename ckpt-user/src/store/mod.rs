//! Where images are kept: whole, under their final name, or not at all; and chains of them.

mod destination;
mod folder;
mod lineage;
mod overlay;
pub mod parents;

pub use destination::Destination;
pub use folder::{Entry, Folder, Lock, chain, header_of};
pub use lineage::{parents_beside, resolve};
pub use overlay::Overlay;
