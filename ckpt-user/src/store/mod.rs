//! Where images are kept: whole, under their final name, or not at all.

mod destination;

pub use destination::Destination;
