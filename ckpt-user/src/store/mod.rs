//! Where images are kept: whole, under their final name, or not at all; and chains of them.

mod chains;
mod destination;
mod folder;
mod overlay;
mod retention;

pub use chains::Chains;
pub use destination::Destination;
pub use folder::{Ending, Entry, Folder, Lock};
pub use overlay::Overlay;
pub use retention::{Step, steps};
