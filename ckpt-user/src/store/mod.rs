//! Where images are kept: whole, under their final name, or not at all; and chains of them.

mod chains;
mod destination;
mod fan_out;
mod folder;
mod lineage;
mod overlay;
pub mod parents;
pub mod past;
mod retention;
pub mod same;
#[cfg(test)]
mod test_sink;

pub use chains::Chains;
pub use destination::Destination;
pub use fan_out::FanOut;
pub use folder::{Ending, Entry, FileState, Folder, Lock, header_of};
pub use lineage::resolve;
pub use overlay::{Mapped, Overlay};
pub use past::Past;
pub use retention::{Step, steps};
pub use same::SamePages;
